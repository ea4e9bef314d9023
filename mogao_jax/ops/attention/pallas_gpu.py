"""Blockwise attention as Pallas kernels for GPUs (Triton): forward, dq, and dk with dv.

Grid: (query heads, query blocks); for dk and dv (KV heads, key blocks). Programs run in parallel
and in any order, so each owns one output block and loops over its tiles, with accumulators in
registers: no atomics, and the sum is the same in every run.

The loop runs over the program's stretch of the list of active tiles (tiles.py), so masked tiles
are never loaded. Full tiles come first, in a loop of their own without the mask; in the others
`can_attend` decides on the tokens' metadata. The softmax is accumulated online (FlashAttention).

Triton wants blocks and head sizes that are powers of two; heads are padded with zeros.

Axes: H head_dim, G query heads per KV head; blocks as in parts.py.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mogao_jax.ops.attention.parts import Parts, Static, blocked, from_blocks, static_of
from mogao_jax.ops.attention.tiles import (
    FLOOR,
    MASKED,
    TileRanges,
    delta_of,
    dot,
    keep_for_backward,
    readable_tiles,
    tile_ranges,
)
from mogao_jax.sequence.masking import TokenMeta, can_attend

_LEAST = 16  # rows and columns of Triton's smallest matmul


def gpu_attention(
    queries: Parts,
    keys: Parts,
    values: Parts,
    query_meta: Parts,
    key_meta: Parts,
    *,
    block_q: int = 64,
    block_kv: int = 64,
    text_reads_vae: bool = False,
    interpret: bool = False,
) -> Parts:
    """As `api.attention`, on one device (or one shard of batch, heads and queries).

    Args:
      block_q, block_kv: tokens per block, powers of two from 16.
      interpret: run the kernels in Pallas's interpreter, on any backend, for tests.
    """
    head_dim = next(p.shape[3] for p in queries if p is not None)
    block_q, block_kv = _fit(queries, block_q), _fit(keys, block_kv)
    static = static_of(queries, keys, block_q, block_kv, text_reads_vae, exact=True)
    if not len(readable_tiles(static.queries, static.keys, text_reads_vae)):
        return Parts(*(None if p is None else jnp.zeros_like(p) for p in queries))
    arrays = blocked(static, queries, keys, values, query_meta, key_meta)
    padding = ((0, 0),) * 3 + ((0, _power_of_two(head_dim) - head_dim),)
    q, k, v = (jnp.pad(x, padding) for x in arrays[:3])
    run = _Run(static, head_dim**-0.5, interpret)
    out = _attend(run, q, k, v, arrays.q_meta, arrays.k_meta)[..., :head_dim]
    return from_blocks(out, static.queries, queries)


class _Run(NamedTuple):
    """What is known of a call while it is traced."""

    static: Static
    scale: float
    interpret: bool


def _power_of_two(size: int) -> int:
    return max(_LEAST, 1 << (size - 1).bit_length())


def _fit(parts: Parts, block: int) -> int:
    """The block, or a smaller one where all parts are shorter."""
    return min(block, _power_of_two(max(p.shape[1] for p in parts if p is not None)))


# -------------------------------------------------------------------------------------- tile math


def _meta(ref, block) -> TokenMeta:
    """Metadata int32[size] of a block, from int32[3, blocks, size]."""
    return TokenMeta(*(ref[i, block, :] for i in range(3)))


def _mask(run: _Run, query: TokenMeta, key: TokenMeta) -> jax.Array:
    """bool[block_q, block_kv]."""
    return can_attend(
        query.take((slice(None), None)),
        key.take((None, slice(None))),
        text_reads_vae=run.static.text_reads_vae,
    )


def _over_tiles(owner, full, partial, body, carry):
    """Runs body(other block, masked, carry) over an owner's tiles: full ones, then the others.

    Args:
      full, partial: references of a TileRanges' `start` and `other`.
    """
    for (start_ref, other_ref), masked in ((full, False), (partial, True)):

        def step(tile, carry, other_ref=other_ref, masked=masked):
            return body(other_ref[tile], masked, carry)

        carry = lax.fori_loop(start_ref[owner], start_ref[owner + 1], step, carry)
    return carry


# ---------------------------------------------------------------------------------------- kernels


def _forward_kernel(
    full_start, full_other, part_start, part_other, q_ref, k_ref, v_ref, q_meta_ref, k_meta_ref,
    out_ref, lse_ref, *, run: _Run,
):  # fmt: skip
    block, kv_head = pl.program_id(1), pl.program_id(0) // run.static.groups
    q, query = q_ref[...], _meta(q_meta_ref, block)

    def body(j, masked, carry):
        acc, top, total = carry
        scores = dot(q, k_ref[j, kv_head], (1, 1)) * run.scale
        if masked:
            scores = jnp.where(_mask(run, query, _meta(k_meta_ref, j)), scores, MASKED)
        new_top = jnp.maximum(top, jnp.max(scores, axis=1))
        weights = jnp.exp(scores - new_top[:, None])
        fade = jnp.exp(top - new_top)
        v = v_ref[j, kv_head]
        acc = acc * fade[:, None] + dot(weights.astype(v.dtype), v, (1, 0))
        return acc, new_top, total * fade + jnp.sum(weights, axis=1)

    size = q.shape[0]
    start = (
        jnp.zeros(q.shape, jnp.float32),
        jnp.full((size,), FLOOR, jnp.float32),
        jnp.zeros((size,), jnp.float32),
    )
    tiles = (full_start, full_other), (part_start, part_other)
    acc, top, total = _over_tiles(block, *tiles, body, start)
    total = jnp.where(total > 0, total, 1.0)  # queries that read nothing: 0 / 1
    out_ref[...] = (acc / total[:, None]).astype(out_ref.dtype)
    lse_ref[...] = top + jnp.log(total)


def _weights_and_gradient(run, q, k, v, d_out, lse, delta, mask) -> tuple[jax.Array, jax.Array]:
    """Softmax weights and gradient of the scores of one tile and query head.

    Both float32[block_q, block_kv]. `delta` is sum over keys of weight * d_weight, per query.
    """
    scores = dot(q, k, (1, 1)) * run.scale
    if mask is not None:
        scores = jnp.where(mask, scores, MASKED)
    weights = jnp.exp(scores - lse[:, None])
    d_weights = dot(d_out, v, (1, 1))
    return weights, weights * (d_weights - delta[:, None]) * run.scale


def _dq_kernel(
    full_start, full_other, part_start, part_other, q_ref, k_ref, v_ref, q_meta_ref, k_meta_ref,
    d_out_ref, lse_ref, delta_ref, dq_ref, *, run: _Run,
):  # fmt: skip
    block, kv_head = pl.program_id(1), pl.program_id(0) // run.static.groups
    q, d_out, lse, delta = q_ref[...], d_out_ref[...], lse_ref[...], delta_ref[...]
    query = _meta(q_meta_ref, block)

    def body(j, masked, dq):
        k, v = k_ref[j, kv_head], v_ref[j, kv_head]
        mask = _mask(run, query, _meta(k_meta_ref, j)) if masked else None
        _, d_scores = _weights_and_gradient(run, q, k, v, d_out, lse, delta, mask)
        return dq + dot(d_scores.astype(k.dtype), k, (1, 0))

    tiles = (full_start, full_other), (part_start, part_other)
    dq = _over_tiles(block, *tiles, body, jnp.zeros(q.shape, jnp.float32))
    dq_ref[...] = dq.astype(dq_ref.dtype)


def _dkv_kernel(
    full_start, full_other, part_start, part_other, q_ref, k_ref, v_ref, q_meta_ref, k_meta_ref,
    d_out_ref, lse_ref, delta_ref, dk_ref, dv_ref, *, run: _Run,
):  # fmt: skip
    block, kv_head = pl.program_id(1), pl.program_id(0)
    k, v, key = k_ref[...], v_ref[...], _meta(k_meta_ref, block)
    size = run.static.queries.size

    def body(i, masked, carry):
        mask = _mask(run, _meta(q_meta_ref, i), key) if masked else None

        def one_head(g, carry):
            dk, dv = carry
            rows = pl.ds(g * size, size)
            q, d_out = q_ref[i, kv_head, rows, :], d_out_ref[i, kv_head, rows, :]
            lse, delta = lse_ref[i, kv_head, g, :], delta_ref[i, kv_head, g, :]
            weights, d_scores = _weights_and_gradient(run, q, k, v, d_out, lse, delta, mask)
            dk = dk + dot(d_scores.astype(q.dtype), q, (0, 0))
            return dk, dv + dot(weights.astype(d_out.dtype), d_out, (0, 0))

        return lax.fori_loop(0, run.static.groups, one_head, carry)

    zeros = jnp.zeros(k.shape, jnp.float32)
    tiles = (full_start, full_other), (part_start, part_other)
    dk, dv = _over_tiles(block, *tiles, body, (zeros, zeros))
    dk_ref[...] = dk.astype(dk_ref.dtype)
    dv_ref[...] = dv.astype(dv_ref.dtype)


# ------------------------------------------------------------------------------- calls and autodiff


def _specs(static: Static, head_dim: int) -> dict[str, pl.BlockSpec]:
    """A program's own blocks; arrays that its loop indexes are passed "whole"."""
    groups, size = static.groups, static.queries.size

    def own_head(head, block):
        return block, head // groups, head % groups, 0

    return {
        "whole": pl.BlockSpec(),
        "q": pl.BlockSpec((None, None, size, head_dim), own_head),
        "row": pl.BlockSpec((None, None, None, size), own_head),
        "k": pl.BlockSpec(
            (None, None, static.keys.size, head_dim), lambda head, block: (block, head, 0, 0)
        ),
    }


