"""The demo checkpoint that ships with the package: it is there, small, and does what it is for."""

from __future__ import annotations

import numpy as np
import pytest

import mogao_jax
from mogao_jax.registry import CHECKPOINTS
from mogao_jax.sampling.options import make_options
from mogao_jax.sampling.requests import Request, as_document
from mogao_jax.sequence.document import Document, Image, Text
from mogao_jax.worlds.shapes.evals.scorers.reader import read_image
from mogao_jax.worlds.shapes.options import world_name
from mogao_jax.worlds.shapes.scene import fitting_world
from mogao_jax.worlds.shapes.truth import Request as Asked
from mogao_jax.worlds.shapes.truth import Wanted, satisfies


@pytest.fixture(scope="module")
def demo():
    return mogao_jax.load()


def test_it_is_small():
    assert CHECKPOINTS.get("demo").stat().st_size <= 20e6


def images_of(result):
    return [item.pixels for item in result.items if isinstance(item, Image)]


def world(model):
    images = model.config.images
    return fitting_world(world_name(model.config), images.max_pixels, images.max_side)


ASKED = "red circle, blue square, green triangle, black star, yellow ring, purple cross, " \
        "orange circle, cyan square"  # fmt: skip


def test_it_draws_what_is_asked_for_and_answers(demo):
    wanted = [tuple(x.split()) for x in ASKED.split(", ")]
    options = make_options(
        {"num_steps": 20, "draw_first": True, "max_images": 1, "size": (48, 48)}, demo.config
    )
    requests = [
        Request(as_document(f"a {color} {shape}"), seed, options)
        for seed, (color, shape) in enumerate(wanted)
    ]
    drawn = [images_of(r)[0] for r in demo.sample(requests)]
    right = [
        satisfies(read_image(pixels, world(demo)).scene, Asked("colors", (Wanted(shape, color),)))
        for pixels, (color, shape) in zip(drawn, wanted, strict=True)
    ]
    assert sum(right) >= 6  # of 8; by chance, none

    options = make_options({"allow_images": False, "max_tokens": 12}, demo.config)
    asked = [
        Request(
            Document((Image(pixels=pixels, role="user", loss=False),
                      Text(f"which shape is the {color} thing?", "user", False))),
            options=options,
        )
        for pixels, (color, _) in zip(drawn, wanted, strict=True)
    ]  # fmt: skip
    answers = ["".join(i.text for i in r.items if isinstance(i, Text)) for r in demo.sample(asked)]
    named = [shape in answer for answer, (_, shape) in zip(answers, wanted, strict=True)]
    assert sum(np.logical_and(named, right)) >= 5


def test_a_story_goes_on_by_itself(demo):
    options = make_options({"num_steps": 10}, demo.config)
    request = Request(as_document("tell a story in three pictures."), options=options)
    (result,) = demo.sample([request])
    assert result.stop == "end" and len(images_of(result)) == 3
    assert isinstance(result.items[0], Text) and isinstance(result.items[1], Image)
