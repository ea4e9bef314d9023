"""Scores on disk: scores.json, and the image grids beside it."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence

from mogao_jax.atomic import atomic_file, write_file
from mogao_jax.evals import cards
from mogao_jax.evals.cards import Card, CardImage, Section
from mogao_jax.paths import expanded
from mogao_jax.sequence.document import Image, Text
from mogao_jax.worlds.shapes.evals.benchmark import GROUPS
from mogao_jax.worlds.shapes.evals.judging import Judged, pixels_of
from mogao_jax.worlds.shapes.evals.scores import TITLES, Scores, as_text, label, to_json

# Cases of each category that are shown.
PNG_PER_CATEGORY = {"t2i": 6, "qa": 4, "edit": 4, "story": 5, "clip": 3}
HTML_PER_CATEGORY = {"t2i": 24, "qa": 12, "edit": 16, "story": 24, "clip": 12}
_REMEDY = "Give a folder that you may write to."


def save(
    scores: Scores, folder: str | os.PathLike, suffix: str = "", beside: Scores | None = None
) -> list[pathlib.Path]:
    """Writes scores<suffix>.json, grid<suffix>.png and grid<suffix>.html into a folder.

    Args:
      suffix: such as "_demo", so that several models' scores can lie in one folder.
      beside: another model's scores, shown in the page's tables.
    Returns:
      The files.
    Raises:
      EnvironmentProblem: the folder or a file cannot be written.
    """
    root = expanded(folder)
    files = [root / f"{name}{suffix}{end}" for name, end in _FILES]
    shown = sections(scores.outcomes, PNG_PER_CATEGORY)
    scores = dataclasses.replace(scores, grid=files[1].name if shown else "")
    text = json.dumps(to_json(scores), indent=1, allow_nan=False)
    write_file(files[0], text + "\n", remedy=_REMEDY)
    if not shown:
        return files[:1]
    with atomic_file(files[1], remedy=_REMEDY) as partial:
        cards.png(f"Scores of {scores.title}", shown).save(partial, "PNG", optimize=True)
    write_file(files[2], page(scores, beside), remedy=_REMEDY)
    return files


_FILES = (("scores", ".json"), ("grid", ".png"), ("grid", ".html"))


def page(scores: Scores, beside: Scores | None = None) -> str:
    """The HTML page of scored outcomes."""
    return cards.page(
        f"Scores of {scores.title}",
        "Every image is judged exactly, against what its request says.",
        as_text(scores, beside),
        sections(scores.outcomes, HTML_PER_CATEGORY),
    )


def sections(
    outcomes: Mapping[str, Sequence[Judged]], per_category: Mapping[str, int]
) -> list[Section]:
    """The first cases of every category, right or wrong as they come, in the order of TITLES.

    Args:
      outcomes: by task, as in Scores.
      per_category: how many of each category, by task.
    """
    made = []
    for task in [t for t in TITLES if t in outcomes]:
        for category in GROUPS[task]:
            chosen = [j for j in outcomes[task] if j.case.category == category]
            shown = tuple(card(j) for j in chosen[: per_category.get(task, 0)])
            if shown:
                made.append(Section(f"{TITLES[task]}: {label(category)}", shown))
    return made


def card(judged: Judged) -> Card:
    """A case: its prompt and what was generated for it, in order."""
    prompt = judged.case.prompt.items
    images = [CardImage(pixels_of(i)) for i in prompt if isinstance(i, Image)]
    verdicts = iter(judged.images)
    words = ""
    for item in judged.items:
        if isinstance(item, Text):
            words += item.text
            continue
        verdict = next(verdicts, None)
        right = verdict is not None and verdict.right
        images.append(CardImage(pixels_of(item), words.strip(), right))
        words = ""
    asked = " / ".join(i.text for i in prompt if isinstance(i, Text))
    return Card(asked, tuple(images), words.strip(), judged.right, judged.reason)
