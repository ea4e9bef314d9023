"""What a guess that looks at nothing reaches, so that scores can be told from luck.

Images: how often a random scene of the same world grants a request, by simulation. Answers: the
most common answer to each kind of question.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from mogao_jax.errors import DataError
from mogao_jax.worlds.shapes.evals.cases import Case
from mogao_jax.worlds.shapes.evals.scorers import sentences, verdicts
from mogao_jax.worlds.shapes.evals.scorers.reader import Reading
from mogao_jax.worlds.shapes.evals.scores import OVERALL
from mogao_jax.worlds.shapes.placement import random_scene
from mogao_jax.worlds.shapes.questions import question_and_scene
from mogao_jax.worlds.shapes.rng import Rng, between
from mogao_jax.worlds.shapes.scene import Scene, World
from mogao_jax.worlds.shapes.truth import satisfies

Rates = dict[tuple[str, str], float]  # (category or OVERALL, metric) -> proportion

_SCENES = 250  # random scenes that every request is tried on
_PER_CASE = 20  # random scenes per edit, frame or step, on its canvas
_QUESTIONS = 400  # per kind


def baselines(task: str, cases: Sequence[Case], world: World, seed: int = 0) -> Rates:
    """What chance reaches in each (category, metric) of a task's rows, and in all together."""
    rng = np.random.default_rng((seed, 5))
    if task == "qa":
        return _majority(rng, {c.category for c in cases}, world)
    found: dict[tuple[str, str], list[float]] = collections.defaultdict(list)
    scenes = [random_scene(rng, world) for _ in range(_SCENES)] if task == "t2i" else []
    for case in cases:
        rates = _granted(case, scenes) if task == "t2i" else _followed(case, rng, world)
        for metric, rate in rates.items():
            for group in (case.category, OVERALL):
                found[group, metric].append(rate)
    return {key: float(np.mean(rates)) for key, rates in found.items()}


def _majority(rng: Rng, kinds: set[str], world: World) -> Rates:
    rates: Rates = {}
    for kind in sorted(kinds):
        answers = collections.Counter(
            question_and_scene(rng, world, kind)[0].answer for _ in range(_QUESTIONS)
        )
        rates[kind, "right"] = answers.most_common(1)[0][1] / _QUESTIONS
    rates[OVERALL, "right"] = float(np.mean(list(rates.values())))
    return rates


def _granted(case: Case, scenes: Sequence[Scene]) -> dict[str, float]:
    request = case.truth.request
    assert request is not None
    return {"right": float(np.mean([satisfies(s, request) for s in scenes]))}


def _followed(case: Case, rng: Rng, world: World) -> dict[str, float]:
    """Of an edit, a clip or a story: how often random scenes show what should follow."""
    first = case.truth.scenes[0]
    small = dataclasses.replace(world, canvases=((first.height, first.width),))
    guesses = [Reading(_some_scene(rng, small)) for _ in range(_PER_CASE)]
    if case.task == "story":
        return {"steps": float(np.mean([_steps(case, rng, guesses, world) for _ in guesses]))}
    changes = [verdicts.judge_last(case.truth, guess, world) for guess in guesses]
    return {
        name: float(np.mean([getattr(c, name) for c in changes]))
        for name in ("done", "kept", "right")
    }


def _some_scene(rng: Rng, world: World) -> Scene:
    """A random scene; on a small canvas with fewer objects, where many find no room."""
    (height, width), side = world.canvases[0], world.small + world.gap + world.margin
    most = min(world.max_count, max(1, (height // side) * (width // side)))
    while True:
        try:
            return random_scene(rng, world, between(rng, 1, most))
        except DataError:
            most = max(1, most - 1)


def _steps(case: Case, rng: Rng, guesses: Sequence[Reading], world: World) -> float:
    """Proportion of a story's images that random ones get right."""
    truth = case.truth
    chosen = [guesses[int(rng.integers(len(guesses)))] for _ in truth.scenes]
    first = truth.scenes[0].objects[0].kind
    objects = chosen[0].scene.objects
    right = [
        len(objects) == 1 and (objects[0].shape, objects[0].color) == (first.shape, first.color)
    ]
    for k, edit in enumerate(truth.edits):
        moved = sentences.transfer(edit, chosen[k].scene)
        right.append(
            moved is not None
            and verdicts.judge_change(chosen[k].scene, chosen[k + 1], moved, world).right
        )
    return float(np.mean(right))
