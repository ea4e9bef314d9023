"""What the picture grids show of a judged case: prompt, pictures with verdicts, and the outcome."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from mogao_jax.sequence.document import Text
from mogao_jax.worlds.shapes.evals.benchmark import GROUPS
from mogao_jax.worlds.shapes.evals.cases import Judged
from mogao_jax.worlds.shapes.evals.scores import TITLES, label


@dataclasses.dataclass(frozen=True, eq=False)
class CardImage:
    """A picture with the words over it and its verdict; None if it was given."""

    pixels: np.ndarray
    words: str = ""
    right: bool | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Card:
    """A case as people look at it.

    Attributes:
      prompt: the words that were asked.
      pictures: in order, given ones too.
      answer: text that was generated after the last picture (answers, closing texts).
      right: the verdict; reason: why not.
    """

    prompt: str
    pictures: tuple[CardImage, ...]
    answer: str
    right: bool
    reason: str


@dataclasses.dataclass(frozen=True)
class Section:
    """Cards of a category of a task."""

    task: str
    title: str
    cards: tuple[Card, ...]


def sections(
    outcomes: Mapping[str, Sequence[Judged]], per_category: Mapping[str, int]
) -> list[Section]:
    """The first cases of every category, right or wrong as they come.

    Args:
      outcomes: by task, as in Scores.
      per_category: how many of each category, by task.
    """
    made = []
    for task, judged in outcomes.items():
        for category in GROUPS[task]:
            chosen = [j for j in judged if j.case.category == category]
            cards = tuple(card(j) for j in chosen[: per_category.get(task, 0)])
            if cards:
                title = f"{TITLES[task]}: {label(category)}"
                made.append(Section(task, title, cards))
    order = {task: number for number, task in enumerate(TITLES)}
    return sorted(made, key=lambda s: order[s.task])


def card(judged: Judged) -> Card:
    """A case, its prompt and what came of it, in order."""
    pictures: list[CardImage] = []
    texts: list[str] = []
    for item in judged.case.prompt.items:
        if isinstance(item, Text):
            texts.append(item.text)
        else:
            assert item.pixels is not None
            pictures.append(CardImage(item.pixels))
    words, drawn = "", 0
    for item in judged.items:
        if isinstance(item, Text):
            words += item.text
            continue
        assert item.pixels is not None
        verdicts = judged.pictures
        right = verdicts[drawn].right if drawn < len(verdicts) else False
        pictures.append(CardImage(item.pixels, words.strip(), right))
        words, drawn = "", drawn + 1
    prompt = " / ".join(texts)
    return Card(prompt, tuple(pictures), words.strip(), judged.right, judged.reason)
