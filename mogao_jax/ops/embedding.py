"""Token embedding: a look-up whose gradient is accumulated in float32.

Axes: B rows, L tokens, V vocabulary, D embed.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mogao_jax.ops.per_shard import per_shard
from mogao_jax.ops.table_shards import Cut, cut_of, scatter_gradient, table_spec, whole_table
from mogao_jax.sharding.ambient import BATCH_AXES, LENGTH_AXES, sharded_axes, unmapped_axes


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
        functools.partial(_embed, cut_of(spec), jnp.dtype(dtype)),
        (spec, PartitionSpec(rows, length)),
        PartitionSpec(rows, length),
    )
    return compute(table, tokens)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _embed(cut: Cut, dtype: Any, shard: jax.Array, tokens: jax.Array) -> jax.Array:
    return jnp.take(whole_table(shard, cut, dtype), tokens, axis=0)


def _embed_forward(cut, dtype, shard, tokens):
    # An array of no elements carries the piece's shape and dtype to the backward pass.
    return _embed(cut, dtype, shard, tokens), (tokens, shard[:, :0], shard[:0])


def _embed_backward(cut, dtype, residuals, cotangent):
    tokens, rows, columns = residuals
    counts = [_size(names) for names in cut]
    shape = (rows.shape[0] * counts[0], columns.shape[1] * counts[1])
    gradient = jnp.zeros(shape, jnp.float32).at[tokens].add(cotangent.astype(jnp.float32))
    return scatter_gradient(gradient, cut).astype(rows.dtype), None


def _size(names: tuple[str, ...]) -> int:
    return jax.lax.psum(1, names) if names else 1


_embed.defvjp(_embed_forward, _embed_backward)
