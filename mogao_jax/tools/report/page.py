"""report.html: one self-contained page about a run, also of one that is still going on.

Everything that comes from the run (names, texts, values) is escaped by the template engine.
"""

from __future__ import annotations

import datetime
import os
import pathlib
from typing import Any

import mogao_jax
from mogao_jax.atomic import write_file
from mogao_jax.gallery.page import fill_template
from mogao_jax.tools.report import summary
from mogao_jax.tools.report.charts import charts
from mogao_jax.tools.report.data_section import data_section
from mogao_jax.tools.report.results_section import samples_section, scores_section
from mogao_jax.tools.report.run_folder import Run, load_run

NAME = "report.html"


def write_report(workdir: str | os.PathLike) -> pathlib.Path:
    """Writes report.html into the run folder; returns its path.

    Raises:
      DataError: the folder holds no run.
      EnvironmentProblem: matplotlib is missing, or the file cannot be written.
    """
    run = load_run(workdir)
    path = run.workdir / NAME
    write_file(path, render(run))
    return path


def render(run: Run) -> str:
    """The page as HTML."""
    return fill_template("mogao_jax.tools.report", **template_values(run))


def template_values(run: Run) -> dict[str, Any]:
    """All that the template shows."""
    return {
        "name": run.config.get("name", run.workdir.name),
        "version": mogao_jax.__version__,
        "status": summary.status(run),
        "notes": run.notes,
        "headlines": summary.headlines(run),
        "config": summary.config_summary(run.config),
        "full_config": summary.flatten(run.config),
        "parameters": summary.parameters(run.facts),
        "machine": run.facts.get("machine", {}),
        "facts": {str(k): summary.shown_value(v) for k, v in run.facts.get("facts", {}).items()},
        "charts": charts(run),
        "validation": summary.validation_table(run),
        "data": data_section(run),
        "scores": scores_section(run),
        "samples": samples_section(run),
        "written": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    }
