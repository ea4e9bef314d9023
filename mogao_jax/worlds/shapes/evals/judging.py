"""Judges what was generated for a case: answers, images, changes, and stories by every step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from mogao_jax.sequence.document import Image, Item, Text
from mogao_jax.worlds.shapes.evals.cases import Case
from mogao_jax.worlds.shapes.evals.scorers import sentences, verdicts
from mogao_jax.worlds.shapes.evals.scorers.reader import Reading, read_image
from mogao_jax.worlds.shapes.evals.scorers.verdicts import Change, Verdict
from mogao_jax.worlds.shapes.scene import DEFAULT_WORLD, World
from mogao_jax.worlds.shapes.truth import Wanted

NOTHING = "nothing was drawn"
IDLE = "its sentence changes nothing"


@dataclasses.dataclass(frozen=True, eq=False)
class Judged:
    """A case with what was generated for it, and its verdicts.

    Attributes:
      case, items, stop: the case, what was generated, and why generation ended.
      checks: what is counted: {"right": ...} for t2i and qa; "done", "kept" and "right" (both) for
        edits and clips; "count", "order" and "whole" for stories.
      images: a verdict for each image that was asked for; "nothing was drawn" if it is missing.
      objects: untouched objects kept, and how many there were (edit and clip).
      repeated: of each image that should have changed the one before: whether it repeats it.
      reason: why it is not right.
    """

    case: Case
    items: tuple[Item, ...]
    stop: str
    checks: dict[str, bool]
    images: tuple[Verdict, ...] = ()
    objects: tuple[int, int] = (0, 0)
    repeated: tuple[bool, ...] = ()
    reason: str = ""

    @property
    def right(self) -> bool:
        return self.checks.get("right", self.checks.get("whole", False))


def judge(
    case: Case, items: Sequence[Item], stop: str = "end", world: World = DEFAULT_WORLD
) -> Judged:
    """Judges what was generated for a case.

    Args:
      items: texts and images (with pixels) in order.
      stop: why generation ended; a story must have come to its own end ("end").
    """
    judges = {"t2i": _t2i, "qa": _qa, "edit": _change, "clip": _change, "story": _story}
    return judges[case.task](case, tuple(items), stop, world)


def _t2i(case: Case, items: tuple[Item, ...], stop: str, world: World) -> Judged:
    assert case.truth.request is not None
    drawn = _images(items)
    verdict = Verdict(False, NOTHING)
    if drawn:
        verdict = verdicts.judge_request(read_image(drawn[0], world), case.truth.request)
    return Judged(case, items, stop, {"right": verdict.right}, (verdict,), reason=verdict.reason)


def _qa(case: Case, items: tuple[Item, ...], stop: str, world: World) -> Judged:
    assert case.truth.question is not None
    answer = " ".join("".join(i.text for i in items if isinstance(i, Text)).split())
    right = answer == case.truth.question.answer and not _images(items)
    reason = "" if right else f"not {case.truth.question.answer!r}"
    return Judged(case, items, stop, {"right": right}, reason=reason)


def _change(case: Case, items: tuple[Item, ...], stop: str, world: World) -> Judged:
    """An edit, or the next frame of a clip."""
    truth, drawn = case.truth, _images(items)
    before = truth.scenes[-2]
    if not drawn:
        touched = truth.motion is not None or truth.edits[0].target is not None
        change = Change(False, False, 0, len(before.objects) - touched, False, NOTHING)
        repeated = False
    else:
        reading = read_image(drawn[0], world)
        change = verdicts.judge_last(truth, reading, world)
        repeated = change.repeated
        if not reading.clear:
            repeated = repeated_pixels(_images(case.prompt.items)[-1], drawn[0])
    return Judged(
        case,
        items,
        stop,
        {"done": change.done, "kept": change.kept, "right": change.right},
        (Verdict(change.right, change.reason),),
        (change.kept_objects, change.num_objects),
        (repeated,),
        change.reason,
    )


def pixels_of(image: Image) -> np.ndarray:
    """The pixels of an image that is known to have them."""
    assert image.pixels is not None
    return image.pixels


def _images(items: Sequence[Item]) -> list[np.ndarray]:
    return [pixels_of(i) for i in items if isinstance(i, Image)]


def repeated_pixels(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether two images are nearly equal, for those that cannot be read.

    Fewer pixels differ (by more than 40 in RGB, in means of 3x3) than a third of the smallest
    object's area.
    """
    if before.shape != after.shape:
        return False
    padded = np.pad(after.astype(np.float32) - before, ((1, 1), (1, 1), (0, 0)), mode="edge")
    mean = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (0, 1)).mean((-1, -2))
    return int((np.sqrt((mean**2).sum(-1)) > 40).sum()) < 24


