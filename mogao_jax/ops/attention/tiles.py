"""Which tiles (block of queries x block of keys) attention computes, and in which order.

A tile is *active* unless a cheap test shows that no pair in it can attend. The test reads a few
numbers per block, never the pairs, and errs on the safe side whatever the order of the tokens.
Where each part is sorted by (segment, order), as packing leaves it, it is close to exact. A tile
is *full* if every pair in it attends: it needs no mask.

Masks differ from row to row and are known on the device only, so the lists are built there,
inside the jitted step. Arrays have the length of the longest possible list; a count says how much
of it is used. Three forms serve three ways to run:

- `active_tiles`, a plain list, for the loop in xla.py;
- `list_tiles`, one list for the whole grid, which the TPU kernels prefetch as scalars;
- `tile_ranges`, one stretch per block, over which a program of the GPU kernels loops.

Axes: B rows of the batch, P tiles that are not statically empty.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from mogao_jax.errors import ConfigError
from mogao_jax.ops.attention.parts import (
    NOISED,
    Blocks,
    Parts,
    Static,
    blocked_meta,
    cut,
    part_lengths,
    readable_parts,
)
from mogao_jax.sequence.masking import PADDING_SEGMENT, TokenMeta, can_attend

# Finite stand-ins for minus infinity, of a masked score and of a maximum over no scores:
# exp(MASKED - FLOOR) is 0, and nothing is ever NaN.
MASKED, FLOOR = -1e30, -1e29
ATTENTION_OUT = "attention_out"  # name of what `keep_for_backward` marks

_BIG = np.iinfo(np.int32).max


def keep_for_backward(out: jax.Array, lse: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Names an output and its log-sum-exp, so that a remat policy can keep them.

    The backward pass then recomputes scores tile by tile, without running the forward pass again.
    """
    return checkpoint_name(out, ATTENTION_OUT), checkpoint_name(lse, ATTENTION_OUT)


def delta_of(d_out: jax.Array, out: jax.Array) -> jax.Array:
    """Of each query, float32[...]: sum over keys of weight * d_weight, for outputs [..., H].

    It equals d_out . out, so the backward pass needs no pass of its own for it.
    """
    return jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)


