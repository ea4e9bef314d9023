"""Prefill: the keys and values of pending tokens go into the cache.

Text, ViT and clean VAE tokens alike, several pictures and all contexts in one call: the mask does
the rest. Rows are padded on the right; padding is not written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mogao_jax.models.modules import Modules
from mogao_jax.models.mogao import MogaoInputs
from mogao_jax.ops.attention.parts import Parts
from mogao_jax.sampling import buckets, kv_cache
from mogao_jax.sampling.history import CachedSequence, TokenSpan
from mogao_jax.sequence.masking import TEXT, VAE_CLEAN, VAE_NOISED, VIT, TokenMeta

# Tokens of a row that are computed at once. A row with more is computed in turns, unless a single
# picture has more.
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


def assemble(
    contexts: Sequence[CachedSequence],
    pieces: Sequence[Sequence[TokenSpan]],
    num_rows: int,
    feature_shape: tuple[int, int],
    channels: int,
) -> NewTokens:
    """Lays pieces out in rows, and notes in the contexts that they are in the cache.

    Args:
      contexts, pieces: one line per row, at most `num_rows`.
      feature_shape: (features per merged ViT token, channels of a feature).
      channels: of a VAE token (64).
    """
    und = [[p for p in row if p.latents is None] for row in pieces]
    clean = [[p for p in row if p.latents is not None] for row in pieces]
    num_und, num_clean = (_padded(rows) for rows in (und, clean))
    per_token, feature_channels = feature_shape
    vit_tokens = [sum(len(p) for p in row if p.features is not None) for row in und]
    num_features = num_und if any(vit_tokens) else 0

    def column(length: int, fill: int = 0) -> np.ndarray:
        return np.full((num_rows, length), fill, np.int32)

    def meta(length: int) -> TokenMeta:
        return TokenMeta(column(length), column(length), column(length))

    new = NewTokens(
        tokens=column(num_und),
        vit_index=column(num_und, -1),
        features=np.zeros((num_rows, num_features * per_token, feature_channels), np.float32),
        latents=np.zeros((num_rows, num_clean, channels), np.float32),
        meta=Parts(und=meta(num_und), clean=meta(num_clean)),
        positions=Parts(
            und=np.zeros((num_rows, num_und, 3), np.float32),
            clean=np.zeros((num_rows, num_clean, 3), np.float32),
        ),
        destination=Parts(und=column(num_und, OUT_OF_RANGE), clean=column(num_clean, OUT_OF_RANGE)),
    )
    for row, context in enumerate(contexts):
        start = num_vit = 0
        for piece in und[row]:
            here = slice(start, start := start + len(piece))
            new.tokens[row, here] = piece.token
            kind = TEXT
            if piece.features is not None:
                kind = VIT
                new.vit_index[row, here] = num_vit + np.arange(len(piece))
                first = num_vit * per_token
                new.features[row, first : first + len(piece.features)] = piece.features
                num_vit += len(piece)
            _place(new, "und", row, here, piece, kind, context.num_und)
            context.num_und += len(piece)
        start = 0
        for piece in clean[row]:
            here = slice(start, start := start + len(piece))
            new.latents[row, here] = piece.latents
            _place(new, "clean", row, here, piece, VAE_CLEAN, context.num_clean)
            context.num_clean += len(piece)
    return new


def _padded(rows: Sequence[Sequence[TokenSpan]]) -> int:
    longest = max(sum(len(p) for p in row) for row in rows)
    return buckets.power(longest, MIN_TOKENS) if longest else 0


def _place(
    new: NewTokens, part: str, row: int, here: slice, piece: TokenSpan, kind: int, written: int
) -> None:
    segment, order, kinds = getattr(new.meta, part)
    segment[row, here], order[row, here], kinds[row, here] = 1, piece.placed.order, kind
    getattr(new.positions, part)[row, here] = piece.placed.positions
    getattr(new.destination, part)[row, here] = written + np.arange(len(piece))


def no_noised(num_rows: int) -> tuple[TokenMeta, jax.Array]:
    """Metadata and positions of a noised part of length zero."""
    empty = jnp.zeros((num_rows, 0), jnp.int32)
    return TokenMeta(empty, empty, empty + VAE_NOISED), jnp.zeros((num_rows, 0, 3), jnp.float32)


def extend(modules: Modules, params: Any, cache: Parts, rows: jax.Array, new: NewTokens) -> Parts:
    """The cache with new tokens in its rows int32[r]. A program: to be jitted, cache donated."""
    num_rows, num_und = new.tokens.shape
    num_clean = new.latents.shape[1]
    reads_clean = num_clean > 0 or modules.model.text_reads_vae
    work = Parts(
        und=kv_cache.take(cache.und, rows),
        clean=kv_cache.take(cache.clean, rows) if reads_clean else None,
    )
    noised_meta, noised_positions = no_noised(num_rows)
    inputs = MogaoInputs(
        tokens=new.tokens,
        vit_index=new.vit_index,
        vit_features=new.features,
        clean_latents=new.latents,
        noised_latents=jnp.zeros((num_rows, 0, new.latents.shape[2]), jnp.float32),
        timesteps=jnp.zeros((num_rows, 0), jnp.float32),
        noised_index=noised_meta.segment,
        meta=new.meta._replace(noised=noised_meta),
        positions=new.positions._replace(noised=noised_positions),
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
