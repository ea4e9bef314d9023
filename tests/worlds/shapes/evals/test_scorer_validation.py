"""The scorer on true and on minimally wrong images, rendered and distorted: >= 0.99 both ways.

`mogao eval shapes --validate` does the same with more documents and through the autoencoder for
all tasks.
"""

from __future__ import annotations

import numpy as np
import pytest

from mogao_jax.evals.proportion import Proportion
from mogao_jax.sequence.document import Image
from mogao_jax.worlds.shapes.evals import validation
from mogao_jax.worlds.shapes.evals.judging import judge
from mogao_jax.worlds.shapes.render import render
from mogao_jax.worlds.shapes.scene import WORLDS
from mogao_jax.worlds.shapes.truth import satisfies

VIOLATIONS = {
    "t2i": {"other color", "other shape", "one missing", "one more", "other size",
            "other background", "other side", "swapped colors"},
    "edit": {"not done", "another recolored", "another moved", "another missing", "one more",
             "background changed", "other background", "wrong color", "wrong shape", "elsewhere",
             "wrong place"},
    "story": {"image missing", "image repeated", "images swapped", "step wrong",
              "sentence missing"},
}  # fmt: skip


@pytest.fixture(scope="module")
def trials():
    numbers = {"t2i": 4, "edit": 3, "story": 5}
    return {task: validation.trials(task, n) for task, n in numbers.items()}


@pytest.mark.parametrize("task", VIOLATIONS)
def test_trials_cover_every_violation(trials, task):
    names = {t.name for t in trials[task]}
    assert names == VIOLATIONS[task] | {"true"}


def test_wrong_images_are_wrong_by_the_truth(trials):
    for trial in trials["t2i"]:
        assert satisfies(trial.items[0], trial.case.truth.request) == trial.right


@pytest.mark.parametrize("task", VIOLATIONS)
@pytest.mark.parametrize("name", ["rendered", "noisy"])
def test_right_and_wrong_ones_are_told_apart(trials, task, name):
    distort = {"rendered": validation.as_rendered, "noisy": validation.noisy}[name]
    made = trials[task] if name == "rendered" else trials[task][::3]
    found = validation.validate(task, made, name, distort)
    assert found.accepted.value >= 0.99, found
    assert found.refused.value >= 0.99, found
    assert found.accepted.total + found.refused.total == len(made)


def test_images_of_another_world():
    world = WORLDS["novel"]
    made = [t for task in ("t2i", "edit") for t in validation.trials(task, 2, world=world)]
    found = validation.validate("t2i", made, "", validation.as_rendered, world)
    assert found.accepted.value >= 0.99 and found.refused.value >= 0.99, found
    assert found.accepted.total > 20


def test_through_the_autoencoder_and_everything(trials):
    made = [*trials["t2i"][::6], *trials["edit"][::12]]
    vae = validation.through_vae(batch_size=8)
    kept = []

    def encoded(images, rng):
        kept.extend(kept or vae(images, rng))
        return kept[: len(images)]

    for distort in (encoded, validation.everything(encoded)):
        found = validation.validate("t2i", made, "", distort)
        assert found.accepted.value >= 0.99 and found.refused.value >= 0.99, found
        assert found.accepted.total > 2


def test_distortions_distort():
    rng = np.random.default_rng(0)
    image = render(validation.trials("t2i", 1)[0].items[0])
    for distort in (validation.soft, validation.noisy, validation.tinted):
        (made,) = distort([image], rng)
        assert made.shape == image.shape and made.dtype == np.uint8
        assert 1 < np.abs(made.astype(int) - image).mean() < 20


def test_a_scorer_that_always_agrees_or_never_does_is_found_out(trials):
    accepted, refused = Proportion(0, 0), Proportion(0, 0)
    for trial in trials["t2i"]:  # with requests that a blank image cannot grant
        blank = Image(pixels=np.full((64, 64, 3), 255, np.uint8))
        right = judge(trial.case, [blank]).right
        if trial.right:
            accepted += right
        else:
            refused += not right
    assert accepted.value == 0 and refused.value == 1
