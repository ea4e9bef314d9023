"""Linear layers with logical axis names, shared by the transformer's modules."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

# Fan-in scaled: right at any width. Checkpoints ported from an LLM do not use it.
fan_in = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")


def linear(
    features: int | Sequence[int],
    kernel_axes: tuple[str | None, ...],
    *,
    axis: int | Sequence[int] = -1,
    use_bias: bool = False,
    kernel_init=fan_in,
    dtype=jnp.float32,
    param_dtype=jnp.float32,
    name: str | None = None,
) -> nn.DenseGeneral:
    """A dense layer over the given axes whose parameters carry logical axis names.

    Args:
      features: output shape after the contracted axes.
      kernel_axes: logical names of the kernel's dimensions (inputs, then outputs).
      axis: contracted input axes.
    """
    num_out = 1 if isinstance(features, int) else len(features)
    bias_axes = kernel_axes[-num_out:]
    return nn.DenseGeneral(
        features,
        axis=axis,
        use_bias=use_bias,
        dtype=dtype,
        param_dtype=param_dtype,
        kernel_init=nn.with_logical_partitioning(kernel_init, kernel_axes),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), bias_axes),
        name=name,
    )


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Tells the partitioner how an activation lies, by logical names (no mesh: no effect)."""
    return nn.with_logical_constraint(x, axes)
