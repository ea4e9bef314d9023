"""Teacher-forced = sampled: what the cached sampler predicted at every step of an interleaved
generation is what one training forward over the finished document predicts, in all contexts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import replay
import tiny_system as tiny

from mogao_jax.sampling.options import SamplingOptions
from mogao_jax.sampling.requests import Request
from mogao_jax.sequence.batch import EMPTY, FULL, IMAGE_ONLY
from mogao_jax.sequence.document import Document, Image, Text

CONTEXTS = [FULL, IMAGE_ONLY, EMPTY]
OPTIONS = SamplingOptions(num_steps=4, temperature=4.0, max_tokens=22, guidance_scale=2.0,
                          image_guidance_scale=1.3)  # fmt: skip


def prompt(role: str | None) -> Document:
    """Text, an image, text, another image: nothing of it is a target."""
    rng = np.random.default_rng(3)

    def random_image(height: int, width: int) -> Image:
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        return Image(pixels=pixels, role=role and "user", loss=False)

    text = [Text(t, role=role and "user", loss=False) for t in ("look ", "and")]
    return Document(
        (text[0], random_image(32, 16), text[1], random_image(16, 32)), id=f"prompt-{role}"
    )


def images_of(document: Document) -> list[Image]:
    return [item for item in document.items if isinstance(item, Image)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("role", "solver", "variant"),
    [
        ("chat", "euler", {}),
        (None, "heun", {"layout__text_positions": "t", "layout__drop_positions": "keep",
                        "layout__vit_attention": "causal", "images__vit_resize": "native"}),
        ("chat", "euler", {"layout__understanding_encoder": "vae", "model__scan_layers": True,
                           "model__fusion": "shared"}),
    ],
    ids=["default", "the other choices", "VAE only, shared, scanned"],
)  # fmt: skip
def test_cached_predictions_are_those_of_a_training_forward(role, solver, variant):
    modules, params = replay.tiny_model(**variant)
    recorder = replay.Recorder()
    sampler = recorder.watch(replay.make_sampler(modules, params, probe=recorder))
    document = prompt(role)
    options = (
        OPTIONS if solver == "euler" else dataclasses.replace(OPTIONS, solver=solver, num_steps=2)
    )
    (result,) = sampler.sample([Request(document, seed=1, options=options)])

    # The course that this is worth: several images, with text before, between and after.
    kinds = "".join("#" if isinstance(i, Image) else "t" for i in result.items)
    assert kinds.count("#") >= 2 and kinds.strip("#") == kinds and result.stop == "max_tokens"
    num_prompt = len(images_of(document))
    drawn = range(num_prompt, num_prompt + len(recorder.latents))
    latents = dict(zip(drawn, recorder.latents, strict=True))

    per_image = len(recorder.velocities) // len(latents)
    assert per_image == 4  # evaluations: Heun's steps have two
    for context in CONTEXTS:
        plain = replay.Replay(modules, params, result.document, context)
        for step in range(per_image):
            seen = {image: recorder.velocities[k * per_image + step]
                    for k, image in enumerate(drawn)}  # fmt: skip
            n = {image: len(latents[image]) for image in drawn}
            x = {image: s["x"][: n[image]] for image, s in seen.items()}
            t = {image: s["t"] for image, s in seen.items()}
            logits, velocity = plain.forward(latents, x, t)
            for image in drawn:
                cached = seen[image][context][: n[image]]
                assert tiny.relative_error(cached, velocity[image]) < 1e-5
    plain = replay.Replay(modules, params, result.document, FULL)
    logits, _ = plain.forward(latents, x, t)
    assert len(recorder.logits) == options.max_tokens
    for t_id, cached in recorder.logits.items():
        assert tiny.relative_error(cached, logits[plain.text_index(t_id)]) < 1e-5
