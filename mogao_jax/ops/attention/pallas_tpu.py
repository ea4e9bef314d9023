"""Blockwise attention as Pallas kernels for TPUs (Mosaic): forward, dq, and dk with dv.

FlashAttention's online softmax over a list of active tiles (tiles.py).

Grid: (KV heads, tiles). A step computes one tile for all query heads that share a KV head, so K
and V are read once for them. The second dimension is the length of the list, known on the device
only: masked tiles are no grid steps at all, instead of steps that return early and still have
their blocks copied to VMEM.

Prefetch: the list is a scalar-prefetch operand, because BlockSpecs' index maps read it to find a
step's blocks. The pipeline calls them ahead of the step, and so copies the next tile's blocks
while this one is computed. Consecutive tiles of one owner map to the same output block, which
therefore stays in VMEM; the tile flagged LAST fills it, and it is written when the block changes.
KV heads are independent ("parallel", shared by a chip's cores); tiles are sequential
("arbitrary"), since scratch accumulators carry over from one to the next.

Mask: `can_attend` on the tokens' metadata; a tile flagged FULL skips it.

Layout: scores have keys as rows, [block_kv, block_q]. Statistics per query (maximum, sum, lse,
delta) are then rows of lanes, one per query head, and only the keys' metadata is a column.

Axes: H head_dim, G query heads per KV head; blocks as in parts.py.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mogao_jax.ops.attention.parts import Parts, Static, blocked, from_blocks, static_of
from mogao_jax.ops.attention.tiles import (
    EMPTY,
    FIRST,
    FLOOR,
    FULL,
    LAST,
    MASKED,
    TileList,
    check_size,
    delta_of,
    dot,
    keep_for_backward,
    list_tiles,
    pack,
    unpack,
)
from mogao_jax.sequence.masking import TokenMeta, can_attend

_LANES, _SUBLANES = 128, 8  # of a TPU's vector registers: metadata is padded to whole ones


def pallas_attention(
    queries: Parts,
    keys: Parts,
    values: Parts,
    query_meta: Parts,
    key_meta: Parts,
    *,
    block_q: int = 256,
    block_kv: int = 256,
    text_reads_vae: bool = False,
    interpret: bool = False,
) -> Parts:
    """As `api.attention`, on one device (or one shard of batch and heads).

    Args:
      block_q, block_kv: tokens per block; multiples of 128 on a TPU.
      interpret: run the kernels in Pallas's interpreter, on any backend, for tests.
    Raises:
      ConfigError: rows so long that the list of tiles does not fit a TPU core's scalar memory.
    """
    static = static_of(queries, keys, block_q, block_kv, text_reads_vae)
    check_size(static, next(p.shape[0] for p in queries if p is not None))
    arrays = blocked(static, queries, keys, values, query_meta, key_meta)
    return from_blocks(attend_blocks(static, interpret, *arrays), static.queries, queries)


# -------------------------------------------------------------------------------------- tile math


def _mask(query_ref, key_ref, text_reads_vae: bool) -> jax.Array:
    """bool[block_kv, block_q] from metadata as rows and as columns."""
    query = TokenMeta(*(query_ref[0, i : i + 1, :] for i in range(3)))
    key = TokenMeta(*(key_ref[0, :, i : i + 1] for i in range(3)))
    return can_attend(query, key, text_reads_vae=text_reads_vae)


def _on_tile(flags: jax.Array, compute) -> None:
    """Runs compute(masked) for a tile: without the mask if it is full, not at all if empty."""
    is_full, is_empty = (flags & FULL) != 0, (flags & EMPTY) != 0

    @pl.when(is_full & ~is_empty)
    def _():
        compute(False)

    @pl.when(~is_full & ~is_empty)
    def _():
        compute(True)


# ---------------------------------------------------------------------------------------- kernels


def _forward_kernel(
    tiles_ref, q_ref, k_ref, v_ref, q_meta_ref, k_meta_ref,
    out_ref, lse_ref, acc_ref, top_ref, total_ref, *, static: Static,
):  # fmt: skip
    """Accumulators per query head g: acc[g] float32[H, block_q]; rows top[g] and total[g].

    For each query, `top` is the greatest score so far, `total` the sum of exp(score - top), `acc`
    the sum of exp(score - top) * value. A greater score rescales the latter two by `fade`.
    """
    flags, size = unpack(tiles_ref[pl.program_id(1)])[2], static.queries.size

    @pl.when((flags & FIRST) != 0)
    def _():
        acc_ref[...] = jnp.zeros_like(acc_ref)
        top_ref[...] = jnp.full_like(top_ref, FLOOR)
        total_ref[...] = jnp.zeros_like(total_ref)

    def compute(masked: bool) -> None:
        k, v = k_ref[0, 0], v_ref[0, 0]
        mask = _mask(q_meta_ref, k_meta_ref, static.text_reads_vae) if masked else None
        for g in range(static.groups):
            q = q_ref[0, 0, g * size : (g + 1) * size, :]
            scores = dot(k, q, (1, 1)) * q.shape[-1] ** -0.5
            if mask is not None:
                scores = jnp.where(mask, scores, MASKED)
            old_top = top_ref[g : g + 1, :]
            new_top = jnp.maximum(old_top, jnp.max(scores, axis=0, keepdims=True))
            weights = jnp.exp(scores - new_top)
            fade = jnp.exp(old_top - new_top)
            total_ref[g : g + 1, :] = total_ref[g : g + 1, :] * fade + jnp.sum(
                weights, axis=0, keepdims=True
            )
            acc_ref[g] = acc_ref[g] * fade + dot(v, weights.astype(v.dtype), (0, 0))
            top_ref[g : g + 1, :] = new_top

    _on_tile(flags, compute)

    @pl.when((flags & LAST) != 0)
    def _():
        total = total_ref[...]
        total = jnp.where(total > 0, total, 1.0)  # queries that read nothing: 0 / 1
        for g in range(static.groups):
            out = (acc_ref[g] / total[g : g + 1, :]).T
            out_ref[0, 0, g * size : (g + 1) * size, :] = out.astype(out_ref.dtype)
        lse_ref[0, 0] = top_ref[...] + jnp.log(total)


def _weights_and_gradient(
    k, v, q, d_out, lse, delta, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Softmax weights and gradient of the scores of one tile and query head.

    Both float32[block_kv, block_q]. `delta` is sum over keys of weight * d_weight, per query.
    """
    scale = q.shape[-1] ** -0.5
    scores = dot(k, q, (1, 1)) * scale
    if mask is not None:
        scores = jnp.where(mask, scores, MASKED)
    weights = jnp.exp(scores - lse)
    d_weights = dot(v, d_out, (1, 1))
    return weights, weights * (d_weights - delta) * scale


