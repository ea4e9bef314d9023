"""Guided flow: from noise to an image's latents, for all images and guidance contexts at once.

v = v_empty + gamma_img (v_img - v_empty) + gamma (v_full - v_img)  (docs/method.md section 6)

Axes: R images, J lines (an image in one context), N VAE tokens of the largest image, C channels of
a token.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mogao_jax import flow
from mogao_jax.config.schema import ObjectiveConfig
from mogao_jax.models import cache as kv_cache
from mogao_jax.models.modules import Modules
from mogao_jax.models.mogao import Mogao, MogaoInputs, example_inputs
from mogao_jax.ops.attention.parts import Parts
from mogao_jax.sampling.history import CachedSequence
from mogao_jax.sampling.programs import Probe, tell
from mogao_jax.sequence.batch import EMPTY, FULL, IMAGE_ONLY
from mogao_jax.sequence.masking import VAE_NOISED, TokenMeta


class GuidanceBatch(NamedTuple):
    """The images to generate, each in the contexts that its guidance needs."""

    rows: Any  # int32[J] row of the cache
    image: Any  # int32[J] which image a line is of
    meta: TokenMeta  # int32[J, N]
    positions: Any  # float32[J, N, 3]
    index: Any  # int32[R, 3] line of an image in each context, -1 for none
    weights: Any  # float32[R, 3] of the contexts' predictions
    interval: Any  # float32[R, 2] of t, where guidance applies


class FlowSettings(NamedTuple):
    """What `integrate_flow` is compiled for."""

    und_length: int  # how much of the cache's rows is read
    clean_length: int
    solver: Literal["euler", "heun"]


def context_weights(scale: float, image_scale: float, *, has_image: bool) -> dict[int, float]:
    """The weight of each context's prediction, {context: weight}; contexts of weight 0 left out.

    Args:
      scale, image_scale: gamma and gamma_img. Equal, they make ordinary guidance with two
        contexts; at 1 both, the full prediction alone.
      has_image: whether the history has an image. If not, the image-only context is the empty
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
    """The guided velocity of every image.

    Args:
      velocity: float32[J, N, C], a prediction per image and context.
      t: float32[R] timestep of each image.
      index: int32[R, 3] which line of `velocity` is an image's (full, image-only, empty)
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


def noise(seed: int, index: int, num_tokens: int, channels: int) -> np.ndarray:
    """Where an image begins: float32[num_tokens, channels], standard normal.

    `seed` is the request's, `index` that of the image among those of its document.
    """
    return np.random.default_rng([seed, index]).standard_normal((num_tokens, channels), np.float32)


@functools.lru_cache(maxsize=64)
def time_grid(
    num_steps: int, num_tokens: int, objective: ObjectiveConfig, shift: float | None
) -> np.ndarray:
    """Timesteps of one image, float32[num_steps + 1], from 0 (noise) to 1 (data); read-only."""
    factor = flow.timestep_shift(objective, num_tokens) if shift is None else shift
    even = np.linspace(0.0, 1.0, num_steps + 1, dtype=np.float32)
    timesteps = np.asarray(flow.shift_timesteps(even, np.float32(factor)), np.float32)
    timesteps.flags.writeable = False
    return timesteps


def build_guidance_batch(
    contexts: Sequence[dict[int, CachedSequence]],
    weights: Sequence[dict[int, float]],
    intervals: Sequence[tuple[float, float]],
    grids: Sequence[tuple[int, int]],
    *,
    num_images: int,
    num_lines: int,
    num_tokens: int,
    pad_row: int,
) -> GuidanceBatch:
    """Lays out the lines of some images, padded to R, J and N.

    Args:
      contexts: of each image, {context: its history}; everything in the cache.
      weights: see `context_weights`; lines are made for these contexts.
      grids: (rows, columns) of VAE tokens.
      pad_row: a row beyond the cache, for lines that are padding.
    """
    batch = GuidanceBatch(
        rows=np.full(num_lines, pad_row, np.int32),
        image=np.zeros(num_lines, np.int32),
        meta=TokenMeta(*(np.zeros((num_lines, num_tokens), np.int32) for _ in range(3))),
        positions=np.zeros((num_lines, num_tokens, 3), np.float32),
        index=np.full((num_images, 3), -1, np.int32),
        weights=np.zeros((num_images, 3), np.float32),
        interval=np.zeros((num_images, 2), np.float32),
    )
    batch.meta.kind[:] = VAE_NOISED
    line = 0
    for image, grid in enumerate(grids):
        n = grid[0] * grid[1]
        batch.interval[image] = intervals[image]
        for name, weight in weights[image].items():
            context = contexts[image][name]
            batch.index[image, name], batch.weights[image, name] = line, weight
            batch.rows[line], batch.image[line] = context.slot, image
            placed = context.cursor.noised(grid)
            batch.meta.segment[line, :n], batch.meta.order[line, :n] = 1, placed.order
            batch.positions[line, :n] = placed.positions
            line += 1
    return batch


def integrate_flow(
    modules: Modules,
    params: Any,
    cache: Parts,
    x: jax.Array,
    timesteps: jax.Array,
    num_steps: jax.Array,
    batch: GuidanceBatch,
    *,
    settings: FlowSettings,
    probe: Probe | None = None,
) -> jax.Array:
    """Integrates the flow over some steps. A program: to be jitted. The cache is only read.

    Args:
      x: float32[R, N, C] the images at timesteps[0].
      timesteps: float32[c + 1, R], of which the first `num_steps` + 1 are used. Where two are
        equal an image stays as it is.
      settings: what differs is another program.
    Returns:
      float32[R, N, C] the images at timesteps[num_steps].
    """
    und, clean, solver = settings
    work = Parts(
        und=kv_cache.take(cache.und, batch.rows, und),
        clean=kv_cache.take(cache.clean, batch.rows, clean) if clean else None,
    )

    def velocity(x: jax.Array, t: jax.Array) -> jax.Array:
        inputs = noised_inputs(modules.model, x[batch.image], t[batch.image], batch)
        out = modules.model.apply({"params": params}, inputs, work).velocity
        seen = {"row": batch.rows, "x": x[batch.image], "t": t[batch.image]}
        tell(probe, "velocity", seen | {"velocity": out})
        return combine(out, t, batch.index, batch.weights, batch.interval)

    def step(i: jax.Array, x: jax.Array) -> jax.Array:
        t, t_next = timesteps[i], timesteps[i + 1]
        if solver == "euler":
            return flow.euler_step(velocity(x, t), x, t, t_next)
        return flow.heun_step(velocity, x, t, t_next)

    return lax.fori_loop(0, num_steps, step, x)


def noised_inputs(model: Mogao, x: jax.Array, t: jax.Array, batch: GuidanceBatch) -> MogaoInputs:
    """Inputs of noised tokens x[J, N, C] at t[J] alone."""
    none = example_inputs(model, (x.shape[0], 0, 0, 0, 0), num_patches=0)
    return none._replace(
        noised_latents=x,
        timesteps=t[:, None],
        noised_index=jnp.where(batch.meta.segment > 0, 0, -1),
        meta=none.meta._replace(noised=batch.meta),
        positions=none.positions._replace(noised=batch.positions),
    )
