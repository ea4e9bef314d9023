"""Guidance with three contexts: which predictions a picture needs, and how they are combined.

v = v_empty + gamma_img (v_img - v_empty) + gamma (v_full - v_img)  (docs/method.md section 6)
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mogao_jax.sequence.batch import EMPTY, FULL, IMAGE_ONLY


def context_weights(scale: float, image_scale: float, *, has_image: bool) -> dict[int, float]:
    """The weight of each context's prediction, {context: weight}; contexts of weight 0 left out.

    Args:
      scale, image_scale: gamma and gamma_img. Equal, they make ordinary guidance with two
        contexts; at 1 both, the full prediction alone.
      has_image: whether the history has a picture. If not, the image-only context is the empty
        one.
    """
    weights = {
        FULL: scale,
        IMAGE_ONLY: image_scale - scale if has_image else 0.0,
        EMPTY: 1.0 - (image_scale if has_image else scale),
    }
    return {c: float(w) for c, w in weights.items() if w or c == FULL}


def combine(
    velocity: jax.Array, t: jax.Array, index: Any, weights: Any, interval: Any
) -> jax.Array:
    """The guided velocity of every picture.

    Args:
      velocity: float32[J, N, C], a prediction per picture and context.
      t: float32[R] timestep of each picture.
      index: int32[R, 3] which line of `velocity` is a picture's (full, image-only, empty)
        prediction, -1 for none; the full one must be there.
      weights: float32[R, 3] of these.
      interval: float32[R, 2] the (low, high) of t, ends included, outside of which the full
        prediction is taken alone.
    Returns:
      float32[R, N, C].
    """
    is_guided = (t >= interval[:, 0]) & (t <= interval[:, 1])
    weights = jnp.where(is_guided[:, None], weights, jnp.asarray([1.0, 0.0, 0.0]))
    total = jnp.zeros(())
    for context in (FULL, IMAGE_ONLY, EMPTY):
        picked = velocity[jnp.maximum(index[:, context], 0)]
        # Not by the weight alone: 0 times a prediction that is infinite would be NaN.
        used = (index[:, context] >= 0) & (weights[:, context] != 0)
        term = weights[:, context, None, None] * picked
        total = total + jnp.where(used[:, None, None], term, 0.0)
    return total