def _dq_kernel(
    tiles_ref, q_ref, k_ref, v_ref, q_meta_ref, k_meta_ref,
    d_out_ref, lse_ref, delta_ref, dq_ref, acc_ref, *, static: Static,
):  # fmt: skip
    """Accumulates dq[g] of a query block, transposed: float32[H, block_q]."""
    flags, size = unpack(tiles_ref[pl.program_id(1)])[2], static.queries.size

    @pl.when((flags & FIRST) != 0)
    def _():
        acc_ref[...] = jnp.zeros_like(acc_ref)

    def compute(masked: bool) -> None:
        k, v = k_ref[0, 0], v_ref[0, 0]
        mask = _mask(q_meta_ref, k_meta_ref, static.text_reads_vae) if masked else None
        for g in range(static.groups):
            rows = slice(g * size, (g + 1) * size)
            _, d_scores = _weights_and_gradient(
                k, v, q_ref[0, 0, rows, :], d_out_ref[0, 0, rows, :],
                lse_ref[0, 0, g : g + 1, :], delta_ref[0, 0, g : g + 1, :], mask,
            )  # fmt: skip
            acc_ref[g] += dot(k, d_scores.astype(k.dtype), (0, 0))

    _on_tile(flags, compute)

    @pl.when((flags & LAST) != 0)
    def _():
        for g in range(static.groups):
            dq_ref[0, 0, g * size : (g + 1) * size, :] = acc_ref[g].T.astype(dq_ref.dtype)


def _dkv_kernel(
    tiles_ref, q_ref, k_ref, v_ref, q_meta_ref, k_meta_ref,
    d_out_ref, lse_ref, delta_ref, dk_ref, dv_ref, dk_acc, dv_acc, *, static: Static,
):  # fmt: skip
    """Accumulates dk and dv of a key block, float32[block_kv, H], over query blocks and heads."""
    flags, size = unpack(tiles_ref[pl.program_id(1)])[2], static.queries.size

    @pl.when((flags & FIRST) != 0)
    def _():
        dk_acc[...] = jnp.zeros_like(dk_acc)
        dv_acc[...] = jnp.zeros_like(dv_acc)

    def compute(masked: bool) -> None:
        k, v = k_ref[0, 0], v_ref[0, 0]
        mask = _mask(q_meta_ref, k_meta_ref, static.text_reads_vae) if masked else None
        for g in range(static.groups):
            rows = slice(g * size, (g + 1) * size)
            q, d_out = q_ref[0, 0, rows, :], d_out_ref[0, 0, rows, :]
            weights, d_scores = _weights_and_gradient(
                k, v, q, d_out, lse_ref[0, 0, g : g + 1, :], delta_ref[0, 0, g : g + 1, :], mask
            )
            dv_acc[...] += dot(weights.astype(d_out.dtype), d_out, (1, 0))
            dk_acc[...] += dot(d_scores.astype(q.dtype), q, (1, 0))

    _on_tile(flags, compute)

    @pl.when((flags & LAST) != 0)
    def _():
        dk_ref[0, 0] = dk_acc[...].astype(dk_ref.dtype)
        dv_ref[0, 0] = dv_acc[...].astype(dv_ref.dtype)


# ------------------------------------------------------------------------------- calls and autodiff


