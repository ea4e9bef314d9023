"""Drawing: the flow is followed from noise to latents, for all pictures and contexts at once.

Axes: R pictures, J lines (a picture in one context), N VAE tokens of the largest picture, C
channels of a token.
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
from mogao_jax.models.modules import Modules
from mogao_jax.models.mogao import MogaoInputs
from mogao_jax.ops.attention.parts import Parts
from mogao_jax.sampling import guidance, kv_cache
from mogao_jax.sampling.history import CachedSequence
from mogao_jax.sampling.prefill import no_noised
from mogao_jax.sampling.probing import Probe, tell
from mogao_jax.sequence.masking import TEXT, VAE_CLEAN, VAE_NOISED, TokenMeta


class GuidanceBatch(NamedTuple):
    """The pictures to draw, each in the contexts that its guidance needs."""

    rows: Any  # int32[J] row of the cache
    picture: Any  # int32[J] which picture a line is of
    meta: TokenMeta  # int32[J, N]
    positions: Any  # float32[J, N, 3]
    index: Any  # int32[R, 3] line of a picture in each context, -1 for none
    weights: Any  # float32[R, 3] of the contexts' predictions
    interval: Any  # float32[R, 2] of t, where guidance applies


def noise(seed: int, index: int, num_tokens: int, channels: int) -> np.ndarray:
    """Where a picture begins: float32[num_tokens, channels], standard normal.

    Args:
      seed: the request's.
      index: of the picture among those of its document.
    """
    rng = np.random.default_rng([seed, index])
    return rng.standard_normal((num_tokens, channels), np.float32)


@functools.lru_cache(maxsize=64)
def time_grid(
    num_steps: int, num_tokens: int, objective: ObjectiveConfig, shift: float | None
) -> np.ndarray:
    """Timesteps of one picture, float32[num_steps + 1], from 0 (noise) to 1 (data); read-only."""
    factor = flow.timestep_shift(objective, num_tokens) if shift is None else shift
    even = np.linspace(0.0, 1.0, num_steps + 1, dtype=np.float32)
    times = np.asarray(flow.shift_timesteps(even, np.float32(factor)), np.float32)
    times.flags.writeable = False
    return times


def build_guidance_batch(
    contexts: Sequence[dict[int, CachedSequence]],
    weights: Sequence[dict[int, float]],
    intervals: Sequence[tuple[float, float]],
    grids: Sequence[tuple[int, int]],
    *,
    num_pictures: int,
    num_lines: int,
    num_tokens: int,
    nowhere: int,
) -> GuidanceBatch:
    """Lays out the lines of some pictures, padded to R, J and N.

    Args:
      contexts: of each picture, {context: its history}; everything in the cache.
      weights: see `guidance.context_weights`; lines are made for these contexts.
      grids: (rows, columns) of VAE tokens.
      nowhere: a row beyond the cache, for lines that are padding.
    """
    lines = GuidanceBatch(
        rows=np.full(num_lines, nowhere, np.int32),
        picture=np.zeros(num_lines, np.int32),
        meta=TokenMeta(*(np.zeros((num_lines, num_tokens), np.int32) for _ in range(3))),
        positions=np.zeros((num_lines, num_tokens, 3), np.float32),
        index=np.full((num_pictures, 3), -1, np.int32),
        weights=np.zeros((num_pictures, 3), np.float32),
        interval=np.zeros((num_pictures, 2), np.float32),
    )
    lines.meta.kind[:] = VAE_NOISED
    line = 0
    for picture, grid in enumerate(grids):
        n = grid[0] * grid[1]
        lines.interval[picture] = intervals[picture]
        for name, weight in weights[picture].items():
            context = contexts[picture][name]
            lines.index[picture, name], lines.weights[picture, name] = line, weight
            lines.rows[line], lines.picture[line] = context.slot, picture
            lines.meta.segment[line, :n] = 1
            placed = context.cursor.noised(grid)
            lines.meta.order[line, :n], lines.positions[line, :n] = placed
            line += 1
    return lines


def draw(
    modules: Modules,
    params: Any,
    cache: Parts,
    x: jax.Array,
    timesteps: jax.Array,
    num_steps: jax.Array,
    lines: GuidanceBatch,
    *,
    und_length: int,
    clean_length: int,
    solver: Literal["euler", "heun"],
    probe: Probe | None = None,
) -> jax.Array:
    """Follows the flow for some steps. A program: to be jitted. The cache is only read.

    Args:
      x: float32[R, N, C] the pictures at timesteps[0].
      timesteps: float32[c + 1, R], of which the first `num_steps` + 1 are used. Where two are
        equal a picture stays as it is.
      und_length, clean_length: how much of the cache's rows is looked at.
    Returns:
      float32[R, N, C] the pictures at timesteps[num_steps].
    """
    work = Parts(
        und=kv_cache.take(cache.und, lines.rows, und_length),
        clean=kv_cache.take(cache.clean, lines.rows, clean_length) if clean_length else None,
    )

    def velocity(x: jax.Array, t: jax.Array) -> jax.Array:
        inputs = noised_inputs(x[lines.picture], t[lines.picture], lines)
        out = modules.model.apply({"params": params}, inputs, work).velocity
        seen = {"row": lines.rows, "x": x[lines.picture], "t": t[lines.picture]}
        tell(probe, "velocity", seen | {"velocity": out})
        return guidance.combine(out, t, lines.index, lines.weights, lines.interval)

    def step(i: jax.Array, x: jax.Array) -> jax.Array:
        t, t_next = timesteps[i], timesteps[i + 1]
        if solver == "euler":
            return flow.euler_step(velocity(x, t), x, t, t_next)
        return flow.heun_step(velocity, x, t, t_next)

    return lax.fori_loop(0, num_steps, step, x)


def noised_inputs(x: jax.Array, t: jax.Array, lines: GuidanceBatch) -> MogaoInputs:
    """Inputs of noised tokens x[J, N, C] at t[J] alone."""
    num_lines = x.shape[0]
    absent, no_positions = no_noised(num_lines)
    und, clean = (absent._replace(kind=absent.segment + kind) for kind in (TEXT, VAE_CLEAN))
    return MogaoInputs(
        tokens=absent.segment,
        vit_index=absent.segment,
        vit_features=x[:, :0],
        clean_latents=x[:, :0],
        noised_latents=x,
        timesteps=t[:, None],
        noised_index=jnp.where(lines.meta.segment > 0, 0, -1),
        meta=Parts(und, clean, lines.meta),
        positions=Parts(no_positions, no_positions, lines.positions),
    )
