"""Prefill: the keys and values of pending tokens go into the cache.

Text, ViT and clean VAE tokens alike, several images and all contexts in one call: the mask does
the rest. Rows are padded on the right; padding is not written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mogao_jax.models import cache as kv_cache
from mogao_jax.models.modules import Modules
from mogao_jax.models.mogao import example_inputs
from mogao_jax.ops.attention.parts import Parts
from mogao_jax.sampling.history import CachedSequence, TokenSpan
from mogao_jax.sampling.programs import round_up_pow2
from mogao_jax.sequence.masking import TEXT, VAE_CLEAN, VIT, TokenMeta

# Tokens of a row that are computed at once. A row with more is computed in turns, unless a single
# image has more.
MIN_TOKENS, MAX_TOKENS = 32, 512
OUT_OF_RANGE = np.iinfo(np.int32).max  # beyond any cache: not written


class NewTokens(NamedTuple):
    """Tokens to compute, padded to r rows of U und and C clean tokens (either may be 0)."""

    tokens: Any  # int32[r, U]
    vit_index: Any  # int32[r, U]
    features: Any  # float32[r, P, C]; P = 0 if there are no ViT tokens
    latents: Any  # float32[r, C, 64]
    meta: Parts  # TokenMeta int32[r, .] of und and clean
    positions: Parts  # float32[r, ., 3]
    destination: Parts  # int32[r, .] place in the cache


def build_prefill_batch(
    contexts: Sequence[CachedSequence],
    spans: Sequence[Sequence[TokenSpan]],
    num_rows: int,
    feature_shape: tuple[int, int],
    channels: int,
) -> NewTokens:
    """Lays spans out in rows, and notes in the contexts that they are in the cache.

    Args:
      contexts, spans: one line per row, at most `num_rows`.
      feature_shape: (features per merged ViT token, channels of a feature).
      channels: of a VAE token (64).
    """
    num_und = _padded_length(spans, "und")
    num_clean = _padded_length(spans, "clean")
    per_token, feature_channels = feature_shape
    has_vit = any(span.features is not None for row in spans for span in row)
    num_features = num_und * per_token if has_vit else 0

    def column(length: int, fill: int = 0) -> np.ndarray:
        return np.full((num_rows, length), fill, np.int32)

    def meta(length: int) -> TokenMeta:
        return TokenMeta(column(length), column(length), column(length))

    new = NewTokens(
        tokens=column(num_und),
        vit_index=column(num_und, -1),
        features=np.zeros((num_rows, num_features, feature_channels), np.float32),
        latents=np.zeros((num_rows, num_clean, channels), np.float32),
        meta=Parts(und=meta(num_und), clean=meta(num_clean)),
        positions=Parts(
            und=np.zeros((num_rows, num_und, 3), np.float32),
            clean=np.zeros((num_rows, num_clean, 3), np.float32),
        ),
        destination=Parts(und=column(num_und, OUT_OF_RANGE), clean=column(num_clean, OUT_OF_RANGE)),
    )
    for row, (context, taken) in enumerate(zip(contexts, spans, strict=True)):
        _fill_row(new, row, taken, context.written, per_token)
        for span in taken:
            context.written[span.part] += len(span)
    return new


def _padded_length(spans: Sequence[Sequence[TokenSpan]], part: str) -> int:
    longest = max(sum(len(span) for span in row if span.part == part) for row in spans)
    return round_up_pow2(longest, MIN_TOKENS) if longest else 0


def _fill_row(
    new: NewTokens, row: int, spans: Sequence[TokenSpan], written: Mapping[str, int], per_token: int
) -> None:
    """Puts spans side by side into a row. `written`: tokens of each part that the cache has."""
    start = {"und": 0, "clean": 0}
    num_vit = 0
    for span in spans:
        n, first = len(span), start[span.part]
        here = slice(first, first + n)
        start[span.part] += n
        kind = TEXT
        if span.latents is not None:
            kind = VAE_CLEAN
            new.latents[row, here] = span.latents
        else:
            new.tokens[row, here] = span.token
        if span.features is not None:
            kind = VIT
            new.vit_index[row, here] = num_vit + np.arange(n)
            feature = num_vit * per_token
            new.features[row, feature : feature + len(span.features)] = span.features
            num_vit += n
        segment, order, kinds = getattr(new.meta, span.part)
        segment[row, here], order[row, here], kinds[row, here] = 1, span.placed.order, kind
        getattr(new.positions, span.part)[row, here] = span.placed.positions
        place = written[span.part] + first + np.arange(n)
        getattr(new.destination, span.part)[row, here] = place


def prefill(modules: Modules, params: Any, cache: Parts, rows: jax.Array, new: NewTokens) -> Parts:
    """The cache with new tokens in its rows int32[r]. A program: to be jitted, cache donated."""
    num_rows, num_und = new.tokens.shape
    num_clean = new.latents.shape[1]
    reads_clean = num_clean > 0 or modules.model.text_reads_vae
    work = Parts(
        und=kv_cache.take(cache.und, rows),
        clean=kv_cache.take(cache.clean, rows) if reads_clean else None,
    )
    none = example_inputs(modules.model, (num_rows, 0, 0, 0, 0), num_patches=0)
    inputs = none._replace(
        tokens=new.tokens,
        vit_index=new.vit_index,
        vit_features=new.features,
        clean_latents=new.latents,
        meta=new.meta._replace(noised=none.meta.noised),
        positions=new.positions._replace(noised=none.positions.noised),
    )
    destination = Parts(
        und=new.destination.und if num_und else None,
        clean=new.destination.clean if num_clean else None,
    )
    after = modules.model.apply({"params": params}, inputs, work, destination).cache
    return Parts(
        und=kv_cache.put(cache.und, rows, after.und if num_und else None),
        clean=kv_cache.put(cache.clean, rows, after.clean if num_clean else None),
    )