def _specs(static: Static, head_dim: int) -> dict[str, pl.BlockSpec]:
    """The block of each kind of array that a grid step (KV head, tile) works on."""
    rows = static.groups * static.queries.size

    def at_query(head, step, tiles):
        return unpack(tiles[step])[0], head, 0, 0

    def at_key(head, step, tiles):
        return unpack(tiles[step])[1], head, 0, 0

    def query_meta(head, step, tiles):
        return unpack(tiles[step])[0], 0, 0

    def key_meta(head, step, tiles):
        return unpack(tiles[step])[1], 0, 0

    return {
        "q": pl.BlockSpec((1, 1, rows, head_dim), at_query),
        "k": pl.BlockSpec((1, 1, static.keys.size, head_dim), at_key),
        "row": pl.BlockSpec((1, 1, static.groups, static.queries.size), at_query),
        "q_meta": pl.BlockSpec((1, _SUBLANES, static.queries.size), query_meta),
        "k_meta": pl.BlockSpec((1, static.keys.size, _LANES), key_meta),
    }


_INPUTS = ("q", "k", "k", "q_meta", "k_meta", "q", "row", "row")  # the last three: backward


def _call(kernel, static: Static, interpret: bool, tiles: TileList, arguments, out, scratch):
    """Runs a kernel over a list of tiles.

    Args:
      arguments: arrays whose kinds of blocks are _INPUTS.
      out: (kind, shape, dtype) of every result.
      scratch: shapes of float32 accumulators, which outlive a grid step.
    """
    specs = _specs(static, arguments[0].shape[-1])
    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=(static.kv_heads, tiles.num_tiles),
        in_specs=[specs[kind] for kind in _INPUTS[: len(arguments)]],
        out_specs=[specs[kind] for kind, _, _ in out],
        scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
    )
    return pl.pallas_call(
        functools.partial(kernel, static=static),
        grid_spec=grid,
        out_shape=[jax.ShapeDtypeStruct(shape, dtype) for _, shape, dtype in out],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
        name=kernel.__name__.strip("_"),
    )(pack(tiles), *arguments)


def _meta_rows(meta: TokenMeta) -> jax.Array:
    """Queries' metadata, int32[B * blocks, 8, size]: three rows of lanes, then padding."""
    rows = jnp.stack([x.reshape(-1, x.shape[-1]) for x in meta], axis=1)
    return jnp.pad(rows, ((0, 0), (0, _SUBLANES - 3), (0, 0)))


def _meta_columns(meta: TokenMeta) -> jax.Array:
    """Keys' metadata, int32[B * blocks, size, 128]: three columns, then padding."""
    columns = jnp.stack([x.reshape(-1, x.shape[-1]) for x in meta], axis=2)
    return jnp.pad(columns, ((0, 0), (0, 0), (0, _LANES - 3)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attend_blocks(static: Static, interpret: bool, q, k, v, q_meta, k_meta) -> jax.Array:
    """Attention of arrays in blocks (`parts.Blocked`); the result has q's shape and dtype."""
    tiles = list_tiles(static, q_meta, k_meta)
    return _forward(static, interpret, tiles, q, k, v, q_meta, k_meta)[0]


def _forward(static: Static, interpret: bool, tiles: TileList, q, k, v, q_meta, k_meta):
    arguments = (q, k, v, _meta_rows(q_meta), _meta_columns(k_meta))
    per_query = (static.groups, static.queries.size)
    out = [("q", q.shape, q.dtype), ("row", (*q.shape[:2], *per_query), jnp.float32)]
    scratch = [(static.groups, q.shape[-1], static.queries.size), per_query, per_query]
    return _call(_forward_kernel, static, interpret, tiles, arguments, out, scratch)


def _attend_forward(static, interpret, q, k, v, q_meta, k_meta):
    tiles = list_tiles(static, q_meta, k_meta)
    out, lse = _forward(static, interpret, tiles, q, k, v, q_meta, k_meta)
    out, lse = keep_for_backward(out, lse)
    return out, (q, k, v, q_meta, k_meta, out, lse, tiles)


def _attend_backward(static, interpret, residuals, d_out):
    q, k, v, q_meta, k_meta, out, lse, tiles = residuals
    delta = delta_of(d_out, out).reshape(lse.shape)
    arguments = (q, k, v, _meta_rows(q_meta), _meta_columns(k_meta), d_out, lse, delta)
    out = [("q", q.shape, q.dtype)]
    scratch = [(static.groups, q.shape[-1], static.queries.size)]
    (dq,) = _call(_dq_kernel, static, interpret, tiles, arguments, out, scratch)
    by_key = list_tiles(static, q_meta, k_meta, by_key=True)
    out = [("k", k.shape, k.dtype), ("k", v.shape, v.dtype)]
    accumulator = (static.keys.size, k.shape[-1])
    dk, dv = _call(
        _dkv_kernel, static, interpret, by_key, arguments, out, [accumulator, accumulator]
    )
    return dq, dk, dv, None, None


attend_blocks.defvjp(_attend_forward, _attend_backward)
