"""The cursor against an enumeration, token by token; and traced, as in the decode loop."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mogao_jax.config.schema import LayoutConfig
from mogao_jax.sequence.cursor import Cursor, text_positions

GRID, VIT_GRID = (2, 4), (1, 2)
# Elements: a number of text tokens, "left out", or (has ViT tokens, noised copies) of an image.
WALK = [3, (True, 0), 1, "left out", (True, 1), "left out", 2, (False, 3), (True, 3), 1]


def enumerated(walk, *, causal: bool, keep: bool, thw: bool):
    """{kind of token: [(order, T, H, W), ...]} by counting, one token after another."""
    out: dict = {"text": [], "vit": [], "clean": [], "noised": []}
    order = t = 0
    for element in walk:
        if element == "left out":
            t += keep
        elif isinstance(element, int):
            for _ in range(element):
                out["text"].append((order, t, t if thw else 0, t if thw else 0))
                order, t = order + 1, t + 1
        else:
            has_vit, copies = element
            places = list(itertools.product(range(GRID[0]), range(GRID[1])))
            for copy in range(copies):
                out["noised"] += [(order, t, h, w) for h, w in places]
                if copy < copies - 1:
                    order += 1
            if has_vit:
                # Tokens of 2 x 2 VAE tokens: centres between places 0 and 1, and 2 and 3.
                for number, w in enumerate((0.5, 2.5)):
                    if causal and number:
                        order += 1
                    out["vit"].append((order, t, 0.5, w))
            out["clean"] += [(order, t, h, w) for h, w in places]
            order, t = order + 1, t + 1
    return out, (order, t)


def walked(walk, layout):
    out: dict = {"text": [], "vit": [], "clean": [], "noised": []}
    cursor = Cursor()

    def add(kind, placed):
        assert placed.order.dtype == np.int32 and placed.positions.dtype == np.float32
        out[kind] += [(o, *p) for o, p in zip(placed.order, placed.positions, strict=True)]

    for element in walk:
        if element == "left out":
            cursor = cursor.skip(layout)
        elif isinstance(element, int):
            placed, cursor = cursor.text(element, layout)
            add("text", placed)
        else:
            has_vit, copies = element
            vit_grid = VIT_GRID if has_vit else None
            placed, cursor = cursor.image(GRID, vit_grid, layout, num_copies=copies)
            assert (placed.vit is not None) == has_vit
            for copy in placed.noised:
                add("noised", copy)
            if placed.vit is not None:
                add("vit", placed.vit)
            add("clean", placed.clean)
    return out, cursor


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
@pytest.mark.parametrize("drop", ["keep", "renumber"])
@pytest.mark.parametrize("text", ["thw", "t"])
def test_is_what_counting_gives(attention, drop, text):
    layout = LayoutConfig(vit_attention=attention, drop_positions=drop, text_positions=text)
    flags = {"causal": attention == "causal", "keep": drop == "keep", "thw": text == "thw"}
    rng = np.random.default_rng(0)
    walks = [WALK] + [[WALK[i] for i in rng.integers(len(WALK), size=12)] for _ in range(20)]
    for walk in walks:
        assert walked(walk, layout) == enumerated(walk, **flags)


def test_noised_tokens_read_strictly_earlier_orders():
    """What an image's copies may read ends before the image; what follows may read all of it."""
    layout = LayoutConfig()
    cursor = Cursor(5, 9)
    placed, after = cursor.image(GRID, VIT_GRID, layout, num_copies=3)
    assert [set(copy.order.tolist()) for copy in placed.noised] == [{5}, {6}, {7}]
    assert set(placed.vit.order.tolist()) == set(placed.clean.order.tolist()) == {7}
    assert after == (8, 10)


def test_sampling_draws_where_training_noises():
    """The sampler asks for the noised tokens alone, before the image's other tokens exist."""
    cursor = Cursor(4, 6)
    placed, _ = cursor.image(GRID, VIT_GRID, LayoutConfig(), num_copies=1)
    for given, expected in zip(cursor.noised(GRID), placed.noised[0], strict=True):
        np.testing.assert_array_equal(given, expected)


@pytest.mark.parametrize("mode", ["thw", "t"])
def test_a_traced_cursor_steps_as_a_counted_one(mode):
    """In the decode loop some rows write and others stand still."""
    layout = dataclasses.replace(LayoutConfig(), text_positions=mode)
    active = jnp.array([1, 0, 1], jnp.int32)

    @jax.jit
    def decode(cursor):
        after = cursor.after_text(active)
        return after, text_positions(after.t[:, None], mode, jnp)

    starts = [Cursor(3, 4), Cursor(0, 0), Cursor(17, 11)]
    traced = Cursor(*(jnp.array(x, jnp.int32) for x in zip(*starts, strict=True)))
    after, positions = decode(traced)
    for i, (start, step) in enumerate(zip(starts, active.tolist(), strict=True)):
        expected = start.text(1, layout)[1] if step else start
        assert (int(after.order[i]), int(after.t[i])) == expected
        np.testing.assert_array_equal(positions[i], expected.text(1, layout)[0].positions)
