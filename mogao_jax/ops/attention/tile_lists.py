"""The order in which a kernel visits active tiles, as arrays that it can prefetch.

A kernel keeps what it accumulates (an output block, or the gradients of a key block) in fast
memory while it visits the tiles of one *owner*, and writes it when it goes on to the next. So
every owner must come up, also one whose tokens read nothing: it gets one tile marked EMPTY.
Built on the device, inside the jitted step; only the length of the list depends on the data.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mogao_jax.errors import ConfigError
from mogao_jax.ops.attention import tiles as tiling
from mogao_jax.ops.attention.layout import Static
from mogao_jax.sequence.masking import TokenMeta

# Bits of `TileList.flags`.
FIRST, LAST = 1, 2  # of its owner's tiles
FULL = 4  # every pair attends: no mask is needed
EMPTY = 8  # nothing is computed

# What a kernel's list may hold: 1,000 KiB of the 1 MiB of scalars that a TPU's core can prefetch.
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
    tiles = tiling.readable_tiles(static.queries, static.keys, static.text_reads_vae)
    num_owners = (static.keys if by_key else static.queries).total
    owner_column = 1 if by_key else 0
    # Owners that no tile can be read by, for any metadata: one tile each, never active.
    lone = np.setdiff1d(np.arange(num_owners), tiles[:, owner_column])
    added = np.zeros((len(lone), 2), np.int32)
    added[:, owner_column] = lone
    can_be = np.concatenate([np.ones(len(tiles), bool), np.zeros(len(lone), bool)])
    tiles = np.concatenate([tiles, added])
    order = np.lexsort((tiles[:, 1 - owner_column], tiles[:, owner_column]))
    tiles, can_be = tiles[order], can_be[order]

    active = tiling.active_tiles(q_meta, k_meta, tiles, static.queries, static.keys) & can_be
    full = tiling.full_tiles(q_meta, k_meta, tiles, static.queries, static.keys)
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
    """Each tile as one int32: 14 bits of its query block, 14 of its key block, 4 of flags."""
    return tiles.query << 18 | tiles.key << 4 | tiles.flags


def unpack(packed: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(query block, key block, flags) of packed tiles."""
    query = lax.shift_right_logical(packed, 18)
    return query, lax.shift_right_logical(packed, 4) & (MOST_BLOCKS - 1), packed & 15


def check_size(static: Static, rows: int) -> None:
    """Refuses what the kernels' list of tiles has no room for.

    Raises:
      ConfigError: with what makes the list shorter.
    """
    most = rows * len(tiling.readable_tiles(static.queries, static.keys, static.text_reads_vae))
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
    """Tiles of each owner, for a kernel that runs over one owner's tiles in a loop.

    Those of owner n are `other[start[n] : start[n + 1]]`: the blocks of the other side.
    int32[owners + 1] and int32[most].
    """

    start: jax.Array
    other: jax.Array


def tile_ranges(
    static: Static, q_meta: TokenMeta, k_meta: TokenMeta, *, by_key: bool = False
) -> tuple[TileRanges, TileRanges]:
    """The active tiles of all rows by their owners: those that need no mask, and the others.

    Arguments as of `list_tiles`. There must be a tile that is readable at all.
    """
    tiles = tiling.readable_tiles(static.queries, static.keys, static.text_reads_vae)
    owners, others = (static.keys, static.queries) if by_key else (static.queries, static.keys)
    column = 1 if by_key else 0
    tiles = tiles[np.lexsort((tiles[:, 1 - column], tiles[:, column]))]
    active = tiling.active_tiles(q_meta, k_meta, tiles, static.queries, static.keys)
    full = tiling.full_tiles(q_meta, k_meta, tiles, static.queries, static.keys) & active

    def ranges(chosen: jax.Array) -> TileRanges:
        row, tile = _where(chosen)
        other = row * others.total + jnp.asarray(tiles[:, 1 - column])[tile]
        count = _count(chosen, tiles[:, column], owners.total)
        start = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(count.reshape(-1))])
        return TileRanges(start.astype(jnp.int32), other.astype(jnp.int32))

    return ranges(full), ranges(active & ~full)


# Without scatters: libtpu 0.0.42 gives those over some 200,000 tiles to a v5p's sparse cores, and
# aborts there.
def _where(chosen: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rows and columns of what is true in bool[B, N], in order, then zeros: int32[B * N] each."""
    batch, most = chosen.shape
    end = batch * most
    place = jnp.sort(jnp.where(chosen.reshape(-1), jnp.arange(end, dtype=jnp.int32), end))
    place = jnp.where(place == end, 0, place)
    return place // most, place % most


def _count(chosen: jax.Array, owner: np.ndarray, num_owners: int) -> jax.Array:
    """How many tiles of each owner are chosen: bool[B, N] -> int32[B, owners].

    Args:
      owner: of each tile, ascending.
    """
    ends = np.searchsorted(owner, np.arange(num_owners + 1))
    before = jnp.pad(jnp.cumsum(chosen, axis=1, dtype=jnp.int32), ((0, 0), (1, 0)))
    return before[:, ends[1:]] - before[:, ends[:-1]]
