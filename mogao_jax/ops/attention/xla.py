"""Attention in plain XLA: blockwise over active tiles, and dense with the whole mask.

Blockwise, a loop runs over a list of the active tiles (tiles.py) of all rows of the batch. The
list is built on the device and the loop stops at its end, so masked tiles cost nothing. The
softmax is accumulated online (FlashAttention); the backward pass recomputes a tile's scores from
the saved log-sum-exp. No array has both a query axis and a key axis longer than a block.

Every contraction of a tile is a batch of K plain matmuls (parts.py): XLA's CPU backend has no
good kernel for anything else.

Axes: B rows, T/S query/key length, N query heads, K key/value heads, G = N / K, H head_dim.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mogao_jax.ops.attention.parts import (
    Parts,
    Static,
    blocked,
    from_blocks,
    join_parts,
    split_parts,
    static_of,
)
from mogao_jax.ops.attention.tiles import (
    FLOOR,
    MASKED,
    active_tiles,
    delta_of,
    keep_for_backward,
    readable_tiles,
)
from mogao_jax.sequence.masking import TokenMeta, can_attend, dense_mask


def dense_attention(
    queries: Parts,
    keys: Parts,
    values: Parts,
    query_meta: Parts,
    key_meta: Parts,
    *,
    text_reads_vae: bool = False,
) -> Parts:
    """As `api.attention`, with an array [B, N, T, S] in memory: the reference, and for short rows.

    With few queries it is also the fastest: they make poor tiles.
    """
    q, k, v = join_parts(queries), join_parts(keys), join_parts(values)
    query, key = _join_meta(query_meta), _join_meta(key_meta)
    mask = dense_mask(query, key, text_reads_vae=text_reads_vae)
    batch, length, heads, head_dim = q.shape
    kv_heads = k.shape[2]
    q = q.reshape(batch, length, kv_heads, heads // kv_heads, head_dim)
    scores = jnp.einsum("btkgh,bskh->bkgts", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None, None], scores * head_dim**-0.5, MASKED)
    # A query that reads nothing gives zeros, not the mean of the values.
    weights = jax.nn.softmax(scores, axis=-1) * jnp.any(mask, axis=-1)[:, None, None, :, None]
    out = jnp.einsum("bkgts,bskh->btkgh", weights, v.astype(jnp.float32))
    return split_parts(out.reshape(batch, length, heads, head_dim).astype(q.dtype), queries)


def _join_meta(parts: Parts) -> TokenMeta:
    columns = zip(*(p for p in parts if p is not None), strict=True)
    return TokenMeta(*(jnp.concatenate(column, axis=-1) for column in columns))


class _Tiles(NamedTuple):
    """The list of active tiles: rows of the blocked arrays, int32[most], and their number."""

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
    static = static_of(queries, keys, block_q, block_kv, text_reads_vae)
    if not len(readable_tiles(static.queries, static.keys, text_reads_vae)):
        return Parts(*(None if p is None else jnp.zeros_like(p) for p in queries))
    arrays = blocked(static, queries, keys, values, query_meta, key_meta)
    return from_blocks(_attend(static, *arrays), static.queries, queries)


def _list_tiles(static: Static, q_meta: TokenMeta, k_meta: TokenMeta) -> _Tiles:
    readable = readable_tiles(static.queries, static.keys, static.text_reads_vae)
    active = active_tiles(q_meta, k_meta, readable, static.queries, static.keys)
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
    static: Static, q, k, q_meta: TokenMeta, k_meta: TokenMeta, *, keys_as_rows: bool = False
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
    return jnp.where(mask, _dot(left, right, (2, 2)) * q.shape[-1] ** -0.5, MASKED)


def _flat(meta: TokenMeta, copies: int = 1) -> TokenMeta:
    """int32[B, blocks, size] -> int32[B * blocks, copies * size]."""
    return TokenMeta(*(jnp.tile(x.reshape(-1, x.shape[-1]), copies) for x in meta))


def _row(x, index):
    return lax.dynamic_index_in_dim(x, index, 0, keepdims=False)


def _put(x, row, index):
    return lax.dynamic_update_index_in_dim(x, row, index, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(static: Static, q, k, v, q_meta: TokenMeta, k_meta: TokenMeta) -> jax.Array:
    return _forward(static, q, k, v, q_meta, k_meta)[0]


def _forward(static: Static, q, k, v, q_meta: TokenMeta, k_meta: TokenMeta):
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
        jnp.full(q.shape[:-1], FLOOR, jnp.float32),
        jnp.zeros(q.shape[:-1], jnp.float32),
    )
    out, top, total = lax.fori_loop(0, tiles.count, body, start)
    total = jnp.where(total > 0, total, 1.0)  # rows that read nothing: 0 / 1
    out = (out / total[..., None]).astype(q.dtype)
    return out, top + jnp.log(total)


def _attend_forward(static, q, k, v, q_meta, k_meta):
    out, log_total = _forward(static, q, k, v, q_meta, k_meta)
    out, log_total = keep_for_backward(out, log_total)
    return out, (q, k, v, q_meta, k_meta, out, log_total)


def _attend_backward(static, residuals, d_out):
    q, k, v, q_meta, k_meta, out, log_total = residuals
    tiles = _list_tiles(static, q_meta, k_meta)
    q_meta, k_meta = _flat(q_meta, static.groups), _flat(k_meta)
    scale = q.shape[-1] ** -0.5
    delta = delta_of(d_out, out)
    # Rows that read nothing: exp(MASKED - 0) = 0 for all of their keys.
    log_total = jnp.maximum(log_total, FLOOR / 2)

    # Scores are computed with keys as rows, so that the matmuls for dk and dv contract over
    # columns: XLA's CPU backend takes three to five times as long to contract over the rows of
    # both sides. The matmul for dq then gives dq transposed, from transposed keys.
    k_across = k.swapaxes(2, 3)

    def body(step, carry):
        dq_across, dk, dv = carry
        i, j = tiles.query[step], tiles.key[step]
        q_i, k_j, d_out_i = _row(q, i), _row(k, j), _row(d_out, i)
        scores = _scores(static, q_i, k_j, q_meta.take((i,)), k_meta.take((j,)), keys_as_rows=True)
        weights = jnp.exp(scores - _row(log_total, i)[:, None])
        d_weights = _dot(_row(v, j), d_out_i, (2, 2))
        d_scores = (weights * (d_weights - _row(delta, i)[:, None]) * scale).astype(q.dtype)
        dv_j = _row(dv, j) + _dot(weights.astype(d_out.dtype), d_out_i, (2, 1))
        dk_j = _row(dk, j) + _dot(d_scores, q_i, (2, 1))
        dq_i = _row(dq_across, i) + _dot(_row(k_across, j), d_scores, (2, 1))
        return _put(dq_across, dq_i, i), _put(dk, dk_j, j), _put(dv, dv_j, j)

    start = tuple(jnp.zeros(x.shape, jnp.float32) for x in (q.swapaxes(2, 3), k, v))
    dq_across, dk, dv = lax.fori_loop(0, tiles.count, body, start)
    dq = dq_across.swapaxes(2, 3)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, None


_attend.defvjp(_attend_forward, _attend_backward)
