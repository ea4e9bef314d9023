"""Machines that are not at hand: slices of TPUs that the TPU compiler knows, and nodes of GPUs."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.metadata
import math
import os
import re
from typing import Any

from mogao_jax.errors import EnvironmentProblem
from mogao_jax.tools.plan.chips import CHIPS, Chip

GPUS_PER_NODE = 8

# Shapes that exist, per chip, for messages.
_EXAMPLES = {
    "v4": ("2x2x1", "4x4x4"),
    "v5e": ("2x2", "4x4", "8x8", "16x16"),
    "v5p": ("2x2x1", "2x2x2", "4x4x4", "8x8x8"),
    "v6e": ("2x2", "4x4", "8x8", "16x16"),
    "tpu7x": ("2x2x1", "4x4x4"),
}
# Chips whose two cores the compiler counts as devices of their own: planned by formulas alone, and
# so proposed to nobody.
_TWO_CORES = ("v4", "tpu7x")
_PROPOSED = {chip: shapes for chip, shapes in _EXAMPLES.items() if chip not in _TWO_CORES}
# By the number of chips, as the recipes name them.
_ALIASES = {
    f"{chip}-{math.prod(map(int, shape.split('x')))}": f"{chip}:{shape}"
    for chip, shapes in _EXAMPLES.items()
    for shape in shapes
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Some number of equal chips.

    Attributes:
      name: as the compiler knows it (TPUs), or such as "8xH100".
      chip: each of them.
      num_chips: of all slices together.
      num_slices: slices of TPUs; nodes of GPUs.
    """

    name: str
    chip: Chip
    num_chips: int
    num_slices: int

    @property
    def compiles(self) -> bool:
        """Whether programs can be compiled for it here."""
        return self.chip.platform == "tpu"

    @property
    def two_axes(self) -> tuple[int, int] | None:
        """Sizes of a data and an fsdp axis that each lie along axes of a TPU slice's torus: its
        first, and its others together. None for GPUs, and where it has but one."""
        sizes = [int(n) for n in self.name.partition(":")[2].split("x") if n not in ("", "1")]
        return (sizes[0], math.prod(sizes[1:])) if len(sizes) > 1 else None

    def __str__(self) -> str:
        times = f"{self.num_slices} x " if self.compiles and self.num_slices > 1 else ""
        return f"{times}{self.name}"


def parse(name: str, num_slices: int = 1) -> Topology:
    """The machine of a name: `v5p:4x4x4`, `v5p-64`, `8xH100`, `H200`.

    Args:
      num_slices: of TPUs; GPUs are cut into nodes of 8 by themselves.
    Raises:
      EnvironmentProblem: no such chip, or no shape; with names that exist.
    """
    gpu = re.fullmatch(r"(?:(\d+)x)?([A-Za-z]+\d+)", name)
    by_name = {c.lower(): chip for c, chip in CHIPS.items()}
    if gpu and (chip := by_name.get(gpu[2].lower())) and chip.platform == "gpu":
        count = int(gpu[1] or 1)
        if num_slices > 1:
            nodes = max(1, math.ceil(count / GPUS_PER_NODE)) * num_slices
            raise EnvironmentProblem(
                f"--num-slices is {num_slices}, but it joins slices of TPUs: name all GPUs in the "
                f"topology, such as --topology {nodes * GPUS_PER_NODE}x{chip.name}, whose nodes of "
                f"{GPUS_PER_NODE} are joined by the network."
            )
        if not count or (count > GPUS_PER_NODE and count % GPUS_PER_NODE):
            near = max(1, round(count / GPUS_PER_NODE)) * GPUS_PER_NODE
            raise EnvironmentProblem(
                f"--topology is {name!r}; more than {GPUS_PER_NODE} GPUs are whole nodes of "
                f"{GPUS_PER_NODE}, such as {near}x{chip.name}."
            )
        return Topology(f"{count}x{chip.name}", chip, count, math.ceil(count / GPUS_PER_NODE))
    full = _ALIASES.get(name, name)
    tpu = re.fullmatch(r"([a-z0-9]+):(\d+(?:x\d+)*)", full)
    chip = CHIPS.get(tpu[1]) if tpu else None
    if not tpu or chip is None or chip.name not in _EXAMPLES:
        gpus = ["8xH100", "64xH100", "8xH200", "1xH200"]
        slices = [x for pair in _ALIASES.items() for x in reversed(pair)]
        known = [x for x in slices if not x.startswith(_TWO_CORES)] + gpus
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        guess = f" Did you mean {close[0]!r}?" if close else ""
        raise EnvironmentProblem(
            f"--topology is {name!r}, which is not known.{guess} There are slices of TPUs, "
            f"{', '.join(f'{c}:{s[-1]}' for c, s in _PROPOSED.items())} (a chip and the shape of "
            "the slice), and GPUs, such as 8xH100, 64xH100, 1xH200."
        )
    num_chips = math.prod(int(n) for n in tpu[2].split("x"))
    if not num_chips:
        raise EnvironmentProblem(f"--topology is {name!r}, a slice without chips.")
    return Topology(full, chip, num_chips * num_slices, num_slices)


