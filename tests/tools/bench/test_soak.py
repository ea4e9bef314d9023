"""The soak: mixed requests, what it counts, and that it sees a bad result."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tiny_checkpoint as checkpoint

from mogao_jax.sampling.options import SamplingOptions, check_options
from mogao_jax.sampling.requests import Request, Result
from mogao_jax.sequence.document import Document, Image, Text
from mogao_jax.tools.bench import fixtures
from mogao_jax.tools.bench.soak import Point, Soak, faults


def requests(count, seed=0):
    return fixtures.mixed_requests(
        checkpoint.config(), count, seed=seed, num_steps=8, max_tokens=64
    )


def test_mixed_requests_are_of_all_kinds_and_can_be_served():
    config, mixed = checkpoint.config(), requests(60)
    for request in mixed:
        check_options(request.options, config)
        assert len({item.role is None for item in request.document.items}) == 1
    documents = [r.document.items for r in mixed]
    options = [r.options for r in mixed]
    assert {sum(isinstance(i, Image) for i in items) for items in documents} >= {0, 1, 2}
    assert {o.solver for o in options} == {"euler", "heun"}
    assert {o.draw_first for o in options} == {o.allow_images for o in options} == {True, False}
    assert len({o.size for o in options}) > 3 and len({o.num_steps for o in options}) == 8
    assert len({r.seed for r in mixed}) == 60


def test_mixed_requests_are_the_same_for_a_seed():
    def told(mixed):
        return [
            (r.seed, r.options, [getattr(i, "text", None) for i in r.document.items]) for r in mixed
        ]

    assert told(requests(5)) == told(requests(9))[:5] != told(requests(5, seed=1))


PROMPT = Document((Text("draw a cat", role="user"),), id="p")


def result(*items, stop="max_images", document=None, complete=None):
    complete = (stop == "end") if complete is None else complete
    if document is None:
        document = dataclasses.replace(PROMPT, items=(*PROMPT.items, *items), complete=complete)
    return Result(tuple(items), stop, document)


def shown(height=32, width=48):
    return Image(pixels=np.zeros((height, width, 3), np.uint8), role="assistant")


SAID = Text("a cat", role="assistant")
GOOD = {"draw_first": True, "max_images": 1, "size": (32, 48)}


@pytest.mark.parametrize(
    ("found", "options", "words"),
    [
        (result(shown()), {}, None),
        (result(shown(), SAID, stop="end"), {"max_images": 3}, None),
        (result(shown(48, 32)), {}, "asked for"),
        (result(shown(64, 64)), {"size": None}, "larger"),
        (result(shown(30, 30)), {"size": None}, "an image (30, 30, 3)"),
        (result(SAID, shown()), {}, "no image first"),
        (result(shown(), SAID, SAID), {}, "two texts"),
        (result(shown(), Text("", role="assistant")), {}, "empty"),
        (result(shown(), shown()), {}, "too many"),
        (result(shown()), {"max_images": 2}, "not there"),
        (result(shown()), {"draw_first": False, "allow_images": False}, "forbidden"),
        (result(shown(), complete=True), {}, "wrong end"),
        (result(shown(), stop="tired"), {}, "unknown stop"),
        (result(shown(), document=PROMPT), {}, "lost"),
        (result(shown(), document=Document((SAID,))), {}, "another prompt"),
    ],
)
def test_faults(found, options, words):
    model = dataclasses.make_dataclass("Model", ["config", "tokenizer"])
    subject = model(checkpoint.config(), checkpoint.tiny.TOKENIZER)
    told = faults(Request(PROMPT, 0, SamplingOptions(**GOOD | options)), found, subject)
    if words is None:
        assert not told
    else:
        assert any(words in what for what in told), told


def test_recompilations_are_those_beyond_the_shapes():
    def found(**compilations):
        point = Point(1, compilations, 0, 0.0)
        return Soak([point], {}, {}, [], {"integrate_flow": 2, "decode": 1}).recompiled

    assert found(integrate_flow=2, decode=1, encode_image=9) == 0
    assert found(integrate_flow=4, decode=1) == 2


def test_growth_is_that_of_the_second_time():
    points = [Point(i, {}, memory, 0.0) for i, memory in enumerate((5, 9, 10, 12))]
    assert Soak(points, {}, {}, [], {}).growth == 3


def test_few_tokens_leave_the_ends_and_the_images():
    allowed, tokenizer = np.ones(300, bool), checkpoint.tiny.TOKENIZER
    fixtures.allow_few_tokens(allowed, tokenizer)
    kept = set(np.nonzero(allowed)[0])
    assert {tokenizer.vision_start, tokenizer.im_end, tokenizer.endoftext} < kept
    assert 10 < len(kept) < 20
