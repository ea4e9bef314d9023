"""Attention over a row in parts, by token metadata: the one entry, whatever computes it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

from mogao_jax.ops.attention.choice import block_sizes, choose
from mogao_jax.ops.attention.dense import dense_attention
from mogao_jax.ops.attention.over_mesh import over_mesh
from mogao_jax.ops.attention.pallas_gpu import gpu_attention
from mogao_jax.ops.attention.pallas_tpu import pallas_attention
from mogao_jax.ops.attention.parts import Parts
from mogao_jax.ops.attention.xla import blockwise_attention
from mogao_jax.sharding.ambient import BATCH_AXES, LENGTH_AXES


def attention(
    queries: Parts,
    keys: Parts,
    values: Parts,
    query_meta: Parts,
    key_meta: Parts,
    *,
    implementation: str = "auto",
    block_q: int = 0,
    block_kv: int = 0,
    text_reads_vae: bool = False,
    batch_axes: tuple[str, ...] = BATCH_AXES,
    head_axes: tuple[str, ...] = ("tensor",),
    length_axes: tuple[str, ...] = LENGTH_AXES,
) -> Parts:
    """Softmax attention where `can_attend` allows it (docs/method.md section 4).

    Scores are scaled by 1 / sqrt(H); scores and softmax are float32 whatever the dtype. Parts
    that a part never reads are never computed. A query that may read nothing (padding) gives 0
    and takes no gradient. Under an ambient mesh (`jax.set_mesh`) every device works on its own
    rows, heads and queries (over_mesh.py); only the split of queries communicates.

    Args:
      queries: [B, T, N, H] per part (`Parts(und, clean, noised)`); None for an absent part.
      keys, values: [B, S, K, H] per part, N a multiple of K; lengths need not be the queries'.
      query_meta, key_meta: TokenMeta of int32[B, T] and int32[B, S] per part, present where the
        arrays are. Any order of tokens is right; sorted by (segment, order) is fast.
      implementation: "xla" is blockwise anywhere, "pallas_tpu" and "pallas_gpu"
        the same as kernels, "dense" holds [B, N, T, S] (short rows, tests); "auto": by this
        process's devices (choice.py).
      block_q, block_kv: tokens per block; lengths need not be multiples. Small blocks follow the
        mask closely (64 was fastest on a CPU with images of some 60 tokens), large ones cost
        less per pair. 0: what suits the implementation.
      text_reads_vae: VAE-only understanding (ablations A and B): und reads clean VAE tokens.
      batch_axes, head_axes, length_axes: mesh axes that rows, heads and queries are split over.
    Returns:
      Parts of [B, T, N, H] in the queries' dtype.
    Raises:
      ValueError: for shapes that do not fit each other, or an unknown implementation.
    """
    _check(queries, keys, values, query_meta, key_meta)
    implementation = choose(implementation, jax.default_backend())
    block_q, block_kv = block_sizes(implementation, block_q, block_kv)
    blocks: dict[str, Any] = {"block_q": block_q, "block_kv": block_kv}
    functions: dict[str, Callable[..., Parts]] = {
        "dense": dense_attention,
        "xla": functools.partial(blockwise_attention, **blocks),
        "pallas_tpu": functools.partial(pallas_attention, **blocks),
        "pallas_gpu": functools.partial(gpu_attention, **blocks),
    }
    compute: Callable[..., Parts] = functools.partial(
        functions[implementation], text_reads_vae=text_reads_vae
    )
    compute = over_mesh(
        compute,
        queries,
        keys,
        batch_axes=batch_axes,
        head_axes=head_axes,
        length_axes=length_axes,
    )
    with jax.named_scope("attention"):  # so that a profile can tell it apart
        return compute(queries, keys, values, query_meta, key_meta)


def _check(queries: Parts, keys: Parts, values: Parts, query_meta: Parts, key_meta: Parts) -> None:
    for name, arrays, meta in (("query", queries, query_meta), ("key", keys, key_meta)):
        for part in Parts._fields:
            x, m = getattr(arrays, part), getattr(meta, part)
            if (x is None) != (m is None):
                raise ValueError(f"{name} part {part!r}: arrays and metadata must both be there")
            if x is not None and any(f.shape != x.shape[:2] for f in m):
                raise ValueError(
                    f"{name} part {part!r}: metadata must be of shape {x.shape[:2]}, "
                    f"got {[f.shape for f in m]}"
                )
    shapes = [None if p is None else p.shape for p in keys]
    if shapes != [None if p is None else p.shape for p in values]:
        raise ValueError("keys and values must be of the same shapes")
    if all(p is None for p in queries) or all(p is None for p in keys):
        raise ValueError("attention needs at least one part of queries and one of keys")
    heads = {p.shape[2] for p in queries if p is not None}
    kv_heads = {p.shape[2] for p in keys if p is not None}
    head_dims = {p.shape[3] for p in (*queries, *keys) if p is not None}
    batches = {p.shape[0] for p in (*queries, *keys) if p is not None}
    if len(heads) > 1 or len(kv_heads) > 1 or len(head_dims) > 1 or len(batches) > 1:
        raise ValueError(
            f"parts disagree: query heads {heads}, key heads {kv_heads}, head sizes {head_dims}, "
            f"batch sizes {batches}"
        )
    if max(heads) % max(kv_heads):
        raise ValueError(f"query heads ({max(heads)}) must be a multiple of {max(kv_heads)}")
