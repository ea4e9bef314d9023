"""Scores of a model on the benchmark: rows of proportions, as JSON for programs and as tables."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mogao_jax.errors import DataError
from mogao_jax.evals.proportion import Proportion
from mogao_jax.paths import expanded

FORMAT = "mogao_jax scores 1"
OVERALL = "overall"
TITLES = {
    "t2i": "Text to image, GenEval's categories",
    "qa": "Questions about an image, answered exactly",
    "edit": "Edits of an image",
    "story": "Stories",
    "clip": "The next frame of a clip",
}
METRICS = {
    "done": "done",
    "kept": "rest kept",
    "right": "right",
    "objects": "objects kept",
    "count": "number",
    "order": "order too",
    "steps": "images right",
    "whole": "all right",
    "repeated": "repeated",
}
# What the columns of a task mean, in the order of METRICS.
EXPLAINED = {
    ("edit", "done"): "what was asked is there, and nothing else is new",
    ("edit", "kept"): "background and every untouched object are as they were",
    ("edit", "right"): "both",
    ("edit", "objects"): "the same, of all untouched objects",
    ("edit", "repeated"): "nothing has changed (lower is better)",
    ("story", "count"): "as many images as asked for, and the model ended by itself",
    ("story", "order"): "and its sentences tell what was asked, in order (of a free story: an "
    "opening, then changes)",
    ("story", "steps"): "of all images: shows what was asked (free: what its sentence says)",
    ("story", "whole"): "number, order and all images",
    ("story", "repeated"): "of all images but the first: equal to the one before (lower is better)",
    ("clip", "done"): "the object moves as its caption says, and nothing is new",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
      task, group, metric: what of; group is a category or OVERALL.
      proportion: successes of trials. Categories have equally many cases, so the pooled overall
        proportion is also the mean of the categories, which is GenEval's overall score.
      chance: the same of a guess that looks at nothing; None where that means nothing.
    """

    task: str
    group: str
    metric: str
    proportion: Proportion
    chance: float | None = None

    @property
    def percent(self) -> str:
        return percent(self.proportion.value)


@dataclasses.dataclass(frozen=True)
class Scores:
    """A scored model.

    Attributes:
      name: of the model, for people.
      role: own, demo, untrained, or another word for whose model it is.
      rows: the figures.
      settings: how it was sampled, and on what.
      outcomes: by task, what was generated and judged (judging.Judged); not saved.
      grid: file name of the image grid beside the saved scores, "" if there is none.
    """

    name: str
    role: str
    rows: tuple[Row, ...]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    outcomes: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict, repr=False)
    grid: str = ""

    @property
    def title(self) -> str:
        return self.name if self.name == self.role else f"{self.name} ({self.role})"

    def find(self, task: str, group: str = OVERALL, metric: str = "right") -> Row | None:
        """A row, or None."""
        place = task, group, metric
        return next((r for r in self.rows if (r.task, r.group, r.metric) == place), None)


def to_json(scores: Scores) -> dict[str, Any]:
    """All but the outcomes: proportions with value and interval, and the same as tables to show."""
    rows = []
    for row in scores.rows:
        low, high = row.proportion.interval
        value = row.proportion.value
        rows.append(
            {
                **{"task": row.task, "group": row.group, "metric": row.metric},
                **{"title": TITLES[row.task], "label": METRICS[row.metric]},
                **{"value": None if math.isnan(value) else value, "low": low, "high": high},
                **{"right": row.proportion.right, "total": row.proportion.total},
                "chance": row.chance,
            }
        )
    return {
        "format": FORMAT,
        "name": scores.name,
        "role": scores.role,
        "settings": dict(scores.settings),
        "grid": scores.grid,
        "rows": rows,
        "tables": tables(scores),
    }


def from_json(record: Any, place: str) -> Scores:
    """The inverse of `to_json`; raises DataError, naming the place, if it is no such record."""
    try:
        if record["format"] != FORMAT:
            raise DataError(f"{place} is of another format ({record['format']!r}) than {FORMAT!r}.")
        rows = tuple(map(_row, record["rows"]))
        settings, grid = dict(record["settings"]), str(record["grid"])
        return Scores(str(record["name"]), str(record["role"]), rows, settings, grid=grid)
    except (KeyError, TypeError, ValueError, OverflowError) as e:
        raise DataError(f"{place} holds no scores (field {e}).") from None


