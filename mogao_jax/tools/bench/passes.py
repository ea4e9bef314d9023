"""A document of K pictures in one pass (ECTF), against K passes with one noised picture each.

Without ECTF (paper, section 3.3) the k-th picture is trained in a sequence of its own: everything
before it, clean, and its noised tokens at the end. The arithmetic of both is known; whether the
time follows it is measured here, as forward and backward passes of the transformer in float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from mogao_jax.sequence.batch import PackedBatch
from mogao_jax.sequence.document import Document, Image
from mogao_jax.tokenizer import ByteTokenizer
from mogao_jax.tools.bench import packed_documents, transformer_step
from mogao_jax.tools.bench.rounds import alternate
from mogao_jax.tools.profile import flops

TEXT = 40  # bytes before each picture


class Compared(NamedTuple):
    """One number of pictures per document.

    Attributes:
      flops, seconds: of K passes over those of one; seconds as median and quartiles.
    """

    images: int
    flops: float
    seconds: float
    spread: tuple[float, float]


def compare(num_images: int, num_rounds: int, setting: packed_documents.Setting) -> Compared:
    """A document per row; `setting.documents` and `setting.images` are not used."""
    whole, single = batches(num_images, setting)
    step = transformer_step.make_step(setting, whole)
    steps = [transformer_step.make_step(setting, batch) for batch in single]
    measured = alternate({"one": step, "many": _in_turn(steps)}, num_rounds)
    work = [sum(map(_flops(setting), b)) for b in (single, [whole])]
    return Compared(
        num_images,
        work[0] / work[1],
        measured.ratio("many", "one"),
        measured.spread("many", "one"),
    )


def batches(
    num_images: int, setting: packed_documents.Setting
) -> tuple[PackedBatch, list[PackedBatch]]:
    """All pictures of the documents at once, and a batch per picture."""
    rng = np.random.default_rng(0)
    documents = [
        packed_documents.random_document(rng, [TEXT] * num_images) for _ in range(setting.rows)
    ]
    whole = packed_documents.packed(setting, ([d] for d in documents))
    single = [
        packed_documents.packed(setting, ([_up_to(d, k)] for d in documents))
        for k in range(num_images)
    ]
    return whole, single


def lines(setting: packed_documents.Setting, num_rounds: int) -> Iterator[str]:
    """Measures K = 2, 4, 8, and tells of each."""
    for num_images in (2, 4, 8):
        found = compare(num_images, num_rounds, setting)
        low, high = found.spread
        yield (
            f"  K = {num_images}: K passes take {found.seconds:.2f} [{low:.2f}, {high:.2f}] times "
            f"as long as one, by arithmetic {found.flops:.2f} times"
        )


def _up_to(document: Document, image: int) -> Document:
    """Everything up to a picture, which alone is to be drawn."""
    items = list(document.items[: 2 * image + 2])
    for i, item in enumerate(items[:-1]):
        if isinstance(item, Image):
            items[i] = dataclasses.replace(item, loss=False)
    return dataclasses.replace(document, items=tuple(items))


def _in_turn(steps: list[Callable[[], None]]) -> Callable[[], None]:
    def run() -> None:
        for step in steps:
            step()

    return run


def _flops(setting: packed_documents.Setting) -> Callable[[PackedBatch], float]:
    config = setting.config()

    def count(batch: PackedBatch) -> float:
        parts = flops.model_flops(
            config, ByteTokenizer().vocab_size, flops.count_work(batch, config, "cpu")
        )
        return flops.total(value for name, value in parts.items() if name != "language head")

    return count