def dot(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    """A matmul in a kernel, accumulated in float32; float32 inputs are not rounded first."""
    exact = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    numbers = (((contract[0],), (contract[1],)), ((), ()))
    return lax.dot_general(a, b, numbers, precision=exact, preferred_element_type=jnp.float32)


# ------------------------------------------------------------------------------- which are active


def readable_tiles(queries: Blocks, keys: Blocks, text_reads_vae: bool) -> np.ndarray:
    """Pairs (query block, key block) that are not statically empty: int32[P, 2], by query."""
    reads = readable_parts(text_reads_vae)
    table = np.array([[k in reads[q] for k in range(3)] for q in range(3)])
    allowed = table[queries.part_of_block][:, keys.part_of_block]
    return np.argwhere(allowed).astype(np.int32)


def _library(meta: TokenMeta) -> Any:
    """numpy for metadata on the host (reports, tests), jax.numpy otherwise."""
    return np if isinstance(meta.segment, np.ndarray) else jnp


class _Summary(NamedTuple):
    """What is known of a block without its tokens, int32[B, blocks] each.

    Its first and last segment, and the lowest and highest order in each of the two. Padding does
    not count; a block of padding alone has `first` > `last`.
    """

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
    active = low <= high  # some segment may be in both (never with a block of padding)
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


# ------------------------------------------------------------------ the order kernels visit them in

# A kernel accumulates one *owner's* result (an output block, or the gradients of a key block) in
# fast memory over consecutive tiles, and writes it to HBM after the last of them. So tiles are
# sorted by owner, and the first and last tile of each are flagged. An owner without active tiles
# must be written too (zeros): it gets one tile flagged EMPTY.

# Bits of `TileList.flags`.
FIRST, LAST = 1, 2  # of its owner's tiles
FULL = 4  # every pair attends: the mask is skipped
EMPTY = 8  # nothing is computed

# A TPU core has 1 MiB of scalar memory (SMEM) for prefetched operands; a tile takes 4 bytes.
MOST_TILES = 256_000
MOST_BLOCKS = 1 << 14  # of either side, the blocks of all rows taken together


class TileList(NamedTuple):
    """Tiles sorted by their owner: int32[most] each, of which `num_tiles` (int32[]) are in use.

    `query` and `key` are blocks of the whole batch (row * blocks per row + block).
    """

    query: jax.Array
    key: jax.Array
    flags: jax.Array
    num_tiles: jax.Array


def list_tiles(
    static: Static, q_meta: TokenMeta, k_meta: TokenMeta, *, by_key: bool = False
) -> TileList:
    """The active tiles of all rows, owned by their query blocks or by their key blocks.

    Args:
      q_meta, k_meta: blocked metadata, int32[B, blocks, size].
    """
    tiles = readable_tiles(static.queries, static.keys, static.text_reads_vae)
    num_owners = (static.keys if by_key else static.queries).total
    owner_column = 1 if by_key else 0
    # Owners whose tiles are all statically empty also get a tile to stand in for them.
    lone = np.setdiff1d(np.arange(num_owners), tiles[:, owner_column])
    added = np.zeros((len(lone), 2), np.int32)
    added[:, owner_column] = lone
    can_be = np.concatenate([np.ones(len(tiles), bool), np.zeros(len(lone), bool)])
    tiles = np.concatenate([tiles, added])
    order = np.lexsort((tiles[:, 1 - owner_column], tiles[:, owner_column]))
    tiles, can_be = tiles[order], can_be[order]

    active = active_tiles(q_meta, k_meta, tiles, static.queries, static.keys) & can_be
    full = full_tiles(q_meta, k_meta, tiles, static.queries, static.keys)
    batch, most = active.shape
    owner = tiles[:, owner_column]
    begins = np.concatenate([[True], owner[1:] != owner[:-1]])
    per_owner = _count(active, owner, num_owners)
    stands_in = begins & (per_owner == 0)[:, owner]  # an owner's first tile, if none is active

    row, tile = _where(active | stands_in)
    count = jnp.sum(active | stands_in, dtype=jnp.int32)
    query = (row * static.queries.total + jnp.asarray(tiles[:, 0])[tile]).astype(jnp.int32)
    key = (row * static.keys.total + jnp.asarray(tiles[:, 1])[tile]).astype(jnp.int32)
    own = key if by_key else query
    step = jnp.arange(batch * most)
    changes = own[1:] != own[:-1]
    first = jnp.concatenate([jnp.ones(1, bool), changes])
    last = jnp.concatenate([changes, jnp.ones(1, bool)]) | (step == count - 1)
    flags = (
        first * FIRST + last * LAST + full[row, tile] * FULL + stands_in[row, tile] * EMPTY
    ).astype(jnp.int32)
    return TileList(query, key, flags, count)


def pack(tiles: TileList) -> jax.Array:
    """Each tile as one int32, to fit SMEM: 14 bits of query block, 14 of key block, 4 flags."""
    return tiles.query << 18 | tiles.key << 4 | tiles.flags


def unpack(packed: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(query block, key block, flags) of packed tiles."""
    query = lax.shift_right_logical(packed, 18)
    return query, lax.shift_right_logical(packed, 4) & (MOST_BLOCKS - 1), packed & 15


def check_size(static: Static, rows: int) -> None:
    """Refuses a call whose list of tiles may not fit a TPU core's scalar memory.

    Args:
      rows: of the batch, on one device.
    Raises:
      ConfigError: with what makes the list shorter.
    """
    most = rows * len(readable_tiles(static.queries, static.keys, static.text_reads_vae))
    blocks = rows * max(static.queries.total, static.keys.total)
    if most <= MOST_TILES and blocks <= MOST_BLOCKS:
        return
    raise ConfigError(
        f"attention of {rows} x {sum(static.queries.lengths)} queries to "
        f"{sum(static.keys.lengths)} keys on a device, in blocks of {static.queries.size} x "
        f"{static.keys.size}, may take {most} tiles of {blocks} blocks; a TPU's memory for scalars "
        f"has room for {MOST_TILES} tiles of {MOST_BLOCKS} blocks. Split the rows over more "
        "devices (a larger mesh.context, or fewer rows on each), or set larger "
        "model.attention.block_q and block_kv."
    )


class TileRanges(NamedTuple):
    """Tiles of each owner, for a program that loops over the tiles of its one owner.

    The blocks of the other side that owner n meets are `other[start[n] : start[n + 1]]`.
    """

    start: jax.Array  # int32[owners + 1]
    other: jax.Array  # int32[most]


def tile_ranges(
    static: Static, q_meta: TokenMeta, k_meta: TokenMeta, *, by_key: bool = False
) -> tuple[TileRanges, TileRanges]:
    """The active tiles of all rows by owner: full ones (no mask needed), and the others.

    Arguments as of `list_tiles`. At least one tile must be readable.
    """
    tiles = readable_tiles(static.queries, static.keys, static.text_reads_vae)
    owners, others = (static.keys, static.queries) if by_key else (static.queries, static.keys)
    column = 1 if by_key else 0
    tiles = tiles[np.lexsort((tiles[:, 1 - column], tiles[:, column]))]
    active = active_tiles(q_meta, k_meta, tiles, static.queries, static.keys)
    full = full_tiles(q_meta, k_meta, tiles, static.queries, static.keys) & active

    def ranges(chosen: jax.Array) -> TileRanges:
        row, tile = _where(chosen)
        other = row * others.total + jnp.asarray(tiles[:, 1 - column])[tile]
        count = _count(chosen, tiles[:, column], owners.total)
        start = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(count.reshape(-1))])
        return TileRanges(start.astype(jnp.int32), other.astype(jnp.int32))

    return ranges(full), ranges(active & ~full)


# These two use no scatters: libtpu 0.0.42 runs scatters over some 200,000 tiles on a v5p's sparse
# cores, and aborts there.
def _where(chosen: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rows and columns of the true elements of bool[B, P], then zeros: int32[B * P] each."""
    batch, most = chosen.shape
    end = batch * most
    place = jnp.sort(jnp.where(chosen.reshape(-1), jnp.arange(end, dtype=jnp.int32), end))
    place = jnp.where(place == end, 0, place)
    return place // most, place % most


def _count(chosen: jax.Array, owner: np.ndarray, num_owners: int) -> jax.Array:
    """Chosen tiles per owner: bool[B, P], each tile's owner (ascending) -> int32[B, owners]."""
    ends = np.searchsorted(owner, np.arange(num_owners + 1))
    before = jnp.pad(jnp.cumsum(chosen, axis=1, dtype=jnp.int32), ((0, 0), (1, 0)))
    return before[:, ends[1:]] - before[:, ends[:-1]]


# ------------------------------------------------------------------------------------ for reports


class TileStatistics(NamedTuple):
    """What attention over a batch costs: tiles, and (query, key) pairs, of all rows together.

    Executed pairs are those of whole tiles, with the padding of the last blocks.
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
    """Counts the tiles that blockwise attention runs, and the pairs in them that attend.

    Runs on the host, a tile at a time, on concrete metadata: TokenMeta of int32[B, L] per part.
    """
    queries = cut(part_lengths(query_meta), block_q)
    keys = cut(part_lengths(key_meta), block_kv)
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
