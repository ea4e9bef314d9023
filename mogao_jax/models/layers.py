"""Linear layers with logical axis names, shared by the transformer's modules."""

from __future__ import annotations

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mogao_jax.sharding import rules
from mogao_jax.sharding.ambient import LENGTH_AXES, ways

# Fan-in scaled: right at any width. Checkpoints ported from an LLM do not use it.
fan_in = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
zeros = nn.initializers.zeros_init()


class Linear(nn.Module):
    """x @ kernel + bias over the last `len(shape) - num_out` axes of x.

    All other axes of x are joined, so that forward and backward are plain two-dimensional
    matmuls. XLA's CPU backend takes those as they are; with a batch axis in between it writes a
    transposed copy of every gradient first, which took longer than the matmul itself. (Where a
    row is split over devices, they stay.)

    Attributes:
      shape: of the kernel, inputs then outputs: (D, N, H) makes heads, (N, H, D) joins them.
      axes: logical names of the kernel's axes.
      num_out: how many axes of the kernel are outputs.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    num_out: int = 1
    use_bias: bool = False
    kernel_init: nn.initializers.Initializer = fan_in
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inputs, outputs = self.shape[: -self.num_out], self.shape[-self.num_out :]
        num_in, num_features = math.prod(inputs), math.prod(outputs)

        def flat_init(key, shape, dtype):  # the fan of a kernel counts all input axes
            return self.kernel_init(key, (num_in, num_features), dtype).reshape(shape)

        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(flat_init, self.axes),
            self.shape,
            self.param_dtype,
        )
        lead = x.shape[: x.ndim - len(inputs)]
        # Rows and tokens that are both split cannot be joined where they lie.
        joined = lead if ways(LENGTH_AXES) > 1 else (-1,)
        x = x.reshape(*joined, num_in).astype(self.dtype)
        kernel = gathered(kernel.astype(self.dtype), *self.axes)
        y = x @ kernel.reshape(num_in, num_features)
        if self.use_bias:
            bias = self.param(
                "bias",
                nn.with_logical_partitioning(zeros, self.axes[-self.num_out :]),
                outputs,
                self.param_dtype,
            )
            y = y + bias.reshape(-1).astype(self.dtype)
        return y.reshape(*lead, *outputs)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Tells the partitioner how an activation lies, by logical names (no mesh: no effect)."""
    spec = rules.ambient_spec(x.shape, axes)
    return x if spec is None else jax.lax.with_sharding_constraint(x, spec)


def gathered(x: jax.Array, *axes: str | None, over: tuple[str, ...] | None = None) -> jax.Array:
    """A weight (or an activation) made whole over mesh axes; its gradient is cut up again.

    Said in so many words, because the partitioner, left to itself, also likes to cut features
    instead of rows and to exchange activations. What is gathered in the forward pass is summed
    and scattered in the backward one.

    Args:
      axes: logical names of x's axes, as it is stored.
      over: mesh axes, the last one first, each in a step of its own; default: what weights are
        cut over (sharding/rules.py).
    """
    stored = rules.ambient_spec(x.shape, axes)
    if stored is None:
        return x
    over = rules.ambient_param_axes() if over is None else over
    steps = (rules.without(stored, over[i:]) for i in reversed(range(len(over))))
    return _gathered((stored, *steps), x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gathered(specs: tuple[Any, ...], x: jax.Array) -> jax.Array:
    """From lying as specs[0] says to specs[-1], one step at a time; back for the gradient."""
    for spec in specs[1:]:
        x = jax.lax.with_sharding_constraint(x, spec)
    return x


def _gathered_forward(specs, x):
    return _gathered(specs, x), None


def _gathered_backward(specs, residuals, cotangent):
    for spec in reversed(specs[:-1]):
        cotangent = jax.lax.with_sharding_constraint(cotangent, spec)
    return (cotangent,)


_gathered.defvjp(_gathered_forward, _gathered_backward)
