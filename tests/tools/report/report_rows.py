"""Small packed rows and a small run for the tests of the report."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator

import numpy as np

from mogao_jax.config import default_config, from_config_dict, source, to_dict
from mogao_jax.config.schema import ImageConfig, MogaoConfig, PackingConfig
from mogao_jax.sequence.batch import FULL, PackedBatch
from mogao_jax.sequence.document import Document, Image, Text
from mogao_jax.sequence.layout import lay_out
from mogao_jax.sequence.packing import budgets, pack_row
from mogao_jax.tokenizer import ByteTokenizer
from mogao_jax.tools.report import data_sample
from mogao_jax.training import workdir as workdir_lib

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


EVIL = "<script>alert('x')</script>&\"'"


def _records(num_steps: int = 60) -> Iterator[dict]:
    for step in range(1, num_steps + 1):
        yield {
            "step": step,
            "time": 1000.0 + step,
            "split": "train",
            "ntp_loss": 5 / step,
            "flow_loss": 1 + 1 / step,
            "ntp_loss/qa": 4 / step,
            "flow_loss/stories": 1.5,
            "flow_loss/t0.00-0.50": 1.0,
            "flow_loss/t0.50-1.00": None if step == 3 else 2.0,
            "grad_norm": 1.0,
            "tokens_per_second": 100.0 * step,
            "data_wait_share": 0.01,
            "fill/und": 0.96,
            "fill/gen": 0.98,
        }
    for split, loss in (
        ("validation", 0.5),
        ("validation_no_condition", 0.75),
        ("validation_untrained", 2.25),
    ):
        yield {"step": num_steps, "time": 2000.0, "split": split, "flow_loss": loss}


def write_run(folder: pathlib.Path) -> pathlib.Path:
    """A finished run with everything that training leaves, and names that try to be HTML."""
    config = default_config()
    config.name = EVIL
    config.data.sources.qa = source(kind="shapes", task="qa")
    config.train.num_steps = 60
    (folder / "config.json").write_text(json.dumps(to_dict(from_config_dict(config))))
    lines = [json.dumps(r) for r in _records()]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    workdir_lib.save_run_facts(
        folder, parameters={"und branch": 1200, EVIL: 300}, note=EVIL, devices=["cpu:0", "cpu:0"]
    )
    evil = Document((Text(EVIL),), id="evil")
    row = pack([lay_out_document(evil, 0), *story_and_question()])
    data_sample.save_data_sample(row, TOKENIZER, folder, sources=(EVIL, "qa"))
    return folder
