"""Low-variance validation: the same images, timesteps and noise at every evaluation.

"A reduction of the velocity loss on the 0.001 level leads to a significant improvement" (paper,
section 4.5): differences that small are seen only if nothing else differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from mogao_jax.models.modules import EncoderParams, Modules
from mogao_jax.sequence.batch import PackedBatch
from mogao_jax.sequence.masking import PADDING_SEGMENT, VIT
from mogao_jax.sharding import multihost
from mogao_jax.sharding.mesh import global_batch, row_reader
from mogao_jax.training.metrics import Accumulator, labels
from mogao_jax.training.step import make_eval_step

GOLDEN_RATIO = (5**0.5 - 1) / 2


def spread_uniforms(
    batches: Sequence[PackedBatch], before: Sequence[int] | None = None
) -> list[np.ndarray]:
    """One number in (0, 1) per place of the image tables, float32[B, I], evenly spread.

    Images take the points of the golden-ratio sequence in order, so that any stretch of them
    covers the timesteps evenly; places without an image get 1/2.

    Args:
      before: how many images of the whole set stand before the first of each batch
        (`images_before`), where these rows are not all; None: those of the batches before it.
    """
    if before is None:
        before = images_before(np.array([[_num_images(b) for b in batches]]), 0)
    spread = []
    for batch, count in zip(batches, before, strict=True):
        is_image = _is_image(batch)
        order = count + np.cumsum(is_image.reshape(-1)).reshape(is_image.shape)
        u = (order * GOLDEN_RATIO) % 1.0
        spread.append(np.where(is_image, np.clip(u, 1e-4, 1 - 1e-4), 0.5).astype(np.float32))
    return spread


def images_before(counts: np.ndarray, reader: int) -> list[int]:
    """How many images stand before a reader's rows of each batch, in the order of all rows.

    A batch is the rows of its readers in order (`sharding.mesh.row_reader`), so that an image has
    the same number however many of them there are.

    Args:
      counts: int[readers, batches] images.
    """
    in_order = counts.T.reshape(-1)
    before = (np.cumsum(in_order) - in_order).reshape(counts.T.shape)
    return [int(n) for n in before[:, reader]]


def _is_image(batch: PackedBatch) -> np.ndarray:
    return np.asarray(batch.images.size)[..., 0] > 0


def _num_images(batch: PackedBatch) -> int:
    return int(_is_image(batch).sum())


def images_before_mine(mesh: jax.sharding.Mesh, batches: Sequence[PackedBatch]) -> list[int]:
    """`images_before` of this process's rows; all processes must ask, with as many batches."""
    readers = [row_reader(mesh, p)[0] for p in range(multihost.process_count())]
    mine, num_readers = row_reader(mesh)
    asked = [multihost.gather(_num_images(batch)) for batch in batches]  # [batch][process]
    first = [readers.index(r) for r in range(num_readers)]  # of processes with the same rows, one
    counts = np.array(asked, int).reshape(len(asked), len(readers)).T[first]
    return images_before(counts, mine)


def hide_images(batch: PackedBatch) -> PackedBatch:
    """The batch with its ViT and clean VAE tokens made padding: text without its images.

    For batches laid out in empty context, in which no generated image reads them either.
    """
    und, clean = batch.und, batch.clean
    segment = np.where(und.meta.kind == VIT, PADDING_SEGMENT, und.meta.segment)
    nothing = np.full_like(clean.meta.segment, PADDING_SEGMENT)
    return batch._replace(
        und=und._replace(meta=und.meta._replace(segment=segment)),
        clean=clean._replace(meta=clean.meta._replace(segment=nothing)),
    )


def make_evaluator(
    modules: Modules,
    encoders: EncoderParams,
    mesh: jax.sharding.Mesh,
    batches: Sequence[PackedBatch],
    eval_step: Callable[..., Any] | None = None,
) -> Callable[[Any], dict[str, float]]:
    """A function params -> {metric: value} over a fixed list of host batches [B, ...].

    `eval_step` may be a jitted `make_eval_step(modules)`, shared between evaluators.
    """
    step = eval_step or jax.jit(make_eval_step(modules))
    uniforms = spread_uniforms(batches, images_before_mine(mesh, batches))
    names = labels(modules.sources, modules.config.train.timestep_bins)

    def evaluate(params: Any) -> dict[str, float]:
        accumulator = Accumulator(names)
        for number, (batch, u) in enumerate(zip(batches, uniforms, strict=True)):
            arrays = global_batch(mesh, (batch, u))
            # One program at a time, for simulated CPU devices (see checkpoints/fingerprint.py).
            accumulator.add(number, jax.block_until_ready(step(params, encoders, *arrays)))
        return accumulator.take()

    return evaluate
