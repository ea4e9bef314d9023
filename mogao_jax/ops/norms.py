"""RMSNorm, as Qwen2.5 uses it, and AdaLN's modulation after it (paper section 3.1).

Axes: B batch, I images of a row, L tokens, F or D features.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mogao_jax.sharding.ambient import LENGTH_AXES, axis_size

_SCOPE = "modulation"  # its name in profiles


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
    """Both sums of the backward pass (over D for x, over tokens for scale) are matmuls.

    XLA's CPU backend would fuse reductions with the operations around them into loops that take
    fifteen times as long.
    """
    x, scale, inverse = residuals
    dim = x.shape[-1]
    wide, grad, scale_32 = (a.astype(jnp.float32) for a in (x, grad, scale))
    product = wide * grad
    if axis_size(LENGTH_AXES) > 1:  # tokens are sharded: rows and tokens cannot be one axis
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
    """RMSNorm with a weight parameter `scale` [D], at first ones; `eps` as of `rms_norm`."""

    eps: float = 1e-6
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        ones = nn.initializers.ones_init()
        scale = self.param("scale", ones, (x.shape[-1],), self.param_dtype)
        return rms_norm(x, scale, self.eps)


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """x * (1 + scale) + shift, in x's dtype; shift = scale = 0 is the identity."""
    with jax.named_scope(_SCOPE):
        return x * (1 + scale.astype(x.dtype)) + shift.astype(x.dtype)


@jax.custom_vjp
def per_token(table: jax.Array, index: jax.Array) -> jax.Array:
    """Gives every token the entry of the image it belongs to.

    Forward is a gather. Backward is a matmul with the one-hot index, instead of the scatter-add
    that differentiation would give: with so many equal indices a scatter-add is serial on
    accelerators, and I is small enough that the matmul costs about as much on a CPU.

    Args:
      table: [B, I, F] one entry per image.
      index: int32[B, L] entry of each token; -1 (padding) gives zeros and takes no gradient.
    Returns:
      [B, L, F] in the table's dtype.
    """
    return _gather(table, index)


def _gather(table: jax.Array, index: jax.Array) -> jax.Array:
    with jax.named_scope(_SCOPE):
        entries = jax.vmap(lambda t, i: t.at[i].get(mode="clip"))(table, index)
        return jnp.where(index[..., None] >= 0, entries, jnp.zeros((), table.dtype))


def _per_token_forward(table, index):
    # An array of no elements carries the table's shape and dtype to the backward pass.
    return _gather(table, index), (index, table[..., :0])


def _per_token_backward(residuals, cotangent):
    index, empty = residuals
    with jax.named_scope(_SCOPE):
        # one_hot(-1) is all zeros.
        one_hot = jax.nn.one_hot(index, empty.shape[1], dtype=cotangent.dtype, axis=1)  # [B, I, L]
        gradient = jax.lax.dot_general(
            one_hot,
            cotangent,
            (((2,), (1,)), ((0,), (0,))),
            preferred_element_type=jnp.float32,
            precision=jax.lax.Precision.HIGHEST,  # of float32 tables, also on a TPU
        )
        return gradient.astype(empty.dtype), None


per_token.defvjp(_per_token_forward, _per_token_backward)
