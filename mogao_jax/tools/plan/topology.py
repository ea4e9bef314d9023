"""Machines you do not have: slices of TPUs that the TPU compiler knows, and nodes of GPUs.

Figures per chip are the published ones, dense bf16 without sparsity: Google Cloud's TPU system
architecture pages (v4, v5e, v5p, v6e, Ironwood) and NVIDIA's data sheets of the SXM parts.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.metadata
import math
import os
import re
from typing import Any

from mogao_jax.errors import EnvironmentProblem

GPUS_PER_NODE = 8


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator.

    Attributes:
      name: as in a topology's name.
      platform: JAX's name of it.
      flops: bf16 FLOP/s at peak.
      memory: bytes of HBM that the specification gives.
      bandwidth: bytes/s of HBM.
      link_bandwidth: bytes/s of all links inside a slice or node together, one way (ICI, NVLink).
      network_bandwidth: bytes/s per chip between slices or nodes (data-centre network), one way;
        an assumption of the estimate, since it depends on the installation.
    """

    name: str
    platform: str
    flops: float
    memory: float
    bandwidth: float
    link_bandwidth: float
    network_bandwidth: float


_GIB = 2.0**30
_GBIT = 1e9 / 8

CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", "tpu", 275e12, 32 * _GIB, 1228e9, 2400 * _GBIT / 2, 6.25e9),
        Chip("v5e", "tpu", 197e12, 16 * _GIB, 819e9, 1600 * _GBIT / 2, 3.1e9),
        Chip("v5p", "tpu", 459e12, 95 * _GIB, 2765e9, 4800 * _GBIT / 2, 6.25e9),
        Chip("v6e", "tpu", 918e12, 32 * _GIB, 1640e9, 3584 * _GBIT / 2, 12.5e9),
        Chip("tpu7x", "tpu", 2307e12, 192 * _GIB, 7380e9, 9600 * _GBIT / 2, 12.5e9),
        Chip("H100", "gpu", 989e12, 80e9, 3350e9, 450e9, 50e9),
        Chip("H200", "gpu", 989e12, 141e9, 4800e9, 450e9, 50e9),
    )
}