def _call(kernel, run: _Run, grid, ranges: tuple[TileRanges, TileRanges], arguments, names, out):
    """Runs a kernel.

    Args:
      arguments, names: arrays, and how a program sees them (keys of `_specs`).
      out: (kind, shape, dtype) of every result.
    """
    specs = _specs(run.static, arguments[0].shape[-1])
    return pl.pallas_call(
        functools.partial(kernel, run=run),
        grid=grid,
        in_specs=[specs["whole"]] * 4 + [specs[name] for name in names],
        out_specs=[specs[kind] for kind, _, _ in out],
        out_shape=[jax.ShapeDtypeStruct(shape, dtype) for _, shape, dtype in out],
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
        interpret=run.interpret,
        name=kernel.__name__.strip("_"),
    )(*ranges[0], *ranges[1], *arguments)


def _stacked(meta: TokenMeta) -> jax.Array:
    """int32[3, B * blocks, size]."""
    return jnp.stack([x.reshape(-1, x.shape[-1]) for x in meta])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(run: _Run, q, k, v, q_meta, k_meta) -> jax.Array:
    return _forward(run, tile_ranges(run.static, q_meta, k_meta), q, k, v, q_meta, k_meta)[0]


def _forward(run: _Run, ranges, q, k, v, q_meta, k_meta):
    static = run.static
    grid = (static.kv_heads * static.groups, q.shape[0])
    arguments = (q, k, v, _stacked(q_meta), _stacked(k_meta))
    per_query = (*q.shape[:2], static.groups, static.queries.size)
    out = [("q", q.shape, q.dtype), ("row", per_query, jnp.float32)]
    return _call(_forward_kernel, run, grid, ranges, arguments, ("q", *("whole",) * 4), out)


