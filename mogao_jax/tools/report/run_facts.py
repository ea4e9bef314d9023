"""What metrics.jsonl cannot say of a run: parameter counts and the machine (run_facts.json)."""

from __future__ import annotations

import json
import os
import pathlib
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import mogao_jax
from mogao_jax.atomic import write_file

NAME = "run_facts.json"


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
    write_file(pathlib.Path(workdir) / NAME, text)


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
