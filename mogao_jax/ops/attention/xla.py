"""Blockwise attention in plain XLA: forward and backward over active tiles only.

A loop runs over a list of the active tiles (tiles.py) of all rows of the batch; its length is
known on the device only, so that what is masked away costs nothing. The softmax is accumulated
online (FlashAttention), the backward pass recomputes the scores of a tile from the saved
logarithms of the softmax's sums. No array ever has a query axis and a key axis both longer than
a block.

Layout inside: blocks on end, one kv head after the other, and the G query heads that share a kv
head as rows under each other, so that every contraction is a batch of K plain matmuls:
q [blocks, K, G * block_q, H], k and v [blocks, K, block_kv, H]. XLA's CPU backend has no good
kernel for anything else.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from mogao_jax.ops.attention import tiles as tiling
from mogao_jax.ops.attention.parts import Parts
from mogao_jax.sequence.masking import TokenMeta, can_attend

# Finite stand-ins for minus infinity: exp(_MASKED - _FLOOR) is 0, and nothing is ever NaN.
_MASKED, _FLOOR = -1e30, -1e29


class _Static(NamedTuple):
    """What is known while tracing."""

    queries: tiling.Blocks
    keys: tiling.Blocks
    kv_heads: int
    groups: int
    text_reads_vae: bool


class _Tiles(NamedTuple):
    """The list of active tiles: rows of the blocked arrays, int32[most], and how many."""

    query: Any
    key: Any
    count: Any


def blockwise_attention(
    queries: Parts,
    keys: Parts,
    values: Parts,
    query_meta: Parts,
    key_meta: Parts,
    *,
    block_q: int = 64,
    block_kv: int = 64,
    text_reads_vae: bool = False,
) -> Parts:
    """As `api.attention`, on one device (or one shard of the batch)."""
    kv_heads = next(p.shape[2] for p in keys if p is not None)
    heads = next(p.shape[2] for p in queries if p is not None)
    static = _Static(
        tiling.cut(_lengths(queries), block_q),
        tiling.cut(_lengths(keys), block_kv),
        kv_heads,
        heads // kv_heads,
        text_reads_vae,
    )
    if not len(tiling.readable_tiles(static.queries, static.keys, text_reads_vae)):
        return Parts(*(None if p is None else jnp.zeros_like(p) for p in queries))
    q_meta = tiling.blocked_meta(jax.tree.map(jnp.asarray, query_meta), static.queries)
    k_meta = tiling.blocked_meta(jax.tree.map(jnp.asarray, key_meta), static.keys)
    out = _attend(
        static,
        _to_blocks(queries, static.queries, static.kv_heads),
        _to_blocks(keys, static.keys, static.kv_heads),
        _to_blocks(values, static.keys, static.kv_heads),
        q_meta,
        k_meta,
    )
    return _from_blocks(out, static.queries, queries)


def _lengths(parts: Parts) -> tuple[int, int, int]:
    und, clean, noised = (0 if part is None else part.shape[1] for part in parts)
    return und, clean, noised


def _to_blocks(parts: Parts, blocks: tiling.Blocks, kv_heads: int) -> jax.Array:
    """Parts [B, L, K * G, H] -> [B * blocks, K, G * size, H]."""
    pieces = []
    for part, length, count in zip(parts, blocks.lengths, blocks.counts, strict=True):
        if length:
            padding = ((0, 0), (0, count * blocks.size - length), (0, 0), (0, 0))
            pieces.append(jnp.pad(part, padding))
    x = jnp.concatenate(pieces, axis=1)
    head_dim = x.shape[-1]
    x = x.reshape(x.shape[0] * blocks.total, blocks.size, kv_heads, -1, head_dim)
    return x.transpose(0, 2, 3, 1, 4).reshape(x.shape[0], kv_heads, -1, head_dim)


def _from_blocks(x: jax.Array, blocks: tiling.Blocks, like: Parts) -> Parts:
    """The inverse of `_to_blocks`; parts of length zero and absent parts as in `like`."""
    rows, kv_heads, _, head_dim = x.shape
    batch = rows // blocks.total
    x = x.reshape(rows, kv_heads, -1, blocks.size, head_dim).transpose(0, 3, 1, 2, 4)
    x = x.reshape(batch, blocks.total * blocks.size, -1, head_dim)
    pieces, start = [], 0
    for part, length, count in zip(like, blocks.lengths, blocks.counts, strict=True):
        pieces.append(None if part is None else x[:, start : start + length])
        start += count * blocks.size
    return Parts(*pieces)


def _list_tiles(static: _Static, q_meta: TokenMeta, k_meta: TokenMeta) -> _Tiles:
    readable = tiling.readable_tiles(static.queries, static.keys, static.text_reads_vae)
    active = tiling.active_tiles(q_meta, k_meta, readable, static.queries, static.keys)
    batch = active.shape[0]
    row, tile = jnp.nonzero(active, size=batch * len(readable), fill_value=0)
    query = row * static.queries.total + jnp.asarray(readable[:, 0])[tile]
    key = row * static.keys.total + jnp.asarray(readable[:, 1])[tile]
    return _Tiles(query, key, jnp.sum(active, dtype=jnp.int32))


def _dot(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    """A batch of K matmuls, accumulated in float32."""
    numbers = (((contract[0],), (contract[1],)), ((0,), (0,)))
    return lax.dot_general(a, b, numbers, preferred_element_type=jnp.float32)


def _scores(
    static: _Static, q, k, q_meta: TokenMeta, k_meta: TokenMeta, *, keys_as_rows: bool = False
) -> jax.Array:
    """Scaled and masked scores of one tile, float32[K, G * block_q, block_kv], or transposed.

    The queries' metadata is that of all G * block_q rows.
    """
    column, row = (slice(None), None), (None, slice(None))
    if keys_as_rows:
        query, key, left, right = q_meta.take(row), k_meta.take(column), k, q
    else:
        query, key, left, right = q_meta.take(column), k_meta.take(row), q, k
    mask = can_attend(query, key, text_reads_vae=static.text_reads_vae)
    return jnp.where(mask, _dot(left, right, (2, 2)) * q.shape[-1] ** -0.5, _MASKED)


def _flat(meta: TokenMeta, copies: int = 1) -> TokenMeta:
    """int32[B, blocks, size] -> int32[B * blocks, copies * size]."""
    return TokenMeta(*(jnp.tile(x.reshape(-1, x.shape[-1]), copies) for x in meta))


def _row(x, index):
    return lax.dynamic_index_in_dim(x, index, 0, keepdims=False)


def _put(x, row, index):
    return lax.dynamic_update_index_in_dim(x, row, index, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(static: _Static, q, k, v, q_meta: TokenMeta, k_meta: TokenMeta) -> jax.Array:
    return _forward(static, q, k, v, q_meta, k_meta)[0]


def _forward(static: _Static, q, k, v, q_meta: TokenMeta, k_meta: TokenMeta):
    tiles = _list_tiles(static, q_meta, k_meta)
    q_meta, k_meta = _flat(q_meta, static.groups), _flat(k_meta)

    def body(step, carry):
        out, top, total = carry
        i, j = tiles.query[step], tiles.key[step]
        scores = _scores(static, _row(q, i), _row(k, j), q_meta.take((i,)), k_meta.take((j,)))
        old_top = _row(top, i)
        new_top = jnp.maximum(old_top, jnp.max(scores, axis=-1))
        weights = jnp.exp(scores - new_top[..., None])
        fade = jnp.exp(old_top - new_top)
        new_total = _row(total, i) * fade + jnp.sum(weights, axis=-1)
        read = _dot(weights.astype(v.dtype), _row(v, j), (2, 1))
        new_out = _row(out, i) * fade[..., None] + read
        return _put(out, new_out, i), _put(top, new_top, i), _put(total, new_total, i)

    start = (
        jnp.zeros(q.shape, jnp.float32),
        jnp.full(q.shape[:-1], _FLOOR, jnp.float32),
        jnp.zeros(q.shape[:-1], jnp.float32),
    )
    out, top, total = lax.fori_loop(0, tiles.count, body, start)
    total = jnp.where(total > 0, total, 1.0)  # rows that read nothing: 0 / 1
    out = (out / total[..., None]).astype(q.dtype)
    return out, top + jnp.log(total)


def _attend_forward(static, q, k, v, q_meta, k_meta):
    out, log_total = _forward(static, q, k, v, q_meta, k_meta)
    # Named, so that a rematerialisation policy can keep them and skip this loop.
    out = checkpoint_name(out, "attention_out")
    log_total = checkpoint_name(log_total, "attention_out")
    return out, (q, k, v, q_meta, k_meta, out, log_total)


def _attend_backward(static, residuals, d_out):
    q, k, v, q_meta, k_meta, out, log_total = residuals
    tiles = _list_tiles(static, q_meta, k_meta)
    q_meta, k_meta = _flat(q_meta, static.groups), _flat(k_meta)
    scale = q.shape[-1] ** -0.5
    # Per row: sum over keys of weight * d_weight.
    drift = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    # Rows that read nothing: exp(_MASKED - 0) = 0 for all of their keys.
    log_total = jnp.maximum(log_total, _FLOOR / 2)

    # A tile's scores stand here with keys as rows, so that the matmuls for dk and dv contract
    # over columns. The one for dq then gives dq transposed, from transposed keys. (XLA's CPU
    # backend takes three to five times as long to contract over the rows of both sides.)
    k_across = k.swapaxes(2, 3)

    def body(step, carry):
        dq_across, dk, dv = carry
        i, j = tiles.query[step], tiles.key[step]
        q_i, k_j, d_out_i = _row(q, i), _row(k, j), _row(d_out, i)
        scores = _scores(static, q_i, k_j, q_meta.take((i,)), k_meta.take((j,)), keys_as_rows=True)
        weights = jnp.exp(scores - _row(log_total, i)[:, None])
        d_weights = _dot(_row(v, j), d_out_i, (2, 2))
        d_scores = (weights * (d_weights - _row(drift, i)[:, None]) * scale).astype(q.dtype)
        dv_j = _row(dv, j) + _dot(weights.astype(d_out.dtype), d_out_i, (2, 1))
        dk_j = _row(dk, j) + _dot(d_scores, q_i, (2, 1))
        dq_i = _row(dq_across, i) + _dot(_row(k_across, j), d_scores, (2, 1))
        return _put(dq_across, dq_i, i), _put(dk, dk_j, j), _put(dv, dv_j, j)

    start = tuple(jnp.zeros(x.shape, jnp.float32) for x in (q.swapaxes(2, 3), k, v))
    dq_across, dk, dv = lax.fori_loop(0, tiles.count, body, start)
    dq = dq_across.swapaxes(2, 3)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, None


_attend.defvjp(_attend_forward, _attend_backward)
