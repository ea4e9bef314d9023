"""Which tiles (block of queries x block of keys) hold any pair that attends.

Parts are cut into blocks (the last of each part padded with segment 0), and the blocks of all
parts are numbered on end. A tile is *active* unless a cheap test shows that no pair in it can
attend. The test reads a few numbers per block, never the pairs, and errs on the safe side
whatever the order of the tokens; where each part is sorted by (segment, time), as packing
leaves it, it is close to exact.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from mogao_jax.ops.attention.parts import NOISED, Parts, readable_parts
from mogao_jax.sequence.masking import PADDING_SEGMENT, TokenMeta

_BIG = np.iinfo(np.int32).max


class Blocks(NamedTuple):
    """How the parts of one side (queries or keys) are cut. All static.

    `lengths` are tokens per part (0 for an absent one), `counts` blocks per part.
    """

    size: int
    lengths: tuple[int, int, int]
    counts: tuple[int, int, int]

    @property
    def total(self) -> int:
        return sum(self.counts)

    @property
    def part_of_block(self) -> np.ndarray:
        return np.repeat(np.arange(3), self.counts)


def cut(lengths: tuple[int, ...], block: int) -> Blocks:
    """Cuts parts into blocks of `block` tokens, or smaller ones where all parts are shorter."""
    longest = max(lengths, default=0)
    size = max(1, min(block, math.ceil(longest / 8) * 8 if longest > 1 else longest))
    counts = tuple(math.ceil(length / size) for length in lengths)
    return Blocks(size, tuple(lengths), counts)


def readable_tiles(queries: Blocks, keys: Blocks, text_reads_vae: bool) -> np.ndarray:
    """Pairs (query block, key block) that are not statically empty: int32[P, 2], by query."""
    reads = readable_parts(text_reads_vae)
    table = np.array([[k in reads[q] for k in range(3)] for q in range(3)])
    allowed = table[queries.part_of_block][:, keys.part_of_block]
    return np.argwhere(allowed).astype(np.int32)


def blocked_meta(meta: Parts, blocks: Blocks) -> TokenMeta:
    """Metadata of all parts, padded and cut: int32[B, blocks, size] each."""
    columns = []
    for field in range(3):
        pieces = []
        for part, length, count in zip(meta, blocks.lengths, blocks.counts, strict=True):
            if length:
                padding = ((0, 0), (0, count * blocks.size - length))
                fill = PADDING_SEGMENT if field == 0 else 0
                pieces.append(jnp.pad(part[field], padding, constant_values=fill))
        joined = jnp.concatenate(pieces, axis=1)
        columns.append(joined.reshape(joined.shape[0], blocks.total, blocks.size))
    return TokenMeta(*columns)


class _Summary(NamedTuple):
    """Ranges of a block, int32[B, blocks]: of its segments, of the times in its first and in
    its last segment, and of all its times. Padding does not count; an empty block has
    `first` > `last`."""

    first: Any
    last: Any
    times_of_first: tuple[Any, Any]
    times_of_last: tuple[Any, Any]


def _summary(meta: TokenMeta) -> _Summary:
    real = meta.segment != PADDING_SEGMENT
    first = jnp.min(jnp.where(real, meta.segment, _BIG), axis=-1)
    last = jnp.max(jnp.where(real, meta.segment, -1), axis=-1)

    def times(where):
        low = jnp.min(jnp.where(where, meta.time, _BIG), axis=-1)
        high = jnp.max(jnp.where(where, meta.time, -_BIG), axis=-1)
        return low, high

    return _Summary(
        first,
        last,
        times(real & (meta.segment == first[..., None])),
        times(real & (meta.segment == last[..., None])),
    )


def active_tiles(
    query: TokenMeta, key: TokenMeta, tiles: np.ndarray, queries: Blocks, keys: Blocks
):
    """Whether each readable tile may hold a pair that attends: bool[B, P].

    Args:
      query, key: blocked metadata (`blocked_meta`).
      tiles: the readable tiles (`readable_tiles`).
    """
    q, k = _summary(query), _summary(key)
    i, j = tiles[:, 0], tiles[:, 1]
    noised_query = queries.part_of_block[i] == NOISED
    noised_key = keys.part_of_block[j] == NOISED

    def times_allow(q_times, k_times):
        (q_low, q_high), (k_low, k_high) = q_times, k_times
        q_low, q_high = q_low[:, i], q_high[:, i]
        k_low, k_high = k_low[:, j], k_high[:, j]
        own_noise = (k_low <= q_high) & (q_low <= k_high)
        history = jnp.where(noised_query, k_low < q_high, k_low <= q_high)
        return jnp.where(noised_key, own_noise, history)

    q_first, q_last, k_first, k_last = q.first[:, i], q.last[:, i], k.first[:, j], k.last[:, j]
    low, high = jnp.maximum(q_first, k_first), jnp.minimum(q_last, k_last)
    active = low <= high  # some segment may be in both (never with an empty block)
    # Only one segment can be in both: if it is at an end of both blocks, its times are known.
    single = low == high
    for q_end, q_times in ((q_first, q.times_of_first), (q_last, q.times_of_last)):
        for k_end, k_times in ((k_first, k.times_of_first), (k_last, k.times_of_last)):
            known = single & (q_end == low) & (k_end == low)
            active = active & (~known | times_allow(q_times, k_times))
    return active
