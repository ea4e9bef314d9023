"""Cross-entropy of a large vocabulary that never holds the logits of all tokens.

Tokens are sorted so that those with a weight come first in their row. A loop takes `chunk` tokens
per row at a time, and stops when the row with most of them is done: tokens that are not trained
(the user's text, ViT tokens, padding) cost nothing.

The backward pass computes the logits of a chunk once more, from the saved log-sum-exp, and from
them the gradients of both hidden states and table. Recomputing costs 8 matmul units instead of
6. Computing gradients in the forward pass would cost 6, but needs the losses' cotangents, which
are only known afterwards; assuming them would restrict this op to one weighted sum.

Axes: B rows, L tokens, D embed, V vocabulary.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from mogao_jax.ops.embedding import (
    TableAxes,
    gather_table,
    scatter_gradient,
    table_axes,
    table_spec,
)
from mogao_jax.sharding.ambient import (
    BATCH_AXES,
    LENGTH_AXES,
    SPARE_AXES,
    axis_size,
    per_shard,
    sharded_axes,
)


def cross_entropy(
    hidden: jax.Array,
    table: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    chunk: int = 256,
    batch_axes: tuple[str, ...] = BATCH_AXES,
) -> tuple[jax.Array, jax.Array]:
    """Next-token losses of logits = hidden @ table.T, accumulated in float32.

    Under an ambient mesh every device works on its own rows and its own tokens of them, with the
    whole table, gathered; the table's gradient is summed over devices once, at the end.

    Args:
      hidden: float[B, L, D]; its dtype is that of the matmuls.
      table: float[V, D]: the output embedding (tied or not).
      targets: int32[B, L] in [0, V).
      weights: float[B, L]; only whether it is zero matters here. Not differentiated.
      chunk: tokens per row whose logits exist at a time.
      batch_axes: mesh axes that rows are split over.
    Returns:
      losses float32[B, L], unweighted, 0 where the weight is 0; and is_correct bool[B, L]:
      whether the target is the likeliest token (ties count), False where the weight is 0.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    if hidden.shape[:2] != targets.shape or targets.shape != weights.shape:
        raise ValueError(
            f"shapes do not fit: hidden {hidden.shape}, targets {targets.shape}, "
            f"weights {weights.shape}"
        )
    if hidden.shape[2] != table.shape[1]:
        raise ValueError(f"hidden {hidden.shape} and table {table.shape} differ in width")
    if hidden.shape[1] == 0:
        return jnp.zeros(targets.shape, jnp.float32), jnp.zeros(targets.shape, bool)
    # Tokens are independent, so "tensor" shards them too, not the vocabulary.
    length_axes = sharded_axes(SPARE_AXES, hidden.shape[1])
    length_axes = length_axes or sharded_axes(LENGTH_AXES, hidden.shape[1])
    chunk = min(chunk, hidden.shape[1] // axis_size(length_axes))
    spec = table_spec(table.shape)
    rows = sharded_axes(batch_axes, hidden.shape[0])
    tokens = PartitionSpec(rows or None, length_axes or None)
    compute = per_shard(
        functools.partial(_cross_entropy, chunk, table_axes(spec)),
        (tokens, spec, tokens, tokens),
        (tokens, tokens),
    )
    with jax.named_scope("cross_entropy"):  # so that a profile can tell it apart
        return compute(hidden, table, targets, weights != 0)


def _dot(a: jax.Array, b: jax.Array, contract: tuple[Any, Any]) -> jax.Array:
    """A contraction accumulated in float32."""
    return lax.dot_general(a, b, (contract, ((), ())), preferred_element_type=jnp.float32)


def _logits(hidden: jax.Array, table: jax.Array) -> jax.Array:
    """[B, c, D] x [V, D] -> float32[B, c, V]."""
    return _dot(hidden, table, ((2,), (1,)))


def _sort(is_used: jax.Array, chunk: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Used tokens first: their order int32[B, P] (P: L rounded up to chunks), the place of every
    token in it int32[B, L], and how many chunks hold all used ones."""
    length = is_used.shape[1]
    order = jnp.argsort(~is_used, axis=1, stable=True)
    place = jnp.argsort(order, axis=1)
    padding = math.ceil(length / chunk) * chunk - length
    order = jnp.pad(order, ((0, 0), (0, padding)))
    most = jnp.max(jnp.sum(is_used, axis=1, dtype=jnp.int32))
    return order, place, (most + chunk - 1) // chunk


def _take(x: jax.Array, index: jax.Array) -> jax.Array:
    """Tokens of each row: [B, L, ...] by int32[B, M] -> [B, M, ...]."""
    return jax.vmap(lambda row, i: row.at[i].get(mode="promise_in_bounds"))(x, index)


def _slice(x: jax.Array, step: jax.Array, chunk: int) -> jax.Array:
    return lax.dynamic_slice_in_dim(x, step * chunk, chunk, axis=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _cross_entropy(chunk: int, axes: TableAxes, hidden, table, targets, is_used):
    losses, is_correct, _ = _forward(chunk, axes, hidden, table, targets, is_used)
    return losses, is_correct


def _forward(chunk, axes, hidden, table, targets, is_used):
    order, place, steps = _sort(is_used, chunk)
    hidden, targets = _take(hidden, order), _take(targets, order)
    table = gather_table(table, axes, hidden.dtype)

    def body(step, carry):
        losses, is_correct, log_total = carry
        logits = _logits(_slice(hidden, step, chunk), table)
        top = jnp.max(logits, axis=-1)
        total = top + jnp.log(jnp.sum(jnp.exp(logits - top[..., None]), axis=-1))
        target = _slice(targets, step, chunk)[..., None]
        wanted = jnp.take_along_axis(logits, target, axis=-1)[..., 0]

        def put(x, piece):
            return lax.dynamic_update_slice_in_dim(x, piece, step * chunk, axis=1)

        return put(losses, total - wanted), put(is_correct, wanted >= top), put(log_total, total)

    start = (
        jnp.zeros(targets.shape, jnp.float32),
        jnp.zeros(targets.shape, bool),
        jnp.zeros(targets.shape, jnp.float32),
    )
    losses, is_correct, log_total = lax.fori_loop(0, steps, body, start)
    losses = jnp.where(is_used, _take(losses, place), 0.0)
    return losses, _take(is_correct, place) & is_used, log_total


def _cross_entropy_forward(chunk, axes, hidden, table, targets, is_used):
    losses, is_correct, log_total = _forward(chunk, axes, hidden, table, targets, is_used)
    return (losses, is_correct), (hidden, table, targets, is_used, log_total)


def _cross_entropy_backward(chunk, axes, residuals, cotangents):
    hidden, table, targets, is_used, log_total = residuals
    d_losses = jnp.where(is_used, cotangents[0], 0.0)
    order, place, steps = _sort(is_used, chunk)
    # The last chunk is filled up with unused or repeated tokens, which take no gradient.
    in_row = jnp.arange(order.shape[1]) < is_used.shape[1]
    d_losses = jnp.where(in_row, _take(d_losses, order), 0.0)
    rows, targets = _take(hidden, order), _take(targets, order)
    narrow = gather_table(table, axes, hidden.dtype)
    # The table's gradient is accumulated transposed, from transposed states: XLA's CPU backend
    # takes several times as long to contract over the rows of both sides.
    rows_across = rows.transpose(2, 0, 1)  # [D, B, P]

    def body(step, carry):
        d_rows, d_table_across = carry
        row = _slice(rows, step, chunk)
        weights = jnp.exp(_logits(row, narrow) - _slice(log_total, step, chunk)[..., None])
        is_target = jnp.arange(narrow.shape[0]) == _slice(targets, step, chunk)[..., None]
        d_logits = (weights - is_target) * _slice(d_losses, step, chunk)[..., None]
        d_logits = d_logits.astype(hidden.dtype)
        d_row = _dot(d_logits, narrow, ((2,), (0,)))
        d_rows = lax.dynamic_update_slice_in_dim(
            d_rows, d_row.astype(hidden.dtype), step * chunk, axis=1
        )
        row_across = lax.dynamic_slice_in_dim(rows_across, step * chunk, chunk, axis=2)
        return d_rows, d_table_across + _dot(row_across, d_logits, ((1, 2), (0, 1)))

    start = (jnp.zeros_like(rows), jnp.zeros(narrow.shape[::-1], jnp.float32))
    d_rows, d_table_across = lax.fori_loop(0, steps, body, start)
    d_table = scatter_gradient(d_table_across.T, axes).astype(table.dtype)
    return _take(d_rows, place), d_table, None, None


_cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)
