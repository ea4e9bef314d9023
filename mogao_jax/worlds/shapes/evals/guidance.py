"""The effect of the two guidance scales, and the repetition that a high image guidance causes.

The paper keeps the two apart (docs/method.md section 6) because the previous image is a shortcut:
guided towards it as strongly as towards the text, the next image repeats it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from mogao_jax.evals.proportion import Proportion
from mogao_jax.evals.retrieval import Samples
from mogao_jax.worlds.shapes.evals.benchmark import DEFAULT_BENCHMARK, Benchmark, run
from mogao_jax.worlds.shapes.evals.scores import percent

SCALES = (1.0, 3.0, 7.5)
IMAGE_SCALES = (1.0, 1.5, 7.5)
COLUMNS = {
    ("t2i", "right"): "image right",
    ("edit", "done"): "edit done",
    ("edit", "kept"): "rest kept",
    ("edit", "repeated"): "edit repeats",
    ("story", "steps"): "story images right",
    ("story", "repeated"): "story repeats",
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """Overall proportions at one pair of scales, by (task, metric)."""

    guidance: float
    image_guidance: float
    proportions: dict[tuple[str, str], Proportion]


def guidance_table(
    sampler: Samples,
    benchmark: Benchmark = DEFAULT_BENCHMARK,
    *,
    scales: Sequence[float] = SCALES,
    image_scales: Sequence[float] = IMAGE_SCALES,
    say: Callable[[str], None] = lambda message: None,
    keep: Callable[[list[Setting]], object] = lambda made: None,
) -> list[Setting]:
    """Scores t2i, edit and story at every pair of scales, with the same cases and seeds.

    Args:
      benchmark: its tasks and its guidance are replaced.
      keep: is given the settings so far, after each.
    """
    made: list[Setting] = []
    for scale, image_scale in itertools.product(scales, image_scales):
        say(f"guidance {scale}, image guidance {image_scale}")
        options = dataclasses.replace(
            benchmark.options, guidance_scale=scale, image_guidance_scale=image_scale
        )
        changed = dataclasses.replace(
            benchmark, tasks=("t2i", "edit", "story"), options=options, with_chance=False
        )
        scores = run(sampler, changed, say=say)
        found = {place: scores.find(place[0], metric=place[1]) for place in COLUMNS}
        proportions = {place: row.proportion for place, row in found.items() if row}
        made.append(Setting(scale, image_scale, proportions))
        keep(made)
    return made


def as_text(settings: Sequence[Setting]) -> str:
    """The table for a terminal, in percent."""
    lines = ["guidance  image guidance  " + "  ".join(COLUMNS.values())]
    for s in settings:
        cells = [
            f"{percent(s.proportions[place].value):>{len(name)}}" for place, name in COLUMNS.items()
        ]
        lines.append(f"{s.guidance:>8g}  {s.image_guidance:>14g}  " + "  ".join(cells))
    trials = [f"{name} {settings[0].proportions[place].total}" for place, name in COLUMNS.items()]
    lines.append("trials each: " + ", ".join(trials))
    return "\n".join(lines)


def as_json(settings: Sequence[Setting]) -> list[dict[str, Any]]:
    """The same, with intervals."""

    def figures(p: Proportion) -> dict[str, float]:
        low, high = p.interval
        return {"value": p.value, "low": low, "high": high, "trials": p.total}

    return [
        {
            "guidance": s.guidance,
            "image_guidance": s.image_guidance,
            **{f"{task}/{metric}": figures(p) for (task, metric), p in s.proportions.items()},
        }
        for s in settings
    ]
