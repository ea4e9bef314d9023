"""AdaLN-Zero's pieces (paper section 3.1): modulation computed per image, used per token.

Axes: B batch, I images of a row, L tokens, F or D features.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

SCOPE = "modulation"  # its name in profiles


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """x * (1 + scale) + shift, in x's dtype; shift = scale = 0 is the identity."""
    with jax.named_scope(SCOPE):
        return x * (1 + scale.astype(x.dtype)) + shift.astype(x.dtype)


@jax.custom_vjp
def per_token(table: jax.Array, index: jax.Array) -> jax.Array:
    """Gives every token the line of the image it belongs to.

    Forward a gather. Backward a matmul with the one-hot index instead of the scatter-add that
    differentiation would make of it: I is small, so it costs about as much on a CPU, and on
    accelerators it is a plain matmul where a scatter-add with so many equal indices is serial.

    Args:
      table: [B, I, F] one line per image.
      index: int32[B, L] line of each token; -1 (padding) gives zeros and takes no gradient.
    Returns:
      [B, L, F] in the table's dtype.
    """
    return _gather(table, index)


def _gather(table: jax.Array, index: jax.Array) -> jax.Array:
    with jax.named_scope(SCOPE):
        lines = jax.vmap(lambda t, i: t.at[i].get(mode="clip"))(table, index)
        return jnp.where(index[..., None] >= 0, lines, jnp.zeros((), table.dtype))


def _per_token_forward(table, index):
    # An array of no elements carries the table's shape and dtype to the backward pass.
    return _gather(table, index), (index, table[..., :0])


def _per_token_backward(residuals, cotangent):
    index, empty = residuals
    with jax.named_scope(SCOPE):
        # one_hot makes a line of zeros of -1.
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
