"""`mogao report --workdir DIR`: writes DIR/report.html, also while the run is going on."""

from __future__ import annotations

import base64
import pathlib
import re

from mogao_jax.atomic import require_writable, write_file
from mogao_jax.console.flags import Parser
from mogao_jax.tools.report.charts import charts
from mogao_jax.tools.report.page import write_report
from mogao_jax.tools.report.run_folder import load_run


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
