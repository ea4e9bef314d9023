"""What a guess that looks at nothing reaches, so that scores can be told from luck.

Pictures: how often a random scene of the same world grants a request, by simulation. Answers: the
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
from mogao_jax.worlds.shapes.rng import between
from mogao_jax.worlds.shapes.scene import Scene, World
from mogao_jax.worlds.shapes.truth import satisfies

Rates = dict[tuple[str, str], float]  # (category or OVERALL, metric) -> share

_SCENES = 250  # random scenes that every request is tried on
_PER_CASE = 20  # random scenes per edit, frame or step, on its canvas
_QUESTIONS = 400  # per kind


def chance(task: str, cases: Sequence[Case], world: World, seed: int = 0) -> Rates:
    """Of each (category, metric) of a task's rows what chance reaches, and of all together."""
    rng = np.random.default_rng((seed, 5))
    found: dict[tuple[str, str], list[float]] = collections.defaultdict(list)
    if task == "qa":
        return _majority(rng, {c.category for c in cases}, world)
    scenes = [random_scene(rng, world) for _ in range(_SCENES)] if task == "t2i" else []
    for case in cases:
        for metric, rate in _rates(task, case, scenes, rng, world).items():
            for group in (case.category, OVERALL):
                found[group, metric].append(rate)
    return {key: float(np.mean(rates)) for key, rates in found.items()}


def _majority(rng: np.random.Generator, kinds: set[str], world: World) -> Rates:
    rates: Rates = {}
    for kind in sorted(kinds):
        answers = collections.Counter(
            question_and_scene(rng, world, kind)[0].answer for _ in range(_QUESTIONS)
        )
        rates[kind, "right"] = answers.most_common(1)[0][1] / _QUESTIONS
    rates[OVERALL, "right"] = float(np.mean(list(rates.values())))
    return rates


def _rates(
    task: str, case: Case, scenes: Sequence[Scene], rng: np.random.Generator, world: World
) -> dict[str, float]:
    truth = case.truth
    if task == "t2i":
        assert truth.request is not None
        return {"right": float(np.mean([satisfies(s, truth.request) for s in scenes]))}
    canvas = (truth.scenes[0].height, truth.scenes[0].width)
    small = dataclasses.replace(world, canvases=(canvas,))
    guesses = [Reading(_some_scene(rng, small)) for _ in range(_PER_CASE)]
    if task == "story":
        return {"steps": float(np.mean([_step(case, rng, guesses, world) for _ in guesses]))}
    before = truth.scenes[-2]
    if task == "edit":
        changes = [verdicts.judge_change(before, g, truth.edits[0], world) for g in guesses]
    else:
        assert truth.motion is not None
        mover = before.objects[0]
        changes = [verdicts.judge_motion(before, g, truth.motion, mover, world) for g in guesses]
    return {
        "done": float(np.mean([c.done for c in changes])),
        "kept": float(np.mean([c.kept for c in changes])),
        "right": float(np.mean([c.right for c in changes])),
    }


def _some_scene(rng: np.random.Generator, world: World) -> Scene:
    """A random scene; on a small canvas with fewer objects, where many find no room."""
    (height, width), side = world.canvases[0], world.small + world.gap + world.margin
    most = min(world.max_count, max(1, (height // side) * (width // side)))
    while True:
        try:
            return random_scene(rng, world, between(rng, 1, most))
        except DataError:
            most = max(1, most - 1)


def _step(case: Case, rng: np.random.Generator, guesses: Sequence[Reading], world: World) -> float:
    """Share of a story's pictures that random ones get right."""
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
