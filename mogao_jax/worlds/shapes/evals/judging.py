"""Judges what was generated for a case."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mogao_jax.sequence.document import Image, Item, Text
from mogao_jax.worlds.shapes.evals.cases import NOTHING, Case, Judged
from mogao_jax.worlds.shapes.evals.repetition import repeated_pixels
from mogao_jax.worlds.shapes.evals.scorers import verdicts
from mogao_jax.worlds.shapes.evals.scorers.reader import Reading, read_picture
from mogao_jax.worlds.shapes.evals.scorers.verdicts import Change, Verdict
from mogao_jax.worlds.shapes.evals.stories import judge_story
from mogao_jax.worlds.shapes.scene import DEFAULT_WORLD, World


def judge(
    case: Case, items: Sequence[Item], stop: str = "end", world: World = DEFAULT_WORLD
) -> Judged:
    """Judges what was generated for a case.

    Args:
      items: texts and pictures (with pixels) in order.
      stop: why generation ended; a story must have come to its own end ("end").
    """
    judges = {"t2i": _t2i, "qa": _qa, "edit": _edit, "clip": _clip, "story": judge_story}
    return judges[case.task](case, tuple(items), stop, world)


def _t2i(case: Case, items: tuple[Item, ...], stop: str, world: World) -> Judged:
    assert case.truth.request is not None
    drawn = _pictures(items)
    verdict = Verdict(False, NOTHING)
    if drawn:
        verdict = verdicts.judge_request(read_picture(drawn[0], world), case.truth.request)
    checks = {"right": verdict.right}
    return Judged(case, items, stop, checks, (verdict,), reason=verdict.reason)


def _qa(case: Case, items: tuple[Item, ...], stop: str, world: World) -> Judged:
    assert case.truth.question is not None
    answer = " ".join("".join(i.text for i in items if isinstance(i, Text)).split())
    right = answer == case.truth.question.answer and not _pictures(items)
    reason = "" if right else f"not {case.truth.question.answer!r}"
    return Judged(case, items, stop, {"right": right}, reason=reason)


def _edit(case: Case, items: tuple[Item, ...], stop: str, world: World) -> Judged:
    before = case.truth.scenes[0]
    drawn = _pictures(items)
    if not drawn:
        return _undrawn(case, items, stop)
    reading = read_picture(drawn[0], world)
    change = verdicts.judge_change(before, reading, case.truth.edits[0], world)
    given = _pictures(case.prompt.items)[-1]
    return _changed(case, items, stop, change, _repeats(change, reading, given, drawn[0]))


def _clip(case: Case, items: tuple[Item, ...], stop: str, world: World) -> Judged:
    before = case.truth.scenes[-2]
    assert case.truth.motion is not None
    drawn = _pictures(items)
    if not drawn:
        return _undrawn(case, items, stop)
    reading = read_picture(drawn[0], world)
    mover = before.objects[0]
    change = verdicts.judge_motion(before, reading, case.truth.motion, mover, world)
    given = _pictures(case.prompt.items)[-1]
    return _changed(case, items, stop, change, _repeats(change, reading, given, drawn[0]))


def _undrawn(case: Case, items: tuple[Item, ...], stop: str) -> Judged:
    checks = {"done": False, "kept": False, "right": False}
    scene = case.truth.scenes[-2]
    num = len(scene.objects) - (case.truth.motion is not None or _target(case) is not None)
    return Judged(
        case, items, stop, checks, (Verdict(False, NOTHING),), (0, num), (False,), NOTHING
    )


def _target(case: Case):
    return case.truth.edits[0].target if case.truth.edits else None


def _changed(
    case: Case, items: tuple[Item, ...], stop: str, change: Change, repeated: bool
) -> Judged:
    checks = {"done": change.done, "kept": change.kept, "right": change.right}
    objects = change.kept_objects, change.num_objects
    verdict = Verdict(change.right, change.reason)
    return Judged(case, items, stop, checks, (verdict,), objects, (repeated,), change.reason)


def _pictures(items: Sequence[Item]) -> list[np.ndarray]:
    return [i.pixels for i in items if isinstance(i, Image) and i.pixels is not None]


def _repeats(change: Change, reading: Reading, before: np.ndarray, after: np.ndarray) -> bool:
    return change.repeated if reading.clear else repeated_pixels(before, after)
