"""The run's folder: checked before time is spent, and written so that it is never half a file.

config.json  metrics.jsonl  run_facts.json  checkpoints/  tensorboard/  report.html
"""

from __future__ import annotations

import json
import os
import pathlib
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import mogao_jax
from mogao_jax.atomic import require_writable, write_file
from mogao_jax.checkpoints import CHECKPOINTS
from mogao_jax.errors import EnvironmentProblem

CONFIG, METRICS, TENSORBOARD = "config.json", "metrics.jsonl", "tensorboard"
RUN_FACTS = "run_facts.json"  # what metrics.jsonl cannot say: parameter counts and the machine
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


def save_run_facts(
    workdir: str | os.PathLike,
    *,
    parameters: Mapping[str, int],
    devices: Sequence[Any] = (),
    **facts: Any,
) -> None:
    """Writes run_facts.json into the run folder, for the report.

    Args:
      workdir: the run's folder, which exists.
      parameters: number of parameters per part of the model.
      devices: `jax.devices()`; they are only printed.
      facts: anything JSON-able worth showing ("peak memory": "1.2 GiB").
    """
    record = {
        "parameters": {name: int(n) for name, n in parameters.items()},
        "machine": machine_facts(devices),
        "facts": dict(facts),
    }
    text = json.dumps(record, indent=2, default=str) + "\n"
    write_file(pathlib.Path(workdir) / RUN_FACTS, text)


def machine_facts(devices: Sequence[Any] = ()) -> dict[str, str]:
    """The machine and the software, in words."""
    facts = {"processor": _processor(), "cores": str(_cores())}
    memory = _memory_bytes()
    if memory:
        facts["memory"] = f"{memory / 2**30:.1f} GiB"
    if devices:
        kinds = [getattr(d, "device_kind", str(d)) for d in devices]
        facts["devices"] = ", ".join(f"{kinds.count(k)} x {k}" for k in dict.fromkeys(kinds))
    facts["system"] = f"{platform.system()} {platform.machine()}"
    facts["Python"] = sys.version.split()[0]
    facts["mogao_jax"] = mogao_jax.__version__
    for package in ("jax", "flax", "optax"):
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return facts


def _processor() -> str:
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0
