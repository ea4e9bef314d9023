"""RMSNorm, as Qwen2.5 uses it."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mogao_jax.sharding.ambient import LENGTH_AXES, ways


def rms_norm(x: jax.Array, scale: jax.Array | None = None, eps: float = 1e-6) -> jax.Array:
    """x / rms(x) * scale over the last axis, computed in float32.

    Args:
      x: [..., D], any float dtype; the result has it too.
      scale: [D], or None for no scale (before an AdaLN modulation).
      eps: added to the mean square.
    """
    if scale is None:
        scale = jnp.ones(x.shape[-1], jnp.float32)
    return _scaled_norm(x, scale, eps)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _scaled_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    return _forward(x, scale, eps)[0]


def _forward(x: jax.Array, scale: jax.Array, eps: float):
    wide = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    normal = wide * inverse * scale.astype(jnp.float32)
    return normal.astype(x.dtype), (x, scale, inverse)


def _backward(eps: float, residuals, grad: jax.Array):
    """Both sums of the backward pass (over D for x, over tokens for scale) written as matmuls.

    As reductions, XLA's CPU backend fuses them with what stands around them into loops that
    take fifteen times as long.
    """
    x, scale, inverse = residuals
    dim = x.shape[-1]
    wide, grad, scale_32 = (a.astype(jnp.float32) for a in (x, grad, scale))
    product = wide * grad
    if ways(LENGTH_AXES) > 1:  # rows are split over devices: their tokens cannot be joined
        along = jnp.dot(product, scale_32[:, None], precision="highest")
        tokens = tuple(range(product.ndim - 1))
        d_scale = jnp.tensordot(inverse[..., 0], product, (tokens, tokens), precision="highest")
    else:
        product = product.reshape(-1, dim)
        along = jnp.dot(product, scale_32[:, None], precision="highest").reshape(inverse.shape)
        d_scale = jnp.dot(inverse.reshape(1, -1), product, precision="highest")[0]
    d_x = inverse * (grad * scale_32) - wide * (inverse**3 * along / dim)
    return d_x.astype(x.dtype), d_scale.astype(scale.dtype)


_scaled_norm.defvjp(_forward, _backward)


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
