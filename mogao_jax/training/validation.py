"""Low-variance validation: the same images, timesteps and noise at every evaluation.

"A reduction of the velocity loss on the 0.001 level leads to a significant improvement" (paper,
section 4.5): differences that small are seen only if nothing else differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from mogao_jax.models.system import EncoderParams, System
from mogao_jax.sequence.batch import PackedBatch
from mogao_jax.sequence.masking import PADDING_SEGMENT, VIT
from mogao_jax.sharding.mesh import global_batch
from mogao_jax.training.metrics import Accumulator, labels
from mogao_jax.training.step import make_eval_step

GOLDEN_RATIO = (5**0.5 - 1) / 2


def spread_uniforms(batches: Sequence[PackedBatch]) -> list[np.ndarray]:
    """One number in (0, 1) per place of the image tables, float32[B, I], evenly spread.

    Images take the points of the golden-ratio sequence in order, so that any stretch of them
    covers the timesteps evenly; places without an image get 1/2.
    """
    count = 0
    spread = []
    for batch in batches:
        is_image = np.asarray(batch.images.size)[..., 0] > 0
        order = count + np.cumsum(is_image.reshape(-1)).reshape(is_image.shape)
        u = (order * GOLDEN_RATIO) % 1.0
        spread.append(np.where(is_image, np.clip(u, 1e-4, 1 - 1e-4), 0.5).astype(np.float32))
        count += int(is_image.sum())
    return spread


def hide_pictures(batch: PackedBatch) -> PackedBatch:
    """The batch with its ViT and clean VAE tokens made padding: text without its pictures.

    For batches laid out in empty context, in which no generated picture reads them either.
    """
    und, clean = batch.und, batch.clean
    segment = np.where(und.meta.kind == VIT, PADDING_SEGMENT, und.meta.segment)
    nothing = np.full_like(clean.meta.segment, PADDING_SEGMENT)
    return batch._replace(
        und=und._replace(meta=und.meta._replace(segment=segment)),
        clean=clean._replace(meta=clean.meta._replace(segment=nothing)),
    )


def make_evaluator(
    system: System,
    encoders: EncoderParams,
    mesh: jax.sharding.Mesh,
    batches: Sequence[PackedBatch],
    eval_step: Callable[..., Any] | None = None,
) -> Callable[[Any], dict[str, float]]:
    """A function params -> {metric: value} over a fixed list of host batches [B, ...].

    `eval_step` may be a jitted `make_eval_step(system)`, shared between evaluators.
    """
    step = eval_step or jax.jit(make_eval_step(system))
    uniforms = spread_uniforms(batches)
    names = labels(system.sources, system.config.train.timestep_bins)

    def evaluate(params: Any) -> dict[str, float]:
        accumulator = Accumulator(names)
        for number, (batch, u) in enumerate(zip(batches, uniforms, strict=True)):
            arrays = global_batch(mesh, (batch, u))
            # One program at a time, for simulated CPU devices (see checkpoints/fingerprint.py).
            accumulator.add(number, jax.block_until_ready(step(params, encoders, *arrays)))
        return accumulator.take()

    return evaluate
