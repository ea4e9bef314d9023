"""Layers around attention: linear, connectors, the timestep's embedding, the velocity head.

Axes: B batch, L length, V merged ViT tokens, D embed, N heads, H head_dim, C channels (64 per VAE
token: 2x2 patches of 16 latent channels).
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mogao_jax.config.schema import ModelConfig
from mogao_jax.ops.norms import RMSNorm, modulate
from mogao_jax.sharding.ambient import LENGTH_AXES, axis_size
from mogao_jax.sharding.rules import all_gather

# Scaled by fan-in, which suits any width. Parameters ported from an LLM replace it.
fan_in = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
zeros = nn.initializers.zeros_init()


class Linear(nn.Module):
    """x @ kernel + bias over the last `len(shape) - num_out` axes of x.

    All other axes of x are joined, so that forward and backward are plain two-dimensional
    matmuls: with a batch axis in between, XLA's CPU backend first writes a transposed copy of
    every gradient, which took longer than the matmul itself.
    """

    shape: tuple[int, ...]  # inputs, then outputs: (D, N, H) makes heads, (N, H, D) joins them
    axes: tuple[str | None, ...]  # logical names of the kernel's axes
    num_out: int = 1  # how many axes of the kernel are outputs
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

        init = nn.with_logical_partitioning(flat_init, self.axes)
        kernel = self.param("kernel", init, self.shape, self.param_dtype)
        lead = x.shape[: x.ndim - len(inputs)]
        # Rows and tokens that are both sharded cannot become one axis without communication.
        joined = lead if axis_size(LENGTH_AXES) > 1 else (-1,)
        x = x.reshape(*joined, num_in).astype(self.dtype)
        kernel = all_gather(kernel.astype(self.dtype), *self.axes)
        y = x @ kernel.reshape(num_in, num_features)
        if self.use_bias:
            init = nn.with_logical_partitioning(zeros, self.axes[-self.num_out :])
            bias = self.param("bias", init, outputs, self.param_dtype)
            y = y + bias.reshape(-1).astype(self.dtype)
        return y.reshape(*lead, *outputs)


def dtypes(config: ModelConfig) -> dict[str, Any]:
    """The dtypes of a layer, as keyword arguments of Linear."""
    return {"dtype": jnp.dtype(config.dtype), "param_dtype": jnp.dtype(config.param_dtype)}


def norm(config: ModelConfig, **kwargs: Any) -> RMSNorm:
    """The transformer's RMSNorm."""
    return RMSNorm(eps=config.rms_norm_eps, param_dtype=jnp.dtype(config.param_dtype), **kwargs)


def timestep_sinusoids(timesteps: jax.Array, dim: int, scale: float) -> jax.Array:
    """Sinusoidal features of t, float32[..., dim], cosines first (Ho et al. 2020, as in DiT).

    `dim` is even; t in [0, 1] (1 is data) is multiplied by `scale` first.
    """
    half = dim // 2
    frequencies = jnp.exp(-math.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = timesteps.astype(jnp.float32)[..., None] * scale * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)


class TimestepEmbedder(nn.Module):
    """t -> conditioning vector: sinusoids, then a two-layer MLP. float32[...] -> [..., D]."""

    config: ModelConfig

    @nn.compact
    def __call__(self, timesteps: jax.Array) -> jax.Array:
        c = self.config
        kwargs = {"use_bias": True, **dtypes(c)}
        x = timestep_sinusoids(timesteps, c.timestep_embed_dim, c.timestep_scale)
        x = Linear((c.timestep_embed_dim, c.embed_dim), (None, "embed"), name="in", **kwargs)(x)
        return Linear((c.embed_dim, c.embed_dim), ("embed", None), name="out", **kwargs)(nn.silu(x))


class VitMerger(nn.Module):
    """Our trainable merger: each 2x2 block of ViT features becomes one token.

    [choice] LayerNorm, concatenation, Linear, GELU, Linear: the shape of Qwen2-VL's own merger,
    but into this backbone's width. [B, V * merge^2, C] -> [B, V, D].
    """

    config: ModelConfig
    merge_size: int

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        kwargs = {"use_bias": True, **dtypes(self.config)}
        x = nn.LayerNorm(epsilon=1e-6, name="norm", **dtypes(self.config))(features)
        width = self.merge_size**2 * features.shape[-1]
        x = x.reshape(features.shape[0], -1, width)
        x = Linear((width, width), ("embed", "mlp"), name="in", **kwargs)(x)
        x = nn.gelu(x, approximate=False)
        return Linear((width, self.config.embed_dim), ("mlp", "embed"), name="out", **kwargs)(x)


class VelocityHead(nn.Module):
    """Norm, AdaLN (shift and scale per token), and a zero-initialised projection to velocities.

    x[B, L, D], conditioning[B, L, 2D] -> [B, L, C].
    """

    config: ModelConfig
    channels: int

    @nn.compact
    def __call__(self, x: jax.Array, conditioning: jax.Array) -> jax.Array:
        shift, scale = jnp.split(conditioning, 2, -1)
        x = modulate(norm(self.config, name="norm")(x), shift, scale)
        kwargs = {"use_bias": True, "kernel_init": zeros, **dtypes(self.config)}
        return Linear((x.shape[-1], self.channels), ("embed", None), name="out", **kwargs)(x)
