"""Random access to the world: `source[index]` is a document, the same one every time."""

from __future__ import annotations

import dataclasses

import numpy as np

from mogao_jax.errors import DataError
from mogao_jax.sequence.document import Document
from mogao_jax.worlds.shapes.scene import DEFAULT_WORLD, World
from mogao_jax.worlds.shapes.tasks import TASK_CATEGORIES, TASKS, make_document
from mogao_jax.worlds.shapes.truth import Truth

SPLITS = ("train", "validation")


@dataclasses.dataclass(frozen=True)
class ShapesSource:
    """An endless source of documents of one task, deterministic by (seed, split, task, index).

    The splits are disjoint in their randomness: every document has its own stream, keyed by all
    four (and the category), and no stream is shared. Both are samples of one distribution, so a
    validation document is new but not forbidden to recur: short questions and simple captions do
    recur (there are only so many), whole documents with images practically never (see the
    tests).

    Attributes:
      task: one of TASKS: text, qa, t2i, edit, story, clip, describe, state, quiz.
      seed: any non-negative integer.
      split: "train" or "validation".
      size: its length.
      world: the parameters of the images.
      category: of tasks that have them (t2i, qa, state, quiz): only documents of this one;
        empty: of all.

    Raises:
      DataError: an unknown task, category or split, or a negative seed.
    """

    task: str
    seed: int = 0
    split: str = "train"
    size: int = 2**31 - 1
    world: World = DEFAULT_WORLD
    category: str = ""

    def __post_init__(self):
        if self.task not in TASKS:
            raise DataError(
                f"shapes: unknown task {self.task!r}; the tasks are {', '.join(TASKS)}."
            )
        known = TASK_CATEGORIES.get(self.task, ())
        if self.category and self.category not in known:
            raise DataError(
                f"shapes: task {self.task!r} has no category {self.category!r}; "
                + (f"the categories are {', '.join(known)}." if known else "leave it empty.")
            )
        if self.split not in SPLITS:
            raise DataError(f"shapes: unknown split {self.split!r}; use {' or '.join(SPLITS)}.")
        if self.seed < 0 or self.size < 1:
            raise DataError(
                f"shapes: seed must be 0 or more and size 1 or more, got seed {self.seed}, "
                f"size {self.size}."
            )

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Document:
        return self.with_truth(index)[0]

    def truth(self, index: int) -> Truth:
        """The truth of `source[index]`."""
        return self.with_truth(index)[1]

    def with_truth(self, index: int) -> tuple[Document, Truth]:
        """Both at the price of one.

        Raises:
          IndexError: the index is outside [0, size).
        """
        index = int(index)
        if not 0 <= index < self.size:
            raise IndexError(f"index {index} is outside [0, {self.size}).")
        source = f"{self.task}/{self.category}" if self.category else self.task
        id = f"shapes/{source}/{self.split}/{self.seed}/{index}"
        return make_document(self.task, self.rng(index), self.world, self.category, id)

    def rng(self, index: int) -> np.random.Generator:
        """The stream that makes document `index`."""
        place = [SPLITS.index(self.split), tuple(TASKS).index(self.task), index]
        if self.category:
            place.append(TASK_CATEGORIES[self.task].index(self.category))
        return np.random.Generator(
            np.random.Philox(np.random.SeedSequence(self.seed, spawn_key=place))
        )
