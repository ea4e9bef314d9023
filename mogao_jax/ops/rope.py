"""Rotary position embeddings over (T, H, W): IL-RoPE and M-RoPE (paper section 3.1).

A head of size d has d/2 rotary pairs; pair i is the components (i, i + d/2) (the rotate-half
layout of Qwen's checkpoints) and turns by `position * theta ** (-2 i / d)`. What differs between
the kinds is only *which* of the three positions turns a pair:

    pair (d = 128)    0    1    2    3   ...   15   16  ...  39   40  ...  47   48  ...  63
    m_rope            T    T    T    T         T    H        H    W        W    W        W
    il_rope           T    H    W    T         T    H        T    H        W    T        T

So IL-RoPE gives height and width high frequencies too, and the lowest ones to time alone. Text
has T = H = W, which is exactly 1-D RoPE under either kind.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

RopeKind = Literal["il_rope", "m_rope"]
T, H, W = 0, 1, 2
SCOPE = "rope"  # its name in profiles


def frequency_axes(head_dim: int, kind: RopeKind, tail: float = 0.25) -> np.ndarray:
    """Which position (0 T, 1 H, 2 W) turns each rotary pair: int32[head_dim / 2].

    Args:
      head_dim: size d of a head, even.
      kind: "il_rope" (equation 9) or "m_rope" (equation 8, scaled in proportion from d = 128).
      tail: il_rope only: the share of pairs, at the low-frequency end, that is for T alone
        (the paper: 16 of 64).
    Raises:
      ValueError: for an odd head_dim, an unknown kind or a tail outside [0, 1].
    """
    if head_dim <= 0 or head_dim % 2:
        raise ValueError(f"head_dim must be positive and even, got {head_dim}")
    pairs = head_dim // 2
    index = np.arange(pairs, dtype=np.int32)
    if kind == "m_rope":
        height_from, width_from = round(pairs * 16 / 64), round(pairs * 40 / 64)
        return (index >= height_from).astype(np.int32) + (index >= width_from)
    if kind == "il_rope":
        if not 0 <= tail <= 1:
            raise ValueError(f"tail must be between 0 and 1, got {tail}")
        tail_from = pairs - round(pairs * tail)
        return np.where(index < tail_from, index % 3, T).astype(np.int32)
    raise ValueError(f"unknown rope kind {kind!r}; use 'il_rope' or 'm_rope'")


def rope_angles(
    positions: jax.Array, head_dim: int, theta: float, kind: RopeKind, tail: float = 0.25
) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the rotation of every token, computed once for all layers.

    Args:
      positions: float32[..., L, 3], (T, H, W); H and W may be fractional.
      head_dim, kind, tail: as for `frequency_axes`.
      theta: the base (beta in the paper).
    Returns:
      (cos, sin), each float32[..., L, head_dim / 2].
    """
    axes = frequency_axes(head_dim, kind, tail)
    # In float64 on the host, rounded once, so that tables do not depend on the device's `pow`.
    exponents = np.arange(head_dim // 2, dtype=np.float64) * 2 / head_dim
    frequencies = (float(theta) ** -exponents).astype(np.float32)
    with jax.named_scope(SCOPE):
        chosen = jnp.take(positions.astype(jnp.float32), axes, axis=-1)  # [..., L, head_dim / 2]
        angles = chosen * frequencies
        return jnp.cos(angles), jnp.sin(angles)


def apply_rope(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates queries or keys [..., L, N, H] by angles [..., L, H / 2], in float32.

    Returns an array of x's dtype.
    """
    with jax.named_scope(SCOPE):
        first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
        cos, sin = cos[..., None, :], sin[..., None, :]  # the same for every head
        rotated = (first * cos - second * sin, second * cos + first * sin)
        return jnp.concatenate(rotated, axis=-1).astype(x.dtype)
