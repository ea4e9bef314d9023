"""Cases of the benchmark: a prompt, the truth about it, and what came of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from mogao_jax.sequence.document import Document, Item, Text
from mogao_jax.worlds.shapes.evals.scorers.verdicts import Verdict
from mogao_jax.worlds.shapes.scene import DEFAULT_WORLD, World
from mogao_jax.worlds.shapes.truth import Truth
from mogao_jax.worlds.shapes.world import ShapesSource

NOTHING = "nothing was drawn"

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
    def canvas(self) -> tuple[int, int]:
        """(height, width) in pixels of the document's own pictures, the last one's: a size on
        which what is asked for has room."""
        scene = self.truth.scenes[-1]
        return scene.height, scene.width

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
