"""Multi-process helpers: initialisation, rank, barrier, all-gather."""

from __future__ import annotations

import os
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mogao_jax.errors import EnvironmentProblem

_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    heartbeat_timeout_seconds: int = 100,
) -> bool:
    """Joins the other processes; call it before anything touches a device.

    Defaults are the variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. If
    none is given or set, this is a program of one process and nothing happens.
    `coordinator="auto"` lets jax find the others (TPU pods, SLURM, Open MPI).

    Returns:
      True if this is now one of several processes, or of one that jax watches over.
    Raises:
      EnvironmentProblem: with what is missing, or with jax's message.
    """
    if jax.distributed.is_initialized():
        return True
    coordinator = coordinator or os.environ.get(_VARIABLES[0])
    try:
        given: dict[str, Any] = {}
        if coordinator != "auto":
            given["coordinator_address"] = coordinator
            given["num_processes"] = _number(num_processes, _VARIABLES[1])
            given["process_id"] = _number(process_id, _VARIABLES[2])
            missing = [n for n, v in zip(_VARIABLES, given.values(), strict=True) if v is None]
            if len(missing) == len(given):
                return False
            if missing:
                raise EnvironmentProblem(
                    f"to start several processes, {' and '.join(missing)} must be set as well "
                    "(or set JAX_COORDINATOR_ADDRESS=auto alone where jax can find out by itself)."
                )
        jax.distributed.initialize(**given, heartbeat_timeout_seconds=heartbeat_timeout_seconds)
    except (RuntimeError, ValueError) as e:
        raise EnvironmentProblem(
            f"the processes could not find each other ({e}). Check that the coordinator "
            f"{coordinator!r} can be reached from here and that every process has its own number."
        ) from e
    return True


def _number(given: int | None, variable: str) -> int | None:
    text = os.environ.get(variable)
    return int(text) if given is None and text is not None else given


def process_index() -> int:
    return jax.process_index()


def process_count() -> int:
    return jax.process_count()


def is_main() -> bool:
    """Whether this process writes logs and files that exist once per run."""
    return jax.process_index() == 0


def sync(name: str) -> None:
    """A barrier: waits until all processes are here. `name` must be the same everywhere."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def gather(value: int | float) -> list[Any]:
    """Every process's number (int up to 32 bits, or float), in the order of process index."""
    if jax.process_count() == 1:
        return [value]
    dtype = np.float32 if isinstance(value, float) else np.uint32
    return multihost_utils.process_allgather(np.asarray(value, dtype)).reshape(-1).tolist()


def all_agree(ok: bool) -> bool:
    """True if it is true in every process."""
    return all(gather(int(ok)))
