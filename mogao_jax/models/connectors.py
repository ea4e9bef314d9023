"""What enters and leaves the transformer: connectors, the timestep, the velocity head.

Axes: B batch, L length, V merged ViT tokens, D embed, C channels (64 per VAE token: 2x2 patches
of 16 latent channels).
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mogao_jax.models.layers import Linear, zeros
from mogao_jax.ops.modulation import modulate
from mogao_jax.ops.norms import RMSNorm


def timestep_sinusoids(timesteps: jax.Array, dim: int, scale: float) -> jax.Array:
    """Sinusoidal features of t, float32[..., dim], cosines first (Ho et al. 2020, as in DiT).

    Args:
      timesteps: float32[...] in [0, 1], t=1 is data.
      dim: number of features, even.
      scale: t is multiplied by it first (config `timestep_scale`).
    """
    half = dim // 2
    frequencies = jnp.exp(-math.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = timesteps.astype(jnp.float32)[..., None] * scale * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)


class TimestepEmbedder(nn.Module):
    """t -> conditioning vector: sinusoids, then a two-layer MLP. float32[...] -> [..., D]."""

    embed_dim: int
    sinusoid_dim: int
    scale: float
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, timesteps: jax.Array) -> jax.Array:
        x = timestep_sinusoids(timesteps, self.sinusoid_dim, self.scale)
        kwargs: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        kwargs["use_bias"] = True
        hidden = (self.sinusoid_dim, self.embed_dim)
        x = nn.silu(Linear(hidden, (None, "embed"), name="in", **kwargs)(x))
        square = (self.embed_dim, self.embed_dim)
        return Linear(square, ("embed", None), name="out", **kwargs)(x)


class VitMerger(nn.Module):
    """Our trainable merger: each 2x2 block of ViT features becomes one token.

    [choice] LayerNorm, concatenation, Linear, GELU, Linear: the shape of Qwen2-VL's own merger,
    but into this backbone's width. [B, V * merge^2, C] -> [B, V, D].
    """

    embed_dim: int
    merge_size: int
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        batch, num_patches, channels = features.shape
        block = self.merge_size**2
        x = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, param_dtype=self.param_dtype, name="norm")(
            features
        )
        x = x.reshape(batch, num_patches // block, block * channels)
        kwargs: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        kwargs["use_bias"] = True
        width = block * channels
        x = Linear((width, width), ("embed", "mlp"), name="in", **kwargs)(x)
        x = nn.gelu(x, approximate=False)
        return Linear((width, self.embed_dim), ("mlp", "embed"), name="out", **kwargs)(x)


class VelocityHead(nn.Module):
    """Norm, AdaLN (shift and scale per token), and a zero-initialised projection to velocities.

    x[B, L, D], conditioning[B, L, 2D] -> [B, L, C].
    """

    channels: int
    eps: float
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, conditioning: jax.Array) -> jax.Array:
        shift, scale = jnp.split(conditioning, 2, -1)
        x = RMSNorm(eps=self.eps, param_dtype=self.param_dtype, name="norm")(x)
        return Linear(
            (x.shape[-1], self.channels),
            ("embed", None),
            use_bias=True,
            kernel_init=zeros,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="out",
        )(modulate(x, shift, scale))
