"""RMSNorm, as Qwen2.5 uses it."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def rms_norm(x: jax.Array, scale: jax.Array | None = None, eps: float = 1e-6) -> jax.Array:
    """x / rms(x) * scale over the last axis, computed in float32.

    Args:
      x: [..., D], any float dtype; the result has it too.
      scale: [D], or None for no scale (before an AdaLN modulation).
      eps: added to the mean square.
    """
    wide = x.astype(jnp.float32)
    normal = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    if scale is not None:
        normal = normal * scale.astype(jnp.float32)
    return normal.astype(x.dtype)


class RMSNorm(nn.Module):
    """RMSNorm with a weight parameter `scale` [D].

    Attributes:
      eps: added to the mean square.
      param_dtype: dtype of `scale`.
      scale_init: initialiser of `scale` (wrap it to name its logical axis).
    """

    eps: float = 1e-6
    param_dtype: Any = jnp.float32
    scale_init: nn.initializers.Initializer = nn.initializers.ones_init()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", self.scale_init, (x.shape[-1],), self.param_dtype)
        return rms_norm(x, scale, self.eps)
