"""Attention on a mesh: rows over the batch axes, heads over "tensor", queries over "context".

Context parallelism is an all-gather of keys and values, not a ring. Grouped-query attention has
few KV heads (1 KiB per token and layer for keys and values of the 7B together, in bfloat16: 256
MiB for a row of 256k tokens), so the gather costs a small share of what the queries' work takes;
one collective per layer is simple to overlap with it. A ring would have to skip its steps by the
mask, which differs from device to device, so that all would wait for the busiest in each of its
steps. And since the mask is a predicate on metadata, each device needs nothing but its own
queries' and all keys' metadata: it lists its own active tiles, whatever tokens it has been given.
Gradients of keys and values come back by a reduce-scatter.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from mogao_jax.ops.attention.parts import Parts
from mogao_jax.ops.per_shard import per_shard
from mogao_jax.sharding.ambient import sharded_axes, unmapped_axes, ways

Compute = Callable[[Parts, Parts, Parts, Parts, Parts], Parts]


def over_mesh(
    compute: Compute,
    queries: Parts,
    keys: Parts,
    *,
    batch_axes: tuple[str, ...],
    head_axes: tuple[str, ...],
    length_axes: tuple[str, ...],
) -> Compute:
    """`compute`, made to run on each device's rows, heads and queries of the mesh in context.

    What the devices do not divide (a single row, parts of odd length) stays whole on each. KV
    heads that are fewer than the "tensor" devices are shared by several.

    Args:
      compute: attention on one device: (queries, keys, values, and their metadata) -> outputs.
      queries, keys: of the call to come, for their shapes.
      batch_axes, head_axes, length_axes: mesh axes that rows, heads and queries are split over.
    """
    if not unmapped_axes():
        return compute
    rows, heads = _shape(queries)[0], _shape(queries)[2]
    num_kv = _shape(keys)[2]
    row_axes = sharded_axes(batch_axes, rows) or None
    tensor = sharded_axes(head_axes, heads)
    context = sharded_axes(length_axes, _common(queries))
    key_context = context if sharded_axes(length_axes, _common(keys)) == context else ()
    tensor_ways = ways(tensor)
    kv_split = num_kv % tensor_ways == 0

    def inner(queries, keys, values, query_meta, key_meta):
        if key_context:
            keys, values = _gather(keys, values, key_context)
        if not kv_split:
            pick = _own_kv_heads(num_kv, tensor, tensor_ways)
            keys, values = (
                jax.tree.map(functools.partial(jnp.take, indices=pick, axis=2), x)
                for x in (keys, values)
            )
        return compute(queries, keys, values, query_meta, key_meta)

    query = PartitionSpec(row_axes, context or None, tensor or None)
    key = PartitionSpec(row_axes, key_context or None, tensor if tensor and kv_split else None)
    return per_shard(
        inner,
        (query, key, key, PartitionSpec(row_axes, context or None), PartitionSpec(row_axes)),
        query,
    )


def _shape(parts: Parts) -> tuple[int, ...]:
    return next(p.shape for p in parts if p is not None)


def _common(parts: Parts) -> int:
    """What all parts' lengths are multiples of."""
    return math.gcd(*(p.shape[1] for p in parts if p is not None))


def _gather(keys: Parts, values: Parts, axes: tuple[str, ...]) -> tuple[Parts, Parts]:
    """Keys and values of all devices along `axes`, in the order of each part: one collective."""
    present = [i for i, k in enumerate(keys) if k is not None]
    joined = jnp.concatenate(
        [jnp.concatenate([keys[i], values[i]], axis=2) for i in present], axis=1
    )
    gathered = lax.all_gather(joined, axes, axis=1)  # [B, devices, tokens of all parts, 2K, H]
    batch, devices, _, heads, head_dim = gathered.shape
    found: dict[str, list[jax.Array | None]] = {"keys": [None] * 3, "values": [None] * 3}
    start = 0
    for i in present:
        length = keys[i].shape[1]
        piece = gathered[:, :, start : start + length]
        piece = piece.reshape(batch, devices * length, heads, head_dim)
        found["keys"][i], found["values"][i] = jnp.split(piece, 2, axis=2)
        start += length
    return Parts(*found["keys"]), Parts(*found["values"])


def _own_kv_heads(num_kv: int, axes: tuple[str, ...], devices: int) -> jax.Array:
    """Which KV heads this device's query heads read, int32[K of the device], some repeated.

    As if the KV heads were repeated to the least number that the devices share out evenly; that
    number divides the query heads', since both it is made of do.
    """
    repeated = math.lcm(num_kv, devices)
    each = repeated // devices
    return (lax.axis_index(axes) * each + jnp.arange(each)) * num_kv // repeated
