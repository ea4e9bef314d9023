"""Reads what a run left behind, whole or not: every file may be missing or end early."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from typing import Any

from mogao_jax.config import renamed
from mogao_jax.errors import DataError
from mogao_jax.paths import expanded
from mogao_jax.tools.report import data_sample
from mogao_jax.training.metrics import read_metrics
from mogao_jax.training.workdir import CONFIG, RUN_FACTS


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as found in its folder."""

    workdir: pathlib.Path
    config: dict[str, Any]  # the run's config.json, {} if there is none
    records: list[dict[str, Any]]  # lines of metrics.jsonl in order
    facts: dict[str, Any]  # run_facts.json, {} if there is none
    sample: tuple[dict[str, Any], dict[str, Any]] | None  # the data sample (record, arrays)
    notes: tuple[str, ...] = ()  # what is missing or damaged, in words

    def series(self, split: str, metric: str) -> tuple[list[int], list[float]]:
        """(steps, values) of a metric; records without it, or with null, are left out."""
        points = [
            (r["step"], float(r[metric]))
            for r in self.records
            if r.get("split") == split and _is_number(r.get(metric))
        ]
        return [p[0] for p in points], [p[1] for p in points]

    def last(self, split: str) -> dict[str, float]:
        """Numeric metrics of a split's last record."""
        records = [r for r in self.records if r.get("split") == split]
        return {k: float(v) for k, v in records[-1].items() if _is_number(v)} if records else {}

    def metrics(self, prefix: str) -> list[str]:
        """Names of the metrics that start so, in order of first appearance."""
        names = (k for r in self.records for k in r if k.startswith(prefix))
        return list(dict.fromkeys(names))


def load_run(workdir: str | os.PathLike) -> Run:
    """Reads a run folder.

    Raises:
      DataError: there is no such folder, or nothing of a run in it.
    """
    folder = expanded(workdir)
    if not folder.is_dir():
        raise DataError(f"there is no run folder {str(folder)!r}; give --workdir of a run.")
    notes: list[str] = []
    config = renamed.upgraded(_json(folder / CONFIG, notes))
    facts = _json(folder / RUN_FACTS, notes)
    records = read_metrics(folder)
    sample = None
    try:
        sample = data_sample.load_data_sample(folder)
    except FileNotFoundError:
        notes.append("No data sample was saved, so the data is not shown.")
    except DataError as e:
        notes.append(f"The data is not shown: {e}")
    if not (config or records or sample):
        raise DataError(
            f"{str(folder)!r} holds no run: neither config.json nor metrics.jsonl. Give the "
            "--workdir that `mogao train` was given."
        )
    if not records:
        notes.append("metrics.jsonl has no records yet: the run has logged nothing so far.")
    return Run(folder, config, records, facts, sample, tuple(notes))


def _json(path: pathlib.Path, notes: list[str]) -> dict[str, Any]:
    value: Any = None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        notes.append(f"There is no {path.name}.")
    except (ValueError, OSError) as e:
        notes.append(f"{path.name} cannot be read ({e}).")
    return value if isinstance(value, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
