"""Small packed rows for the tests of the report."""

from __future__ import annotations

import numpy as np

from mogao_jax.config.schema import ImageConfig, MogaoConfig, PackingConfig
from mogao_jax.sequence.batch import FULL, PackedBatch
from mogao_jax.sequence.document import Document, Image, Text
from mogao_jax.sequence.layout import lay_out
from mogao_jax.sequence.packing import budgets, pack_row
from mogao_jax.tokenizer import ByteTokenizer

TOKENIZER = ByteTokenizer()


def _pixels(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


IMAGES = [_pixels(32, 48, 1), _pixels(16, 32, 2), _pixels(32, 32, 3)]
STORY = Document(
    (
        Text("Once "),
        Image(pixels=IMAGES[0]),
        Text("then ünd"),
        Image(pixels=IMAGES[1]),
    ),
    id="story",
)
QUESTION = Document(
    (
        Image(pixels=IMAGES[2], role="user", loss=False),
        Text("What <b>is it?", role="user", loss=False),
        Text("A cat.", role="assistant"),
    ),
    id="question",
)


def lay_out_document(document: Document, source: int, context: int = FULL) -> PackedBatch:
    return lay_out(
        document,
        tokenizer=TOKENIZER,
        config=MogaoConfig(images=ImageConfig(max_side=64, max_pixels=64 * 64)),
        rng=np.random.default_rng(0),
        source=source,
        context=context,
    )


def pack(documents: list[PackedBatch]) -> PackedBatch:
    config = PackingConfig(
        und_tokens=192, clean_tokens=16, noised_tokens=24, images=4, vit_patches=64
    )
    return pack_row(documents, budgets(config), canvas_side=64)


def story_and_question(context: int = FULL) -> list[PackedBatch]:
    return [lay_out_document(STORY, 0, context), lay_out_document(QUESTION, 1)]