# -------------------------------------------------------------------------------------- stories


def _story(case: Case, items: tuple[Item, ...], stop: str, world: World) -> Judged:
    """A story's count, the order of what its sentences tell, and what each image shows.

    The request of a planned story names the first object and every change: the sentences must tell
    them in this order, and each image is judged by them. A free story's request fixes the number
    of images, and in some the first object; the sentence before each image, the model's own, must
    tell an opening or a change, and the image is judged by it. Changes are those of what the
    model's last image shows; a sentence or an image that changes nothing of it is wrong.
    """
    drawn, said = _told(items)
    readings = [read_image(pixels, world) for pixels in drawn]
    number = len(case.truth.scenes)
    steps = [Verdict(False, NOTHING)] * number
    repeated = [False] * (number - 1)
    if drawn:
        steps[0] = _first_step(case, said[0], readings[0])
    for k in range(1, min(number, len(drawn))):
        steps[k] = _next_step(case, k, said[k], readings[k - 1], readings[k], world)
        repeated[k - 1] = _repeats(drawn[k - 1 : k + 1], readings[k - 1 : k + 1], world)
    count = len(drawn) == number and stop == "end"
    # A planned story's sentences are told to it, whatever its images show.
    idle = not case.truth.planned and any(step.reason == IDLE for step in steps)
    order = count and _tells_all(case, said) and not idle
    checks = {"count": count, "order": order, "whole": order and all(s.right for s in steps)}
    reasons = []
    if not count:
        reasons = [f"{len(drawn)} images for {number}{_ended(stop)}"]
    elif not order:
        reasons = [f"the sentences do not tell {_ASKED[case.truth.planned]}"]
    reason = "; ".join([*reasons, *_step_reasons(steps)])
    return Judged(case, items, stop, checks, tuple(steps), (0, 0), tuple(repeated), reason)


_ASKED = {True: "what was asked", False: "such a story"}  # planned or not


def _ended(stop: str) -> str:
    return "" if stop == "end" else f" ({stop.replace('_', ' ')})"


def _step_reasons(steps: Sequence[Verdict]) -> list[str]:
    return [f"{k}: {step.reason}" for k, step in enumerate(steps, start=1) if not step.right]


def _repeats(drawn: list[np.ndarray], readings: list[Reading], world: World) -> bool:
    """Whether the second of two images shows what the first one does."""
    if all(reading.clear for reading in readings):
        return verdicts.same_scene(readings[0].scene, readings[1].scene, world)
    return repeated_pixels(*drawn)


def _told(items: tuple[Item, ...]) -> tuple[list[np.ndarray], list[str]]:
    """Images, and the text before each."""
    drawn: list[np.ndarray] = []
    said: list[str] = []
    text = ""
    for item in items:
        if isinstance(item, Text):
            text += item.text
        else:
            drawn.append(pixels_of(item))
            said.append(text)
            text = ""
    return drawn, said


def _first_wanted(case: Case) -> Wanted | None:
    """The object of the first image, by shape and colour, if the request says it."""
    if case.truth.planned:
        return Wanted.of(case.truth.scenes[0].objects[0])
    return sentences.asked_story(case.asked)[1]


def _agree(wanted: Wanted | None, told: Wanted) -> bool:
    return wanted is None or (wanted.shape, wanted.color) == (told.shape, told.color)


def _tells_all(case: Case, said: list[str]) -> bool:
    """Whether there is a sentence before each image, and they tell such a story, in order."""
    first, claims = sentences.opening(said[0]), [sentences.change(text) for text in said[1:]]
    if first is None or None in claims or not _agree(_first_wanted(case), first):
        return False
    told = zip(claims, case.truth.edits, case.truth.scenes, strict=False)
    return not case.truth.planned or all(c and sentences.tells(c, e, s) for c, e, s in told)


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
) -> Verdict:
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
    if sentences.changes_nothing(edit, last.scene):
        return Verdict(False, IDLE)
    change = verdicts.judge_change(last.scene, reading, edit, world)
    if change.right and change.repeated:
        return Verdict(False, "nothing has changed")
    return Verdict(change.right, change.reason)