# Shapes that exist, per chip, for messages.
_EXAMPLES = {
    "v4": ("2x2x1", "4x4x4"),
    "v5e": ("2x2", "4x4", "8x8", "16x16"),
    "v5p": ("2x2x1", "2x2x2", "4x4x4", "8x8x8"),
    "v6e": ("2x2", "4x4", "8x8", "16x16"),
    "tpu7x": ("2x2x1", "4x4x4"),
}
# Chips whose two cores the compiler counts as devices of their own. They are planned by formulas
# alone, so no message proposes them.
_TWO_CORES = ("v4", "tpu7x")
# Names by the number of chips, as in the recipes: v5p-64.
_ALIASES = {
    f"{chip}-{math.prod(map(int, shape.split('x')))}": f"{chip}:{shape}"
    for chip, shapes in _EXAMPLES.items()
    for shape in shapes
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A number of equal chips.

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
        """Sizes of a data and an fsdp axis along a TPU slice's torus: its first axis, and the
        others together. None for GPUs, and for slices of a single axis."""
        sizes = [int(n) for n in self.name.partition(":")[2].split("x") if n not in ("", "1")]
        return (sizes[0], math.prod(sizes[1:])) if len(sizes) > 1 else None

    def __str__(self) -> str:
        times = f"{self.num_slices} x " if self.compiles and self.num_slices > 1 else ""
        return f"{times}{self.name}"


def parse(name: str, num_slices: int = 1) -> Topology:
    """The machine of a name: `v5p:4x4x4`, `v5p-64`, `8xH100`, `H200`.

    Args:
      num_slices: of TPUs; GPUs come in nodes of 8 by themselves.
    Raises:
      EnvironmentProblem: no such chip, or no shape; with names that exist.
    """
    gpus = {c.lower(): chip for c, chip in CHIPS.items() if chip.platform == "gpu"}
    gpu = re.fullmatch(r"(?:(\d+)x)?([A-Za-z]+\d+)", name)
    if gpu and gpu[2].lower() in gpus:
        return _gpus(name, int(gpu[1] or 1), gpus[gpu[2].lower()], num_slices)
    full = _ALIASES.get(name, name)
    tpu = re.fullmatch(r"([a-z0-9]+):(\d+(?:x\d+)*)", full)
    if not tpu or tpu[1] not in _EXAMPLES:
        raise _unknown(name)
    num_chips = math.prod(int(n) for n in tpu[2].split("x"))
    if not num_chips:
        raise EnvironmentProblem(f"--topology is {name!r}, a slice without chips.")
    return Topology(full, CHIPS[tpu[1]], num_chips * num_slices, num_slices)


def _gpus(name: str, count: int, chip: Chip, num_slices: int) -> Topology:
    each, nodes = GPUS_PER_NODE, math.ceil(count / GPUS_PER_NODE)
    if num_slices > 1:
        raise EnvironmentProblem(
            f"--num-slices is {num_slices}, but it joins slices of TPUs: name all GPUs in the "
            f"topology, such as --topology {max(1, nodes) * num_slices * each}x{chip.name}, whose "
            f"nodes of {each} are joined by the network."
        )
    if not count or (count > each and count % each):
        near = max(1, round(count / each)) * each
        raise EnvironmentProblem(
            f"--topology is {name!r}; more than {each} GPUs are whole nodes of {each}, such as "
            f"{near}x{chip.name}."
        )
    return Topology(f"{count}x{chip.name}", chip, count, nodes)


def _unknown(name: str) -> EnvironmentProblem:
    gpus = ["8xH100", "64xH100", "8xH200", "1xH200"]
    slices = [x for pair in _ALIASES.items() for x in reversed(pair)]
    known = [x for x in slices if not x.startswith(_TWO_CORES)] + gpus
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    guess = f" Did you mean {close[0]!r}?" if close else ""
    proposed = (f"{c}:{s[-1]}" for c, s in _EXAMPLES.items() if c not in _TWO_CORES)
    return EnvironmentProblem(
        f"--topology is {name!r}, which is not known.{guess} There are slices of TPUs, "
        f"{', '.join(proposed)} (a chip and the shape of the slice), and GPUs, such as 8xH100, "
        "64xH100, 1xH200."
    )


def devices(topology: Topology) -> list[Any]:
    """The devices of a topology, for a mesh. Programs can be compiled for them, not run.

    Raises:
      EnvironmentProblem: the TPU compiler (libtpu) is missing, of another version than this jax
        needs, or does not know the topology.
    """
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # no TPU machine: no metadata to ask for
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
    """Raises EnvironmentProblem unless libtpu is installed, in the version that jax requires."""
    wanted = wanted_version()
    hint = f"pip install 'libtpu=={wanted}' (or 'mogao_jax[plan]'); it needs no TPU"
    try:
        found = importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        if os.environ.get("TPU_LIBRARY_PATH"):
            return  # its version is not known
        raise EnvironmentProblem(f"the TPU compiler, libtpu, is not installed: {hint}.") from None
    if wanted.endswith(".*") and not f"{found}.".startswith(wanted[:-1]):
        jax_version = importlib.metadata.version("jax")
        raise EnvironmentProblem(
            f"libtpu is of version {found}, but jax {jax_version} goes with {wanted}: {hint}."
        )


def wanted_version() -> str:
    """The version of libtpu that jax requires, such as "0.0.42.*"."""
    for requirement in importlib.metadata.requires("jax") or ():
        found = re.match(r"libtpu\s*==\s*([\w.*]+)", requirement)
        if found:
            return found[1]
    return "*"


def _brief(text: str) -> str:
    return text.strip().splitlines()[0][:200] if text.strip() else "no reason given"
