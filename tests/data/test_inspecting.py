"""Budgets that suit a mixture, the fill they reach, and documents as text."""

import dataclasses

import numpy as np
import pytest

from mogao_jax.config.schema import (
    DataConfig,
    ImageConfig,
    LayoutConfig,
    MogaoConfig,
    PackingConfig,
    SourceConfig,
    TokenizerConfig,
)
from mogao_jax.data import inspecting
from mogao_jax.data.preparing import make_preparer
from mogao_jax.sequence.document import Document, Image, Text
from mogao_jax.sequence.layout import lay_out
from mogao_jax.sequence.packing import budgets
from mogao_jax.tokenizer import ByteTokenizer, load_tokenizer

# The paper's third stage (20% understanding, 40% text to image, 40% interleaved).
EMBEDDED = {"text": 0.05, "qa": 0.2, "t2i": 0.4, "edit": 0.15, "story": 0.12, "clip": 0.08}


def embedded_config(**packing) -> MogaoConfig:
    sources = {task: SourceConfig("shapes", w, {"task": task}) for task, w in EMBEDDED.items()}
    return MogaoConfig(
        tokenizer=TokenizerConfig("shapes"),
        images=ImageConfig(max_pixels=64 * 64, max_side=96, vit_resize="match_vae_grid"),
        data=DataConfig(sources=sources),
        packing=PackingConfig(**packing),
    )


def test_the_embedded_mixture_fills_both_streams():
    """The bar of the project: at least 95% of und and of gen tokens."""
    config = embedded_config()
    tokenizer = load_tokenizer(config.tokenizer)
    preparer = make_preparer(config, tokenizer, "train")
    found = inspecting.measure_sizes(preparer, 800)
    assert set(found) == set(EMBEDDED)
    suggested = inspecting.suggest_budgets(found, 768)
    packing = PackingConfig(
        *(suggested.und, suggested.clean, suggested.noised),
        images=suggested.images,
        vit_patches=suggested.vit_patches,
    )
    assert budgets(packing) == suggested
    config = dataclasses.replace(config, packing=packing)
    report = inspecting.measure_fill(config, tokenizer, 60)
    assert report.shares["und"] >= 0.95 and report.shares["gen"] >= 0.95, report.shares
    assert report.num_broken == report.num_over_long == 0
    assert report.rows == 60 and report.documents > 300


def test_suggested_budgets_are_proportional_and_hold_the_largest():
    found = {"a": np.array([[100, 0, 40, 2, 0]] * 9), "b": np.array([[10, 8, 4, 1, 64]])}
    small = inspecting.suggest_budgets(found, 10)
    assert all(limit >= size for limit, size in zip(small, (100, 8, 40, 2, 64), strict=True))
    large = inspecting.suggest_budgets(found, 9100)
    assert large.und == pytest.approx(9100, rel=0.01)
    assert large.noised == pytest.approx(36.4 * 100, rel=0.01)
    assert large.images == pytest.approx(190 * 1.05, rel=0.01)


def test_describe_tells_every_token():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (32, 16, 3), dtype=np.uint8)
    document = Document(
        (
            Image(pixels=pixels, role="user", loss=False),
            Text("ab", role="user", loss=False),
            Image(pixels=pixels, role="assistant"),
        ),
        id="d",
    )
    laid_out = lay_out(
        document,
        tokenizer=ByteTokenizer(),
        config=MogaoConfig(
            images=ImageConfig(max_side=32, vit_resize="match_vae_grid"),
            layout=LayoutConfig(p_empty=0.0, p_image_only=0.0),
        ),
        rng=rng,
    )
    text = inspecting.describe(laid_out, ByteTokenizer())
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0].startswith("sizes: ") and "2 clean" in lines[0] and "8 vit_patches" in lines[0]
    header = 1 + len("user\n")  # <|im_start|> and bytes
    assert f"text {header} ({header}, {header}, {header}) <|vision_start|>" in lines
    time = header + 1
    assert f"vit {time} ({time}, 0..1, 0) 2 ViT tokens of ViT image 1" in lines
    assert f"clean {time} ({time}, 0..1, 0) 2 tokens of image 0 (32 x 16 pixels)" in lines
    assert "'a'" in text and "'b'" in text
    trained = [line for line in lines if "->" in line and "weight" in line]
    assert len(trained) == 1 and "'\\n' -> <|vision_start|> weight 1" in trained[0]
    assert lines[-1].endswith("2 tokens of image 1 (32 x 16 pixels), full context, weight 2 in all")
    text_tokens = int((laid_out.und.meta.kind == 0).sum())
    assert sum(line.startswith("text ") for line in lines) == text_tokens
