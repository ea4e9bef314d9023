"""The cache of a batch: a pool of rows, one per request and guidance context.

A program works on some rows of the pool (those that write text, or all contexts of an image): it
takes them out, computes, and puts them back. Rows that stand for padding lie beyond the pool:
taken, they are empty; put back, they are dropped.

Axes: R rows of the pool, S capacity, K key/value heads, H head_dim.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mogao_jax.config.schema import ModelConfig
from mogao_jax.models.cache import PartCache
from mogao_jax.ops.attention.parts import Parts
from mogao_jax.sequence.masking import TokenMeta


def allocate(config: ModelConfig, num_rows: int, capacity: int) -> PartCache | None:
    """An empty part of a cache; None for no capacity."""
    if not capacity:
        return None
    shape = (num_rows, capacity, config.num_kv_heads, config.head_dim)

    def arrays() -> Any:
        if config.scan_layers:
            return jnp.zeros((config.num_layers, *shape), config.dtype)
        return tuple(jnp.zeros(shape, config.dtype) for _ in range(config.num_layers))

    # Every leaf an array of its own: programs overwrite them in place.
    meta = TokenMeta(*(jnp.zeros(shape[:2], jnp.int32) for _ in range(3)))
    return PartCache(arrays(), arrays(), meta)


def grow(part: PartCache | None, config: ModelConfig, num_rows: int, capacity: int):
    """The part with a larger capacity: what is in it stays where it is."""
    if part is None:
        return allocate(config, num_rows, capacity)
    old = part.meta.segment.shape[1]

    def pad(x: jax.Array) -> jax.Array:
        width = [(0, 0)] * x.ndim
        width[_row_axis(x) + 1] = (0, capacity - old)
        return jnp.pad(x, width)

    return jax.tree.map(pad, part)


def capacity_of(part: PartCache | None) -> int:
    return 0 if part is None else part.meta.segment.shape[1]


def _row_axis(x: jax.Array) -> int:
    """Arrays of all layers, stacked, have five axes; one layer's four; metadata two."""
    return 1 if x.ndim == 5 else 0


def take(part: PartCache | None, rows: jax.Array, length: int | None = None) -> PartCache | None:
    """The given rows int32[n] of a part, up to `length` places; zeros for rows beyond the pool."""
    if part is None:
        return None

    def pick(x: jax.Array) -> jax.Array:
        axis = _row_axis(x)
        if length is not None:
            x = jax.lax.slice_in_dim(x, 0, length, axis=axis + 1)
        return jnp.take(x, rows, axis=axis, mode="fill", fill_value=0)

    return jax.tree.map(pick, part)


def put(part: PartCache | None, rows: jax.Array, changed: PartCache | None) -> PartCache | None:
    """The part with rows int32[n] replaced; rows beyond the pool are dropped."""
    if part is None or changed is None:
        return part

    def replace(x: jax.Array, y: jax.Array) -> jax.Array:
        index = (slice(None),) * _row_axis(x) + (rows,)
        return x.at[index].set(y, mode="drop")

    return jax.tree.map(replace, part, changed)


def num_bytes(cache: Parts) -> int:
    """Memory of a cache, in bytes."""
    return sum(x.nbytes for x in jax.tree.leaves(cache))
