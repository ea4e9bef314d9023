"""Which tiles (block of queries x block of keys) hold any pair that attends.

Parts are cut into blocks (the last of each part padded with segment 0), and the blocks of all
parts are numbered on end. A tile is *active* unless a cheap test shows that no pair in it can
attend. The test reads a few numbers per block, never the pairs, and errs on the safe side
whatever the order of the tokens; where each part is sorted by (segment, order), as packing
leaves it, it is close to exact.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mogao_jax.ops.attention.parts import NOISED, Parts, readable_parts
from mogao_jax.sequence.masking import PADDING_SEGMENT, TokenMeta, can_attend

_BIG = np.iinfo(np.int32).max


def _library(meta: TokenMeta) -> Any:
    """numpy for metadata on the host (reports, tests), jax.numpy otherwise."""
    return np if isinstance(meta.segment, np.ndarray) else jnp


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


def cut(lengths: tuple[int, int, int], block: int, *, exact: bool = False) -> Blocks:
    """Cuts parts into blocks of `block` tokens, or smaller ones where all parts are shorter
    (unless it is to be `exact`)."""
    longest = max(lengths, default=0)
    size = (
        block
        if exact
        else max(1, min(block, math.ceil(longest / 8) * 8 if longest > 1 else longest))
    )
    und, clean, noised = (math.ceil(length / size) for length in lengths)
    return Blocks(size, lengths, (und, clean, noised))


def readable_tiles(queries: Blocks, keys: Blocks, text_reads_vae: bool) -> np.ndarray:
    """Pairs (query block, key block) that are not statically empty: int32[P, 2], by query."""
    reads = readable_parts(text_reads_vae)
    table = np.array([[k in reads[q] for k in range(3)] for q in range(3)])
    allowed = table[queries.part_of_block][:, keys.part_of_block]
    return np.argwhere(allowed).astype(np.int32)


def blocked_meta(meta: Parts, blocks: Blocks) -> TokenMeta:
    """Metadata of all parts, padded and cut: int32[B, blocks, size] each."""
    xp = _library(next(part for part in meta if part is not None))
    columns = []
    for field in range(3):
        pieces = []
        for part, length, count in zip(meta, blocks.lengths, blocks.counts, strict=True):
            if length:
                padding = ((0, 0), (0, count * blocks.size - length))
                fill = PADDING_SEGMENT if field == 0 else 0
                pieces.append(xp.pad(part[field], padding, constant_values=fill))
        joined = xp.concatenate(pieces, axis=1)
        columns.append(joined.reshape(joined.shape[0], blocks.total, blocks.size))
    return TokenMeta(*columns)


class _Summary(NamedTuple):
    """Ranges of a block, int32[B, blocks]: of its segments, of the orders in its first and in
    its last segment, and of all its orders. Padding does not count; an empty block has
    `first` > `last`."""

    first: Any
    last: Any
    orders_of_first: tuple[Any, Any]
    orders_of_last: tuple[Any, Any]


def _summary(meta: TokenMeta) -> _Summary:
    xp = _library(meta)
    real = meta.segment != PADDING_SEGMENT
    first = xp.min(xp.where(real, meta.segment, _BIG), axis=-1)
    last = xp.max(xp.where(real, meta.segment, -1), axis=-1)

    def orders(where):
        low = xp.min(xp.where(where, meta.order, _BIG), axis=-1)
        high = xp.max(xp.where(where, meta.order, -_BIG), axis=-1)
        return low, high

    return _Summary(
        first,
        last,
        orders(real & (meta.segment == first[..., None])),
        orders(real & (meta.segment == last[..., None])),
    )


def active_tiles(
    query: TokenMeta, key: TokenMeta, tiles: np.ndarray, queries: Blocks, keys: Blocks
):
    """Whether each readable tile may hold a pair that attends: bool[B, P].

    Args:
      query, key: blocked metadata (`blocked_meta`).
      tiles: the readable tiles (`readable_tiles`).
    """
    xp = _library(query)
    q, k = _summary(query), _summary(key)
    i, j = tiles[:, 0], tiles[:, 1]
    noised_query = queries.part_of_block[i] == NOISED
    noised_key = keys.part_of_block[j] == NOISED

    def orders_allow(q_orders, k_orders):
        (q_low, q_high), (k_low, k_high) = q_orders, k_orders
        q_low, q_high = q_low[:, i], q_high[:, i]
        k_low, k_high = k_low[:, j], k_high[:, j]
        own_noise = (k_low <= q_high) & (q_low <= k_high)
        history = xp.where(noised_query, k_low < q_high, k_low <= q_high)
        return xp.where(noised_key, own_noise, history)

    q_first, q_last, k_first, k_last = q.first[:, i], q.last[:, i], k.first[:, j], k.last[:, j]
    low, high = xp.maximum(q_first, k_first), xp.minimum(q_last, k_last)
    active = low <= high  # some segment may be in both (never with an empty block)
    # Only one segment can be in both: if it is at an end of both blocks, its orders are known.
    single = low == high
    for q_end, q_orders in ((q_first, q.orders_of_first), (q_last, q.orders_of_last)):
        for k_end, k_orders in ((k_first, k.orders_of_first), (k_last, k.orders_of_last)):
            known = single & (q_end == low) & (k_end == low)
            active = active & (~known | orders_allow(q_orders, k_orders))
    return active


def full_tiles(query: TokenMeta, key: TokenMeta, tiles: np.ndarray, queries: Blocks, keys: Blocks):
    """Whether every pair of a tile is known to attend: bool[B, P]. Errs on the safe side.

    Both blocks must hold tokens of one and the same segment, without padding; then the orders
    decide (docs/method.md section 4). Other arguments as of `active_tiles`.
    """
    xp = _library(query)
    q, k = _summary(query), _summary(key)
    i, j = tiles[:, 0], tiles[:, 1]
    noised_query = queries.part_of_block[i] == NOISED
    noised_key = keys.part_of_block[j] == NOISED

    def whole(meta: TokenMeta, summary: _Summary):
        unpadded = xp.min(meta.segment, axis=-1) != PADDING_SEGMENT
        return unpadded & (summary.first == summary.last)

    one_segment = whole(query, q)[:, i] & whole(key, k)[:, j] & (q.first[:, i] == k.first[:, j])
    (q_low, q_high), (k_low, k_high) = q.orders_of_first, k.orders_of_first
    q_low, q_high, k_low, k_high = q_low[:, i], q_high[:, i], k_low[:, j], k_high[:, j]
    one_image = (q_low == q_high) & (k_low == k_high) & (q_low == k_low)
    history = xp.where(noised_query, k_high < q_low, k_high <= q_low)
    return one_segment & xp.where(noised_key, noised_query & one_image, history)


class TileStatistics(NamedTuple):
    """What attention over some metadata costs, summed over the rows of the batch.

    Tiles are counted in whole (padding of the last blocks included); pairs are (query, key).
    """

    tiles_executed: int
    tiles_needed: int  # hold at least one pair that attends
    pairs_executed: int
    pairs_needed: int  # attend

    @property
    def overhead(self) -> float:
        """Pairs executed over pairs needed."""
        return self.pairs_executed / max(self.pairs_needed, 1)


def tile_statistics(
    query_meta: Parts,
    key_meta: Parts,
    *,
    block_q: int,
    block_kv: int,
    text_reads_vae: bool = False,
) -> TileStatistics:
    """Counts the tiles that blockwise attention runs and the pairs that it is run for.

    For reports: works on the host, a tile at a time, on concrete metadata (TokenMeta of
    int32[B, L] per part, None for an absent part).
    """
    queries = cut(_lengths(query_meta), block_q)
    keys = cut(_lengths(key_meta), block_kv)
    readable = readable_tiles(queries, keys, text_reads_vae)
    if not len(readable):
        return TileStatistics(0, 0, 0, 0)
    q_meta = blocked_meta(jax.tree.map(np.asarray, query_meta), queries)
    k_meta = blocked_meta(jax.tree.map(np.asarray, key_meta), keys)
    active = active_tiles(q_meta, k_meta, readable, queries, keys)
    pairs = tiles_needed = 0
    for row, tile in zip(*np.nonzero(active), strict=True):
        i, j = readable[tile]
        q, k = q_meta.take((row, i, slice(None), None)), k_meta.take((row, j, None, slice(None)))
        inside = int(np.sum(can_attend(q, k, text_reads_vae=text_reads_vae)))
        pairs += inside
        tiles_needed += inside > 0
    executed = int(np.sum(active))
    return TileStatistics(executed, tiles_needed, executed * queries.size * keys.size, pairs)


def _lengths(meta: Parts) -> tuple[int, int, int]:
    und, clean, noised = (0 if part is None else part.segment.shape[1] for part in meta)
    return und, clean, noised
