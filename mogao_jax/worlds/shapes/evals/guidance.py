"""The effect of the two guidance scales, and the repetition that a high image guidance causes.

The paper keeps the two apart (docs/method.md section 6) because the previous picture is a shortcut:
guided towards it as strongly as towards the text, the next picture repeats it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from mogao_jax.sampling.options import SamplingOptions
from mogao_jax.worlds.shapes.evals.benchmark import DEFAULTS, Samples, run
from mogao_jax.worlds.shapes.evals.scores import percent

SCALES = (1.0, 3.0, 7.5)
IMAGE_SCALES = (1.0, 1.5, 7.5)
COLUMNS = (
    ("t2i", "right", "picture right"),
    ("edit", "done", "edit done"),
    ("edit", "kept", "rest kept"),
    ("edit", "repeated", "edit repeats"),
    ("story", "steps", "story pictures right"),
    ("story", "repeated", "story repeats"),
)


@dataclasses.dataclass(frozen=True)
class Setting:
    """Overall shares at one pair of scales, by (task, metric): (value, low, high, trials)."""

    guidance: float
    image_guidance: float
    shares: dict[tuple[str, str], tuple[float, float, float, int]]


def guidance_table(
    sampler: Samples,
    *,
    options: SamplingOptions = DEFAULTS,
    scales: Sequence[float] = SCALES,
    image_scales: Sequence[float] = IMAGE_SCALES,
    say: Callable[[str], None] | None = None,
    keep: Callable[[list[Setting]], object] | None = None,
    **arguments: Any,
) -> list[Setting]:
    """Scores t2i, edit and story at every pair of scales.

    Args:
      keep: is given the settings so far, after each.
      options, **arguments: as of `shapes.run`; every setting has the same cases and seeds.
    """
    made = []
    for scale in scales:
        for image_scale in image_scales:
            if say:
                say(f"guidance {scale}, image guidance {image_scale}")
            changed = dataclasses.replace(
                options, guidance_scale=scale, image_guidance_scale=image_scale
            )
            scores = run(
                sampler,
                tasks=("t2i", "edit", "story"),
                options=changed,
                with_chance=False,
                say=say,
                **arguments,
            )
            shares = {}
            for task, metric, _ in COLUMNS:
                row = scores.find(task, metric=metric)
                assert row is not None
                shares[task, metric] = (row.share.value, *row.share.interval, row.share.total)
            made.append(Setting(scale, image_scale, shares))
            if keep:
                keep(made)
    return made


def as_text(settings: Sequence[Setting]) -> str:
    """The table for a terminal, in percent."""
    names = [name for _, _, name in COLUMNS]
    lines = ["guidance  image guidance  " + "  ".join(names)]
    for s in settings:
        cells = [
            f"{percent(s.shares[task, metric][0]):>{len(name)}}" for task, metric, name in COLUMNS
        ]
        lines.append(f"{s.guidance:>8g}  {s.image_guidance:>14g}  " + "  ".join(cells))
    trials = {name: settings[0].shares[task, metric][3] for task, metric, name in COLUMNS}
    lines.append("trials each: " + ", ".join(f"{name} {n}" for name, n in trials.items()))
    return "\n".join(lines)


def as_json(settings: Sequence[Setting]) -> list[dict[str, Any]]:
    """The same, with intervals."""
    keys = ("value", "low", "high", "trials")
    return [
        {
            "guidance": s.guidance,
            "image_guidance": s.image_guidance,
            **{f"{t}/{m}": dict(zip(keys, v, strict=True)) for (t, m), v in s.shares.items()},
        }
        for s in settings
    ]
