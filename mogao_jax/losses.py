"""Losses as (sum of w * loss, sum of w): added over micro-steps and devices, divided once.

The paper's "global batch reduced loss" (section 3.3): with token i on rank n having loss l and
weight w, the wanted gradient is that of sum_n sum_i w l / sum_n sum_i w. Means taken per rank and
then averaged are biased wherever ranks hold different weight sums. Here the numerator and the
denominator are each summed over the whole global batch, by an explicit `psum` over the mesh.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mogao_jax.sharding.ambient import BATCH_AXES, ambient_mesh


class WeightedMean(NamedTuple):
    """Numerator and denominator of a weighted mean: float32 scalars, or arrays of one shape."""

    total: Any
    weight: Any

    def __add__(self, other):
        return WeightedMean(self.total + other.total, self.weight + other.weight)

    def mean(self) -> jax.Array:
        """total / weight, and 0 where nothing was weighed (a batch without one modality)."""
        return safe_divide(self.total, self.weight)


def safe_divide(total: jax.Array, weight: jax.Array) -> jax.Array:
    """total / weight; 0 where weight is 0, with a gradient free of NaN."""
    return jnp.where(weight > 0, total / jnp.where(weight > 0, weight, 1.0), 0.0)


def flow_loss(velocity: jax.Array, target: jax.Array) -> jax.Array:
    """Squared error per token, float32[B, N], of velocities [B, N, C] (equation 5).

    The mean over the C channels of a token, so that its size does not depend on the patch size.
    """
    return jnp.mean(jnp.square(velocity.astype(jnp.float32) - target.astype(jnp.float32)), -1)


def global_sum(x: jax.Array) -> jax.Array:
    """Sum of all elements of x [B, ...] over the global batch: local sums, then one psum.

    Inside a mesh whose batch axes divide B, each device sums its own rows and a `psum` over
    those axes adds the sums up; the result is replicated. Without a mesh it is a plain sum.
    """
    mesh = ambient_mesh()
    if mesh is None:
        return jnp.sum(x)
    spec = PartitionSpec(BATCH_AXES, *(None,) * (x.ndim - 1))
    reduce = jax.shard_map(
        lambda local: jax.lax.psum(jnp.sum(local), BATCH_AXES),
        mesh=mesh,
        in_specs=spec,
        out_specs=PartitionSpec(),
    )
    return reduce(x)


def weighted_mean(losses: jax.Array, weights: jax.Array) -> WeightedMean:
    """Numerator and denominator over the global batch of per-token losses [B, L]."""
    return WeightedMean(global_sum(losses * weights), global_sum(weights))