def _attend_forward(run, q, k, v, q_meta, k_meta):
    ranges = tile_ranges(run.static, q_meta, k_meta)
    out, lse = _forward(run, ranges, q, k, v, q_meta, k_meta)
    out, lse = keep_for_backward(out, lse)
    return out, (q, k, v, q_meta, k_meta, out, lse, ranges)


def _attend_backward(run, residuals, d_out):
    q, k, v, q_meta, k_meta, out, lse, ranges = residuals
    static = run.static
    delta = delta_of(d_out, out).reshape(lse.shape)
    arguments = (q, k, v, _stacked(q_meta), _stacked(k_meta), d_out, lse, delta)
    grid = (static.kv_heads * static.groups, q.shape[0])
    names = ("q", *("whole",) * 4, "q", "row", "row")
    out = [("q", q.shape, q.dtype)]
    (dq,) = _call(_dq_kernel, run, grid, ranges, arguments, names, out)
    by_key = tile_ranges(static, q_meta, k_meta, by_key=True)
    grid, names = (static.kv_heads, k.shape[0]), ("whole", "k", "k", *("whole",) * 5)
    out = [("k", k.shape, k.dtype), ("k", v.shape, v.dtype)]
    dk, dv = _call(_dkv_kernel, run, grid, by_key, arguments, names, out)
    return dq, dk, dv, None, None


_attend.defvjp(_attend_forward, _attend_backward)
