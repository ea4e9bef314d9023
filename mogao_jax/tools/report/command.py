"""`mogao report --workdir DIR`: writes DIR/report.html, also while the run is going on.

One self-contained page. Everything that comes from the run (names, texts, values) is escaped by the
template engine.
"""

from __future__ import annotations

import base64
import datetime
import os
import pathlib
import re
from typing import Any

import mogao_jax
from mogao_jax.atomic import require_writable, write_file
from mogao_jax.console.flags import Parser
from mogao_jax.gallery.folder import fill_template
from mogao_jax.tools.report import summary
from mogao_jax.tools.report.charts import charts
from mogao_jax.tools.report.data_section import data_section
from mogao_jax.tools.report.results_section import as_text, compare, samples_section, scores_section
from mogao_jax.tools.report.run_folder import Run, load_run


def main(argv: list[str]) -> int:
    """Writes the report and says where it is."""
    parser = Parser(
        prog="mogao report",
        description="Writes report.html into a run's folder: losses, speed, settings, and the "
        "data as the model sees it. Works on runs that are going on or were stopped.",
    )
    parser.add_argument("--workdir", required=True, help="the folder that `mogao train` wrote to")
    parser.add_argument("--curves", help="also write each chart into this folder, as SVG")
    arguments = parser.parse_args(argv)
    path = write_report(arguments.workdir)
    if table := as_text(compare(scores_section(load_run(arguments.workdir)))):
        print(f"{table}\n")
    print(f"Report: {path} ({path.stat().st_size / 2**20:.1f} MiB)")
    if arguments.curves:
        for file in write_curves(arguments.workdir, pathlib.Path(arguments.curves)):
            print(f"Chart: {file}")
    return 0


def write_curves(workdir: str, folder: pathlib.Path) -> list[pathlib.Path]:
    """One SVG file per chart of the report, named after it."""
    folder = require_writable(folder, "Give another folder with --curves.")
    files = []
    for chart in charts(load_run(workdir)):
        name = re.sub(r"[^a-z0-9]+", "-", chart["title"].lower()).strip("-")
        files.append(folder / f"{name}.svg")
        write_file(files[-1], base64.b64decode(chart["image"].split(",", 1)[1]))
    return files


def write_report(workdir: str | os.PathLike) -> pathlib.Path:
    """Writes report.html into the run folder; returns its path.

    Raises:
      DataError: the folder holds no run.
      EnvironmentProblem: matplotlib is missing, or the file cannot be written.
    """
    run = load_run(workdir)
    path = run.workdir / "report.html"
    write_file(path, render(run))
    return path


def render(run: Run) -> str:
    """The page as HTML."""
    scores = scores_section(run)
    own = next((model for model in scores if model["role"] == "own"), None)
    values: dict[str, Any] = {
        "name": run.config.get("train", {}).get("experiment")
        or run.config.get("name", run.workdir.name),
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
        "scores": scores,
        "compared": compare(scores),
        "verdicts": own and own["grid"],
        "samples": samples_section(run),
        "written": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    }
    shown = {"scores": "compared", "score-details": "scores", "losses": "validation"}
    contents = [(id, title) for id, title in _CONTENTS if _has(values.get(shown.get(id, id)))]
    return fill_template("mogao_jax.tools.report", contents=contents, **values)


_CONTENTS = (
    ("verdicts", "Judged images"),
    ("scores", "Scores"),
    ("samples", "Samples"),
    ("charts", "Curves"),
    ("score-details", "Scores in full"),
    ("config", "What was run"),
    ("data", "The data"),
    ("losses", "Losses"),
)


def _has(part: Any) -> bool:
    """Whether the page has something to show of a part."""
    return bool(part["rows"] if isinstance(part, dict) and "rows" in part else part)
