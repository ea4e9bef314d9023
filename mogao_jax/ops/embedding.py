"""The vocabulary's table [V, D], sharded over the mesh: gathering it, and the token look-up.

Token embedding and language head use the whole table on every device, inside a shard_map. Looked
up or multiplied shard by shard, it would make the partitioner exchange activations. It is
all-gathered in the dtype of the computation, one mesh axis at a time; its gradient is accumulated
and reduce-scattered in float32.

Axes: B rows, L tokens, V vocabulary, D embed.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from mogao_jax.sharding import rules
from mogao_jax.sharding.ambient import (
    BATCH_AXES,
    LENGTH_AXES,
    mesh_axes,
    per_shard,
    sharded_axes,
    unmapped_axes,
)

TableAxes = tuple[tuple[str, ...], tuple[str, ...]]  # mesh axes that V and D are sharded over


def table_spec(shape: tuple[int, ...]) -> PartitionSpec:
    """How the table is sharded on the mesh in context (not at all where there is none)."""
    return rules.ambient_spec(shape, ("vocab", "embed")) or PartitionSpec(None, None)


def table_axes(spec: PartitionSpec) -> TableAxes:
    """The spec in a form that can be a static argument."""
    rows, columns = spec
    return mesh_axes(rows), mesh_axes(columns)


def gather_table(shard: jax.Array, axes: TableAxes, dtype: Any) -> jax.Array:
    """[V, D] in `dtype` from every device's shard."""
    table = shard.astype(dtype)
    for axis, names in enumerate(axes):
        for name in reversed(names):
            table = lax.all_gather(table, name, axis=axis, tiled=True)
    return table


def scatter_gradient(gradient: jax.Array, axes: TableAxes) -> jax.Array:
    """The device's shard of the sum of all devices' gradients float32[V, D]."""
    for axis, names in reversed(list(enumerate(axes))):
        for name in names:
            gradient = lax.psum_scatter(gradient, name, scatter_dimension=axis, tiled=True)
    return gradient


def embed_tokens(table: jax.Array, tokens: jax.Array, dtype: Any) -> jax.Array:
    """Rows of the table: float[V, D], int32[B, L] -> [B, L, D] in `dtype`.

    Under an ambient mesh every device looks up its own tokens in the whole table.
    """
    if not unmapped_axes():
        return jnp.take(table, tokens, axis=0).astype(dtype)
    spec = table_spec(table.shape)
    rows = sharded_axes(BATCH_AXES, tokens.shape[0]) or None
    length = sharded_axes(LENGTH_AXES, tokens.shape[1]) or None
    compute = per_shard(
        functools.partial(_embed, table_axes(spec), jnp.dtype(dtype)),
        (spec, PartitionSpec(rows, length)),
        PartitionSpec(rows, length),
    )
    return compute(table, tokens)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _embed(axes: TableAxes, dtype: Any, shard: jax.Array, tokens: jax.Array) -> jax.Array:
    return jnp.take(gather_table(shard, axes, dtype), tokens, axis=0)


def _embed_forward(axes, dtype, shard, tokens):
    # Arrays of no elements carry the shard's shape and dtype to the backward pass.
    return _embed(axes, dtype, shard, tokens), (tokens, shard[:, :0], shard[:0])


def _embed_backward(axes, dtype, residuals, cotangent):
    tokens, rows, columns = residuals
    counts = [_size(names) for names in axes]
    shape = (rows.shape[0] * counts[0], columns.shape[1] * counts[1])
    gradient = jnp.zeros(shape, jnp.float32).at[tokens].add(cotangent.astype(jnp.float32))
    return scatter_gradient(gradient, axes).astype(rows.dtype), None


def _size(names: tuple[str, ...]) -> int:
    return jax.lax.psum(1, names) if names else 1


_embed.defvjp(_embed_forward, _embed_backward)
