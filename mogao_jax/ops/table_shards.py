"""A table [V, D] that is stored in pieces over the mesh, inside a shard_map: gather, and back.

Token embedding and language head use it whole, on every device: looked up or multiplied where
it is cut, it would make the partitioner exchange activations. It is gathered in the dtype of the
computation, one mesh axis at a time; its gradient is summed and scattered in float32.
"""

from __future__ import annotations

from typing import Any

import jax
from jax import lax
from jax.sharding import PartitionSpec

from mogao_jax.sharding import rules

Cut = tuple[tuple[str, ...], tuple[str, ...]]  # mesh axes that each axis of the table is cut over


def table_spec(shape: tuple[int, ...]) -> PartitionSpec:
    """How the table lies on the mesh in context (all whole where there is none)."""
    return rules.ambient_spec(shape, ("vocab", "embed")) or PartitionSpec(None, None)


def cut_of(spec: PartitionSpec) -> Cut:
    """The spec in a form that can be a static argument."""
    entries = (axes or () for axes in spec)
    rows, columns = ((axes,) if isinstance(axes, str) else tuple(axes) for axes in entries)
    return rows, columns


def whole_table(shard: jax.Array, cut: Cut, dtype: Any) -> jax.Array:
    """[V, D] in `dtype` from every device's piece."""
    table = shard.astype(dtype)
    for axis, names in enumerate(cut):
        for name in reversed(names):
            table = lax.all_gather(table, name, axis=axis, tiled=True)
    return table


def scatter_gradient(gradient: jax.Array, cut: Cut) -> jax.Array:
    """The device's piece of the sum of all devices' gradients float32[V, D]."""
    for axis, names in reversed(list(enumerate(cut))):
        for name in names:
            gradient = lax.psum_scatter(gradient, name, scatter_dimension=axis, tiled=True)
    return gradient