def _row(record: Any) -> Row:
    task, group, metric = (str(record[name]) for name in ("task", "group", "metric"))
    found = Proportion(int(record["right"]), int(record["total"]))
    if not 0 <= found.right <= found.total:
        raise ValueError(f"'right' or 'total': {found.right} of {found.total}")
    chance = record["chance"]
    return Row(task, group, metric, found, None if chance is None else float(chance))


def read(path: pathlib.Path) -> Scores:
    """Scores that were saved; raises DataError."""
    try:
        record = json.loads(expanded(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise DataError(f"scores {str(path)!r} cannot be read ({e}).") from None
    return from_json(record, str(path))


def tables(scores: Scores, beside: Scores | None = None) -> list[dict[str, Any]]:
    """[{'title', 'lines', 'notes'}]: the tables as people read them, the first line the header."""
    by_task = {task: [r for r in scores.rows if r.task == task] for task in TITLES}
    return [_table(task, rows, beside) for task, rows in by_task.items() if rows]


def _table(task: str, rows: Sequence[Row], beside: Scores | None) -> dict[str, Any]:
    found = {r.metric for r in rows}
    metrics = [m for m in METRICS if m in found]
    lines = _one_metric(rows, beside)
    if len(metrics) > 1:
        lines = _several_metrics(rows, metrics, beside)
    notes = [f"{METRICS[m]}: {EXPLAINED[task, m]}" for m in metrics if (task, m) in EXPLAINED]
    return {"title": TITLES[task], "lines": lines, "notes": notes}


def _one_metric(rows: Sequence[Row], beside: Scores | None) -> list[list[str]]:
    """Lines of cells, the first the header; chance and the other model in columns of their own."""
    table = [["", METRICS[rows[0].metric], "95% interval", "trials", "chance"]]
    table[0] += [beside.role] if beside else []
    for row in rows:
        low, high = map(percent, row.proportion.interval)
        trials, chance = str(row.proportion.total), percent(row.chance)
        line = [label(row.group), row.percent, f"{low} .. {high}", trials, chance]
        table.append(line + ([_beside(row, beside)] if beside else []))
    return table


def _several_metrics(
    rows: Sequence[Row], metrics: Sequence[str], beside: Scores | None
) -> list[list[str]]:
    """The same with a column per metric; chance and the other model stand below."""
    found = {(r.group, r.metric): r for r in rows}

    def line(name: str, group: str, cell: Callable[[Row], str], absent: str = "") -> list[str]:
        shown = (found.get((group, m)) for m in metrics)
        return [name, *(cell(row) if row else absent for row in shown)]

    groups = dict.fromkeys(r.group for r in rows)
    table = [["", *(METRICS[m] for m in metrics)]]
    table += [line(label(g), g, _with_interval, "-") for g in groups]
    table.append(line("  trials", OVERALL, lambda row: str(row.proportion.total)))
    table.append(line("  chance", OVERALL, lambda row: percent(row.chance)))
    if beside:
        table.append(line(f"  {beside.role}", OVERALL, lambda row: _beside(row, beside)))
    return table


def as_text(scores: Scores, beside: Scores | None = None) -> str:
    """Tables for a terminal.

    Args:
      beside: another model, whose values stand in a column of their own.
    """
    lines = [f"Scores of {scores.title}"]
    for key, value in scores.settings.items():
        lines.append(f"  {key:<18} {value}")
    for table in tables(scores, beside):
        lines += ["", table["title"], "-" * len(table["title"]), *_aligned(table["lines"])]
        lines += [f"  {note}" for note in table["notes"]]
    lines += ["", "Percent. Intervals, in brackets where not said, are Wilson's at 95%."]
    return "\n".join(lines)


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    out = []
    for line in table:
        first, *rest = (f"{cell:>{w}}" for cell, w in zip(line, widths, strict=True))
        out.append("  ".join([f"{line[0]:<{len(first)}}", *rest]).rstrip())
    return out


def _with_interval(row: Row) -> str:
    low, high = row.proportion.interval
    return f"{row.percent} [{100 * low:.0f}, {100 * high:.0f}]"


def _beside(row: Row, beside: Scores) -> str:
    other = beside.find(row.task, row.group, row.metric)
    return other.percent if other else "-"


def label(group: str) -> str:
    """A group's name for people."""
    return group.replace("_", " ")


def percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f}"
