"""Attention over a row in parts, by token metadata: the one entry, whatever computes it.

On a mesh, rows are sharded over the batch axes, heads over "tensor", queries over "context".
Context parallelism is an all-gather of keys and values, not a ring. Grouped-query attention has
few KV heads (1 KiB per token and layer for keys and values of the 7B together, in bfloat16: 256
MiB for a row of 256k tokens), so the all-gather takes a small share of the time of the queries'
work, and one collective per layer is simple to overlap with it. A ring would skip steps by the
mask, which differs from device to device, so that in each step all would wait for the busiest.
Since the mask is a predicate on metadata, a device needs only its own queries and the metadata of
all keys: it lists its own active tiles, whichever tokens it holds. Gradients of keys and values
come back by a reduce-scatter.

Axes: B rows, T/S query/key length, N query heads, K key/value heads, H head_dim.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from mogao_jax.config.schema import AttentionConfig
from mogao_jax.errors import ConfigError
from mogao_jax.ops.attention.pallas_gpu import gpu_attention
from mogao_jax.ops.attention.pallas_tpu import pallas_attention
from mogao_jax.ops.attention.parts import Parts, join_parts, split_parts
from mogao_jax.ops.attention.xla import blockwise_attention, dense_attention
from mogao_jax.sharding.ambient import (
    BATCH_AXES,
    LENGTH_AXES,
    axis_size,
    per_shard,
    sharded_axes,
    unmapped_axes,
)

# (queries, keys, values, their metadata) -> outputs, on one device.
Compute = Callable[[Parts, Parts, Parts, Parts, Parts], Parts]


class MeshAxes(NamedTuple):
    """Mesh axes that rows, heads and queries are sharded over."""

    batch: tuple[str, ...] = BATCH_AXES
    heads: tuple[str, ...] = ("tensor",)
    length: tuple[str, ...] = LENGTH_AXES


AUTO, TRANSFORMER_AXES = AttentionConfig(), MeshAxes()


def attention(
    queries: Parts,
    keys: Parts,
    values: Parts,
    query_meta: Parts,
    key_meta: Parts,
    config: AttentionConfig = AUTO,
    *,
    text_reads_vae: bool = False,
    axes: MeshAxes = TRANSFORMER_AXES,
) -> Parts:
    """Softmax attention where `can_attend` allows it (docs/method.md section 4).

    Scores are scaled by 1 / sqrt(H); scores and softmax are float32 whatever the dtype. Parts
    that a part never reads are never computed. A query that may read nothing (padding) gives 0
    and takes no gradient. Under an ambient mesh (`jax.set_mesh`) every device works on its own
    rows, heads and queries; only the split of queries communicates.

    Args:
      queries: [B, T, N, H] per part (`Parts(und, clean, noised)`); None for an absent part.
      keys, values: [B, S, K, H] per part, N a multiple of K; lengths need not be the queries'.
      query_meta, key_meta: TokenMeta of int32[B, T] and int32[B, S] per part, present where the
        arrays are. Any order of tokens is right; sorted by (segment, order) is fast.
      config: implementation and blocks; "auto" goes by this process's devices. Lengths need not
        be multiples of blocks. Small blocks follow the mask closely (64 was fastest on a CPU with
        images of some 60 tokens), large ones cost less per pair.
      text_reads_vae: VAE-only understanding (ablations A and B): und reads clean VAE tokens.
      axes: mesh axes to shard over.
    Returns:
      Parts of [B, T, N, H] in the queries' dtype.
    Raises:
      ValueError: for shapes that do not fit each other, or an unknown implementation.
    """
    _check_metadata("query", queries, query_meta)
    _check_metadata("key", keys, key_meta)
    _check_shapes(queries, keys, values)
    config = resolve(config, jax.default_backend())
    function = _FUNCTIONS[config.implementation]
    options: dict[str, Any] = {"text_reads_vae": text_reads_vae}
    if config.implementation != "dense":
        options.update(block_q=config.block_q, block_kv=config.block_kv)
    compute = over_mesh(functools.partial(function, **options), queries, keys, axes)
    with jax.named_scope("attention"):  # so that a profile can tell it apart
        return compute(queries, keys, values, query_meta, key_meta)


def _check_metadata(name: str, arrays: Parts, metadata: Parts) -> None:
    for part, x, meta in zip(Parts._fields, arrays, metadata, strict=True):
        if (x is None) != (meta is None):
            raise ValueError(f"{name} part {part!r}: arrays and metadata must both be there")
        if x is not None and any(f.shape != x.shape[:2] for f in meta):
            raise ValueError(
                f"{name} part {part!r}: metadata must be of shape {x.shape[:2]}, "
                f"got {[f.shape for f in meta]}"
            )


def _check_shapes(queries: Parts, keys: Parts, values: Parts) -> None:
    if _shapes(keys) != _shapes(values):
        raise ValueError("keys and values must be of the same shapes")
    q, k = (list(filter(None, _shapes(parts))) for parts in (queries, keys))
    if not q or not k:
        raise ValueError("attention needs at least one part of queries and one of keys")
    q_batches, _, heads, q_head_dims = map(set, zip(*q, strict=True))
    k_batches, _, kv_heads, k_head_dims = map(set, zip(*k, strict=True))
    batches, head_dims = q_batches | k_batches, q_head_dims | k_head_dims
    if max(map(len, (batches, heads, kv_heads, head_dims))) > 1:
        raise ValueError(
            f"parts disagree: query heads {heads}, key heads {kv_heads}, head sizes {head_dims}, "
            f"batch sizes {batches}"
        )
    if max(heads) % max(kv_heads):
        raise ValueError(f"query heads ({max(heads)}) must be a multiple of {max(kv_heads)}")


def _shapes(parts: Parts) -> list[tuple[int, ...] | None]:
    return [None if x is None else x.shape for x in parts]


# ---------------------------------------------------------------- which implementation and blocks

_FUNCTIONS: dict[str, Callable[..., Parts]] = {
    "xla": blockwise_attention,
    "dense": dense_attention,
    "pallas_tpu": pallas_attention,
    "pallas_gpu": gpu_attention,
}
IMPLEMENTATIONS = tuple(_FUNCTIONS)
_OF_PLATFORM = {
    "tpu": "pallas_tpu",
    "gpu": "pallas_gpu",
    "cuda": "pallas_gpu",
    "rocm": "pallas_gpu",
    "cpu": "xla",
}
# Tokens per block where the config names none. On a CPU small blocks follow the mask; a TPU's
# matrix unit wants large ones (multiples of 128); a GPU's registers hold middling ones.
_BLOCKS = {"xla": 64, "dense": 64, "pallas_tpu": 256, "pallas_gpu": 64}
_TPU_LANES = 128


def choose(implementation: str, platform: str) -> str:
    """The implementation that "auto" stands for on a platform; others stand for themselves.

    Args:
      implementation: "auto" or one of IMPLEMENTATIONS.
      platform: of the devices that the program is compiled for: "cpu", "gpu", "tpu", ... An
        unknown one gets plain XLA, which runs everywhere.
    Raises:
      ValueError: for an unknown implementation.
    """
    if implementation == "auto":
        return _OF_PLATFORM.get(platform.lower(), "xla")
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"unknown attention implementation {implementation!r}: auto, "
            f"{', '.join(IMPLEMENTATIONS)}"
        )
    return implementation


def resolve(config: AttentionConfig, platform: str) -> AttentionConfig:
    """The section with implementation and blocks settled.

    Blocks that an implementation does not support are refused if the config names it; with
    "auto" the nearest supported ones are taken, so that one recipe runs anywhere.

    Raises:
      ConfigError: for unsupported blocks, with ones that work.
    """
    implementation = choose(config.implementation, platform)
    chosen: dict[str, Any] = {"implementation": implementation}
    for name in ("block_q", "block_kv"):
        size = getattr(config, name) or _BLOCKS[implementation]
        chosen[name], needs = _nearest_block(implementation, size)
        if chosen[name] != size and config.implementation != "auto":
            raise ConfigError(
                f"config.model.attention.{name} is {size}, but the kernel {implementation!r} "
                f"needs {needs}; use {chosen[name]}, or 0 for what suits it."
            )
    return dataclasses.replace(config, **chosen)


def _nearest_block(implementation: str, size: int) -> tuple[int, str]:
    """The supported block nearest to `size`, and which ones are supported."""
    if implementation == "pallas_tpu":
        near = max(1, round(size / _TPU_LANES)) * _TPU_LANES
        return near, f"a multiple of {_TPU_LANES}, the lanes of a TPU's registers"
    if implementation == "pallas_gpu":
        return max(16, 1 << (size.bit_length() - 1)), "a power of two, at least 16"
    return size, "any"


# -------------------------------------------------------------------------------------- on a mesh


def over_mesh(compute: Compute, queries: Parts, keys: Parts, axes: MeshAxes) -> Compute:
    """`compute`, made to run on each device's rows, heads and queries of the mesh in context.

    An axis that the devices do not divide (a single row, parts of odd length) stays whole on
    each. KV heads that are fewer than the "tensor" devices are shared by several.

    Args:
      compute: attention on one device.
      queries, keys: of the call to come, for their shapes.
    """
    if not unmapped_axes():
        return compute
    (num_rows, _, num_heads, _), num_kv = _shape(queries), _shape(keys)[2]
    rows = sharded_axes(axes.batch, num_rows) or None
    tensor = sharded_axes(axes.heads, num_heads)
    context = sharded_axes(axes.length, _common_length(queries))
    key_context = context if sharded_axes(axes.length, _common_length(keys)) == context else ()
    devices = axis_size(tensor)
    kv_split = num_kv % devices == 0

    def inner(queries, keys, values, query_meta, key_meta):
        if key_context:
            keys, values = _all_gather(keys, values, key_context)
        if not kv_split:
            own = _own_kv_heads(num_kv, tensor, devices)
            keys, values = jax.tree.map(lambda x: jnp.take(x, own, axis=2), (keys, values))
        return compute(queries, keys, values, query_meta, key_meta)

    query = PartitionSpec(rows, context or None, tensor or None)
    key = PartitionSpec(rows, key_context or None, tensor if tensor and kv_split else None)
    # Metadata of keys is whole on every device: it is small, and each lists its own tiles.
    metadata = PartitionSpec(rows, context or None), PartitionSpec(rows)
    return per_shard(inner, (query, key, key, *metadata), query)


def _shape(parts: Parts) -> tuple[int, ...]:
    return next(p.shape for p in parts if p is not None)


def _common_length(parts: Parts) -> int:
    """The greatest common divisor of the parts' lengths."""
    return math.gcd(*(p.shape[1] for p in parts if p is not None))


def _all_gather(keys: Parts, values: Parts, axes: tuple[str, ...]) -> tuple[Parts, Parts]:
    """Keys and values of all devices along `axes`, in the order of each part: one collective."""
    both = jax.tree.map(lambda k, v: jnp.concatenate([k, v], axis=2), keys, values)
    gathered = lax.all_gather(join_parts(both), axes, axis=1)  # [B, devices, S here, 2K, H]
    parts = split_parts(gathered, both, axis=2)
    parts = jax.tree.map(lambda x: x.reshape(x.shape[0], -1, *x.shape[3:]), parts)
    num_kv = gathered.shape[3] // 2
    return (
        jax.tree.map(lambda x: x[:, :, :num_kv], parts),
        jax.tree.map(lambda x: x[:, :, num_kv:], parts),
    )


def _own_kv_heads(num_kv: int, axes: tuple[str, ...], devices: int) -> jax.Array:
    """Which KV heads this device's query heads read, int32[K of the device], some repeated.

    As if the KV heads were repeated to the least common multiple of their number and the devices;
    that divides the number of query heads, since both factors do.
    """
    repeated = math.lcm(num_kv, devices)
    each = repeated // devices
    return (lax.axis_index(axes) * each + jnp.arange(each)) * num_kv // repeated
