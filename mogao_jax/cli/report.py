"""`mogao report --workdir DIR`: writes DIR/report.html, also while the run is going on."""

from __future__ import annotations

import argparse

from mogao_jax.report.page import write_report


def main(argv: list[str]) -> int:
    """Writes the report and says where it is."""
    parser = argparse.ArgumentParser(
        prog="mogao report",
        description="Writes report.html into a run's folder: losses, speed, settings, and the "
        "data as the model sees it. Works on runs that are going on or were stopped.",
    )
    parser.add_argument("--workdir", required=True, help="the folder that `mogao train` wrote to")
    arguments = parser.parse_args(argv)
    path = write_report(arguments.workdir)
    print(f"Report: {path} ({path.stat().st_size / 2**20:.1f} MiB)")
    return 0
