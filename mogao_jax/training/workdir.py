"""The run's folder: checked before time is spent, and written so that it is never half a file.

config.json  metrics.jsonl  checkpoints/  tensorboard/  report.html
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from typing import Any

from mogao_jax.atomic import require_writable, write_file
from mogao_jax.checkpoints import CHECKPOINTS
from mogao_jax.errors import EnvironmentProblem

CONFIG, METRICS, TENSORBOARD = "config.json", "metrics.jsonl", "tensorboard"
_SPARE = 64 * 2**20  # for logs, metrics and the report


def prepare(workdir: str | os.PathLike, needed_bytes: int = 0) -> pathlib.Path:
    """Makes the folder and sees that it can be written and has room.

    Args:
      workdir: made with its parents if it is not there.
      needed_bytes: what the run is going to write (`checkpoint_bytes`); what already lies in
        checkpoints/ counts as room, because new ones replace it.
    Returns:
      The absolute path.
    Raises:
      EnvironmentProblem: the folder cannot be made or written, or the disk is too full.
    """
    path = require_writable(
        workdir, "Give another folder with --workdir, or free it or its permissions."
    ).absolute()
    room = shutil.disk_usage(path).free + folder_bytes(path / CHECKPOINTS)
    if room < needed_bytes + _SPARE:
        raise EnvironmentProblem(
            f"workdir {str(path)!r} has {_gib(room)} of room, but this run needs about "
            f"{_gib(needed_bytes + _SPARE)} (its checkpoints, and one more while it is written). "
            "Free some, give another folder with --workdir, or lower train.keep_checkpoints."
        )
    return path


def checkpoint_bytes(state_bytes: int, keep_checkpoints: int) -> int:
    """Disk space for the checkpoints kept and the one being written."""
    return state_bytes * (keep_checkpoints + 1)


def folder_bytes(path: pathlib.Path) -> int:
    """Bytes of all files below a folder; 0 where there is none."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except OSError:  # deleted meanwhile
                continue
    return total


def write_config(workdir: pathlib.Path, config: dict[str, Any]) -> None:
    """Writes config.json: the full config as JSON."""
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    write_file(workdir / CONFIG, text, durable=True)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
