"""Cases of the benchmark (a prompt and the truth about it), and the judgement of what came out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from mogao_jax.data.shapes.scene import DEFAULT_WORLD, Scene, World
from mogao_jax.data.shapes.truth import Truth, Wanted
from mogao_jax.data.shapes.world import ShapesSource
from mogao_jax.evals.scorers import sentences, verdicts
from mogao_jax.evals.scorers.reader import Reading, read_picture
from mogao_jax.evals.scorers.verdicts import Change, Verdict
from mogao_jax.sequence.document import Document, Image, Item, Text

# How many items of a document are its prompt; the rest is to be generated.
_PROMPT = {"t2i": 1, "qa": 2, "edit": 2, "story": 1, "clip": -1}
TASKS = tuple(_PROMPT)


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A held-out document, cut before what is to be generated.

    Attributes:
      task: one of TASKS.
      category: a GenEval category, a question's or an edit's kind, planned or free, a direction.
      prompt: what the model is given.
      truth: of the whole document.
      index: its place in the source.
    """

    task: str
    category: str
    prompt: Document
    truth: Truth
    index: int

    @property
    def asked(self) -> str:
        """The last text of the prompt."""
        return next((i.text for i in reversed(self.prompt.items) if isinstance(i, Text)), "")


@dataclasses.dataclass(frozen=True, eq=False)
class Judged:
    """What came of a case.

    Attributes:
      case, items, stop: the case, what was generated, and why generation ended.
      checks: what is counted: {"right": ...} for t2i and qa; "done", "kept" and "right" (both) for
        edits and clips; "count", "order" and "whole" for stories.
      pictures: a verdict for each picture that was asked for; "nothing was drawn" if it is missing.
      objects: untouched objects kept, and how many there were (edit and clip).
      repeated: of each picture that should have changed the one before: whether it repeats it.
      reason: why it is not right.
    """

    case: Case
    items: tuple[Item, ...]
    stop: str
    checks: dict[str, bool]
    pictures: tuple[Verdict, ...] = ()
    objects: tuple[int, int] = (0, 0)
    repeated: tuple[bool, ...] = ()
    reason: str = ""

    @property
    def right(self) -> bool:
        return self.checks.get("right", self.checks.get("whole", False))


def cases(
    task: str,
    categories: Sequence[str],
    per_category: int,
    *,
    seed: int = 0,
    world: World = DEFAULT_WORLD,
) -> list[Case]:
    """The first `per_category` validation documents of each category, in the source's order."""
    wanted = {category: per_category for category in categories}
    found = []
    for case in _all_cases(task, seed, world):
        if not any(wanted.values()):
            break
        if wanted.get(case.category, 0):
            wanted[case.category] -= 1
            found.append(case)
    return found


def _all_cases(task: str, seed: int, world: World) -> Iterator[Case]:
    source = ShapesSource(task, seed, "validation", world=world)
    for index in range(len(source)):
        document, truth = source.with_truth(index)
        prompt = Document(document.items[: _PROMPT[task]], id=document.id)
        yield Case(task, truth.category, prompt, truth, index)


def judge(
    case: Case, items: Sequence[Item], stop: str = "end", world: World = DEFAULT_WORLD
) -> Judged:
    """Judges what was generated for a case.

    Args:
      items: texts and pictures (with pixels) in order.
      stop: why generation ended; a story must have come to its own end ("end").
    """
    judge_task = {"t2i": _t2i, "qa": _qa, "edit": _edit, "clip": _clip, "story": _story}[case.task]
    return judge_task(case, tuple(items), stop, world)


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


NOTHING = "nothing was drawn"


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


# ------------------------------------------------------------------------------------- stories


def _story(case: Case, items: tuple[Item, ...], stop: str, world: World) -> Judged:
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


# ------------------------------------------------------------------------------------- pictures


def _pictures(items: Sequence[Item]) -> list[np.ndarray]:
    return [i.pixels for i in items if isinstance(i, Image) and i.pixels is not None]


def _repeats(change: Change, reading: Reading, before: np.ndarray, after: np.ndarray) -> bool:
    return change.repeated if reading.clear else repeated_pixels(before, after)


def repeated_pixels(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether two pictures are nearly equal, for those that cannot be read.

    Fewer pixels differ (by more than 40 in RGB, in means of 3x3) than a third of the smallest
    object's area.
    """
    if before.shape != after.shape:
        return False
    padded = np.pad(after.astype(np.float32) - before, ((1, 1), (1, 1), (0, 0)), mode="edge")
    mean = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (0, 1)).mean((-1, -2))
    return int((np.sqrt((mean**2).sum(-1)) > 40).sum()) < 24


def picture_scenes(truth: Truth) -> tuple[Scene, ...]:
    """The scenes of the pictures that a case asks for."""
    return {"t2i": truth.scenes, "story": truth.scenes}.get(truth.task, truth.scenes[-1:])