def devices(topology: Topology) -> list[Any]:
    """The devices of a topology, for a mesh; programs can be compiled for them and not run.

    Raises:
      EnvironmentProblem: the TPU compiler (libtpu) is missing, of another version than this jax
        needs, or does not know the topology.
    """
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # this is no TPU machine: nothing to ask
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "none")  # keeps its start quiet
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    check_compiler()
    from jax.experimental import topologies

    slices = topology.num_slices
    options = {"num_slices": slices} if slices > 1 else {}
    try:
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=topology.name, **options
        )
    except Exception as e:  # noqa: BLE001  (whatever the plugin raises)
        text = str(e)
        if "libtpu" in text.lower() or "lockfile" in text.lower():
            raise EnvironmentProblem(
                f"the TPU compiler does not start ({_brief(text)}). If another process uses it, "
                "set ALLOW_MULTIPLE_LIBTPU_LOAD=1; else install it anew: "
                "pip install 'mogao_jax[plan]'."
            ) from e
        near = ", ".join(f"{topology.chip.name}:{s}" for s in _EXAMPLES[topology.chip.name])
        raise EnvironmentProblem(
            f"the TPU compiler does not know the topology {topology.name!r} ({_brief(text)}); "
            f"{topology.chip.name} comes as {near}, among others."
        ) from e
    found = list(described.devices)
    if len(found) != topology.num_chips:
        raise EnvironmentProblem(
            f"the topology {topology} shows {len(found)} devices instead of "
            f"{topology.num_chips}: chips with two cores each are planned by formulas alone "
            "(--no-compile)."
        )
    return found


def check_compiler() -> None:
    """Raises EnvironmentProblem unless libtpu is there, in the version that this jax is for."""
    wanted = _wanted_version()
    hint = f"pip install 'libtpu=={wanted}' (or 'mogao_jax[plan]'); it needs no TPU"
    try:
        found = importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        if os.environ.get("TPU_LIBRARY_PATH"):
            return  # of a version that only it knows
        raise EnvironmentProblem(f"the TPU compiler, libtpu, is not installed: {hint}.") from None
    if wanted.endswith(".*") and not f"{found}.".startswith(wanted[:-1]):
        jax_version = importlib.metadata.version("jax")
        raise EnvironmentProblem(
            f"libtpu is of version {found}, but jax {jax_version} goes with {wanted}: {hint}."
        )


def _wanted_version() -> str:
    """Such as "0.0.42.*": what jax asks for on TPUs."""
    for requirement in importlib.metadata.requires("jax") or ():
        found = re.match(r"libtpu\s*==\s*([\w.*]+)", requirement)
        if found:
            return found[1]
    return "*"


def _brief(text: str) -> str:
    return text.strip().splitlines()[0][:200] if text.strip() else "no reason given"
