"""Judges stories: how many pictures, in which order they are told, and what each shows."""

from __future__ import annotations

import numpy as np

from mogao_jax.sequence.document import Item, Text
from mogao_jax.worlds.shapes.evals.cases import NOTHING, Case, Judged
from mogao_jax.worlds.shapes.evals.repetition import repeated_pixels
from mogao_jax.worlds.shapes.evals.scorers import sentences, verdicts
from mogao_jax.worlds.shapes.evals.scorers.reader import Reading, read_picture
from mogao_jax.worlds.shapes.evals.scorers.verdicts import Change, Verdict
from mogao_jax.worlds.shapes.scene import World
from mogao_jax.worlds.shapes.truth import Wanted


def judge_story(case: Case, items: tuple[Item, ...], stop: str, world: World) -> Judged:
    """A story's count, the order of what its sentences tell, and what each picture shows.

    The request of a planned story names the first object and every change: the sentences must tell
    them in this order, and each picture is judged by them. A free story's request fixes the
    number of pictures, and in some the first object; the sentence before each picture, the
    model's own, must tell an opening or a change, and the picture is judged by it. Changes are
    those of what the model's last picture shows.
    """
    drawn, said, is_told = _tell(items)
    readings = [read_picture(pixels, world) for pixels in drawn]
    number = len(case.truth.scenes)
    steps, repeated = [], []
    for k in range(number):
        if k >= len(drawn):
            steps.append(Verdict(False, NOTHING))
            repeated += [False] * (k > 0)
        elif k == 0:
            steps.append(_first_step(case, said[0], readings[0]))
        else:
            change = _next_step(case, k, said[k], readings[k - 1], readings[k], world)
            repeats = isinstance(change, Change) and change.repeated
            if not (readings[k - 1].clear and readings[k].clear):
                repeats = repeated_pixels(drawn[k - 1], drawn[k])
            elif not isinstance(change, Change):
                repeats = verdicts.same_scene(readings[k - 1].scene, readings[k].scene, world)
            steps.append(Verdict(change.right, change.reason))
            repeated.append(repeats)
    count = len(drawn) == number and stop == "end"
    order = count and is_told and _tells_all(case, said)
    checks = {"count": count, "order": order, "whole": order and all(s.right for s in steps)}
    reasons = [f"{k + 1}: {s.reason}" for k, s in enumerate(steps) if not s.right]
    if not count:
        reasons.insert(0, f"{len(drawn)} pictures for {number}" + _ended(stop))
    elif not order:
        told = "what was asked" if case.truth.planned else "such a story"
        reasons.insert(0, f"the sentences do not tell {told}")
    return Judged(
        case, items, stop, checks, tuple(steps), (0, 0), tuple(repeated), "; ".join(reasons)
    )


def _ended(stop: str) -> str:
    return "" if stop == "end" else f" ({stop.replace('_', ' ')})"


def _tell(items: tuple[Item, ...]) -> tuple[list[np.ndarray], list[str], bool]:
    """Pictures, the text before each, and whether there is text before each."""
    drawn: list[np.ndarray] = []
    said: list[str] = []
    text = ""
    for item in items:
        if isinstance(item, Text):
            text += item.text
        else:
            assert item.pixels is not None
            drawn.append(item.pixels)
            said.append(text)
            text = ""
    return drawn, said, all(s.strip() for s in said)


def _first_wanted(case: Case) -> Wanted | None:
    """What the request says of the first picture's object."""
    if case.truth.planned:
        first = case.truth.scenes[0].objects[0]
        return Wanted(first.shape, first.color)
    return sentences.asked_story(case.asked)[1]


def _agree(wanted: Wanted | None, told: Wanted) -> bool:
    """Whether a sentence tells of what the request wants, if it wants something."""
    if wanted is None:
        return True
    return (wanted.shape, wanted.color) == (told.shape, told.color)


def _tells_all(case: Case, said: list[str]) -> bool:
    first = sentences.opening(said[0])
    if first is None or not _agree(_first_wanted(case), first):
        return False
    for k, text in enumerate(said[1:]):
        claim = sentences.change(text)
        if claim is None:
            return False
        edits, scenes = case.truth.edits, case.truth.scenes
        if case.truth.planned and not sentences.tells(claim, edits[k], scenes[k]):
            return False
    return True


def _first_step(case: Case, text: str, reading: Reading) -> Verdict:
    wanted = _first_wanted(case)
    if not case.truth.planned:
        told = sentences.opening(text)
        if told is None:
            return Verdict(False, "its sentence is not understood")
        if not _agree(wanted, told):
            return Verdict(False, "its sentence is about something else")
        wanted = told
    assert wanted is not None
    return verdicts.judge_opening(reading, wanted)


def _next_step(
    case: Case, k: int, text: str, last: Reading, reading: Reading, world: World
) -> Verdict | Change:
    if not last.clear:
        return Verdict(False, reading.problems[0] if reading.problems else "follows an unclear one")
    if case.truth.planned:
        edit = sentences.transfer(case.truth.edits[k - 1], last.scene)
    else:
        claim = sentences.change(text)
        if claim is None:
            return Verdict(False, "its sentence is not understood")
        edit = sentences.resolve(claim, last.scene)
    if edit is None:
        return Verdict(False, "what is to change is not there")
    return verdicts.judge_change(last.scene, reading, edit, world)
