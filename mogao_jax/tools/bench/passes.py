"""A document of K images in one pass (ECTF), against K passes with one noised image each.

Without ECTF (paper, section 3.3) the k-th image is trained in a sequence of its own: everything
before it, clean, and its noised tokens at the end. The FLOPs of both are known. This measures
whether the time follows them, in forward and backward passes of the transformer in float32.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mogao_jax.sequence.batch import PackedBatch
from mogao_jax.sequence.document import Document, Image
from mogao_jax.sharding.mesh import split_cpu
from mogao_jax.tokenizer import ByteTokenizer
from mogao_jax.tools import flops
from mogao_jax.tools.bench.instrumentation import alternate
from mogao_jax.tools.bench.packed_documents import Setting, make_step, packed, random_document

TEXT = 40  # bytes before each image


class Compared(NamedTuple):
    """K passes over one pass: the ratio of FLOPs, and the median and quartiles of seconds'."""

    flops: float
    seconds: float
    spread: tuple[float, float]


def report(num_rounds: int) -> Iterator[str]:
    """Measures K = 2, 4, 8; a line of text about each, after one about the setting."""
    setting = Setting()
    split_cpu(min(setting.rows, os.cpu_count() or 1))
    yield (
        f"{setting.layers} layers of width {setting.width}, a document in each of {setting.rows} "
        f"rows, images of 64 tokens; medians of {num_rounds} rounds [quartiles]"
    )
    for num_images in (2, 4, 8):
        found = compare(num_images, num_rounds, setting)
        low, high = found.spread
        yield (
            f"  K = {num_images}: K passes take {found.seconds:.2f} [{low:.2f}, {high:.2f}] times "
            f"as long as one, by arithmetic {found.flops:.2f} times"
        )


def compare(num_images: int, num_rounds: int, setting: Setting) -> Compared:
    """A document per row; `setting.documents` and `setting.images` are not used."""
    whole, single = batches(num_images, setting)
    step = make_step(setting, whole)
    steps = [make_step(setting, batch) for batch in single]

    measured = alternate({"one": step, "many": lambda: [one() for one in steps]}, num_rounds)
    ratio = sum(_flops(b, setting) for b in single) / _flops(whole, setting)
    return Compared(ratio, measured.ratio("many", "one"), measured.spread("many", "one"))


def batches(num_images: int, setting: Setting) -> tuple[PackedBatch, list[PackedBatch]]:
    """All images of the documents at once, and a batch per image."""
    rng = np.random.default_rng(0)
    documents = [random_document(rng, [TEXT] * num_images) for _ in range(setting.rows)]
    whole = packed(setting, ([d] for d in documents))
    return whole, [packed(setting, ([_up_to(d, k)] for d in documents)) for k in range(num_images)]


def _up_to(document: Document, image: int) -> Document:
    """Everything up to an image, the only one with a loss."""
    *before, last = document.items[: 2 * image + 2]
    clean = (dataclasses.replace(x, loss=False) if isinstance(x, Image) else x for x in before)
    return dataclasses.replace(document, items=(*clean, last))


def _flops(batch: PackedBatch, setting: Setting) -> float:
    config = setting.config()
    work = flops.count_work(batch, config, "cpu")
    parts = flops.model_flops(config, ByteTokenizer().vocab_size, work)
    return flops.total(value for name, value in parts.items() if name != "language head")
