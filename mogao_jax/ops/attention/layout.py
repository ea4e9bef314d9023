"""How blockwise attention lays out its arrays, whatever runs over the tiles.

Blocks on end, one kv head after the other, and the G query heads that share a kv head as rows
under each other, so that every contraction of a tile is a batch of plain matmuls:
q [B * blocks, K, G * block_q, H], k and v [B * blocks, K, block_kv, H].
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mogao_jax.ops.attention import tiles as tiling
from mogao_jax.ops.attention.parts import Parts
from mogao_jax.sequence.masking import TokenMeta

# Finite stand-ins for minus infinity: exp(MASKED - FLOOR) is 0, and nothing is ever NaN.
MASKED, FLOOR = -1e30, -1e29


class Static(NamedTuple):
    """What is known while tracing."""

    queries: tiling.Blocks
    keys: tiling.Blocks
    kv_heads: int
    groups: int
    text_reads_vae: bool


class Blocked(NamedTuple):
    """Arrays of `attention` in blocks; metadata int32[B, blocks, size]."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    q_meta: TokenMeta
    k_meta: TokenMeta


def static_of(
    queries: Parts,
    keys: Parts,
    block_q: int,
    block_kv: int,
    text_reads_vae: bool,
    *,
    exact: bool = False,
) -> Static:
    """Cuts the parts of both sides; lengths need not be multiples of the blocks.

    `exact`: blocks are of these sizes also where all parts are shorter.
    """
    kv_heads = next(p.shape[2] for p in keys if p is not None)
    heads = next(p.shape[2] for p in queries if p is not None)
    return Static(
        tiling.cut(_lengths(queries), block_q, exact=exact),
        tiling.cut(_lengths(keys), block_kv, exact=exact),
        kv_heads,
        heads // kv_heads,
        text_reads_vae,
    )


def blocked(
    static: Static,
    queries: Parts,
    keys: Parts,
    values: Parts,
    query_meta: Parts,
    key_meta: Parts,
) -> Blocked:
    """Parts [B, L, heads, H] and their metadata in blocks."""
    return Blocked(
        _to_blocks(queries, static.queries, static.kv_heads),
        _to_blocks(keys, static.keys, static.kv_heads),
        _to_blocks(values, static.keys, static.kv_heads),
        tiling.blocked_meta(jax.tree.map(jnp.asarray, query_meta), static.queries),
        tiling.blocked_meta(jax.tree.map(jnp.asarray, key_meta), static.keys),
    )


def from_blocks(x: jax.Array, blocks: tiling.Blocks, like: Parts) -> Parts:
    """Outputs in blocks as parts [B, L, heads, H]; absent and empty parts are as in `like`."""
    rows, kv_heads, _, head_dim = x.shape
    batch = rows // blocks.total
    x = x.reshape(rows, kv_heads, -1, blocks.size, head_dim).transpose(0, 3, 1, 2, 4)
    x = x.reshape(batch, blocks.total * blocks.size, -1, head_dim)
    pieces, start = [], 0
    for part, length, count in zip(like, blocks.lengths, blocks.counts, strict=True):
        pieces.append(None if part is None else x[:, start : start + length])
        start += count * blocks.size
    return Parts(*pieces)


def _lengths(parts: Parts) -> tuple[int, int, int]:
    und, clean, noised = (0 if part is None else part.shape[1] for part in parts)
    return und, clean, noised


def _to_blocks(parts: Parts, blocks: tiling.Blocks, kv_heads: int) -> jax.Array:
    pieces = []
    for part, length, count in zip(parts, blocks.lengths, blocks.counts, strict=True):
        if length:
            padding = ((0, 0), (0, count * blocks.size - length), (0, 0), (0, 0))
            pieces.append(jnp.pad(part, padding))
    x = jnp.concatenate(pieces, axis=1)
    head_dim = x.shape[-1]
    x = x.reshape(x.shape[0] * blocks.total, blocks.size, kv_heads, -1, head_dim)
    return x.transpose(0, 2, 3, 1, 4).reshape(x.shape[0], kv_heads, -1, head_dim)
