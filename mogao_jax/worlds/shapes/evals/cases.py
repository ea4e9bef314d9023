"""Cases of the benchmark: held-out documents, cut before what is to be generated."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from mogao_jax.sequence.document import Document, Text
from mogao_jax.worlds.shapes.scene import DEFAULT_WORLD, World
from mogao_jax.worlds.shapes.truth import Truth
from mogao_jax.worlds.shapes.world import ShapesSource

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
        """(height, width) in pixels of the document's last image: what is asked for fits there."""
        scene = self.truth.scenes[-1]
        return scene.height, scene.width

    @property
    def asked(self) -> str:
        """The last text of the prompt."""
        return next((i.text for i in reversed(self.prompt.items) if isinstance(i, Text)), "")


def cases(
    task: str,
    categories: Sequence[str],
    per_category: int,
    *,
    seed: int = 0,
    world: World = DEFAULT_WORLD,
) -> list[Case]:
    """The first `per_category` validation documents of each category, in the source's order."""
    source = ShapesSource(task, seed, "validation", world=world)
    left = dict.fromkeys(categories, per_category)
    found: list[Case] = []
    index = 0
    while any(left.values()):
        document, truth = source.with_truth(index)
        if left.get(truth.category, 0):
            left[truth.category] -= 1
            prompt = Document(document.items[: _PROMPT[task]], id=document.id)
            found.append(Case(task, truth.category, prompt, truth, index))
        index += 1
    return found
