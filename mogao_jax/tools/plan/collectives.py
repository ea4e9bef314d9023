"""The collectives of a compiled program, read from its HLO text.

Each is counted with its bytes, the mesh axes that it joins, and how often a step runs it: the
product of the trip counts of the loops around it. A trip count is what XLA writes down
(`known_trip_count`), else the constant that the loop's condition compares its counter with, as in
scans. Loops whose trip count depends on data count once.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4,
          "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "f8e4m3fn": 1, "f8e5m2": 1}  # fmt: skip
_SHAPE = re.compile(r"\b(" + "|".join(_BYTES) + r")\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{\n([\s\S]*?)^\}", re.MULTILINE)
_INSTRUCTION = re.compile(
    r"^ +(?:ROOT )?%?[\w.\-]+ = (\(.*?\)|\S+) (" + "|".join(KINDS) + r")(-start)?\((.*)$",
    re.MULTILINE,
)
_CALLED = re.compile(
    r"\b(body|condition|to_apply|calls|branch_computations|true_computation|false_computation)="
    r"(\{[^}]*\}|%?[\w.\-]+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_CONSTANT = re.compile(r"= s32\[\]\S* constant\((\d+)\)")
_NAMED = re.compile(
    r"mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]*)\](?:T\(([\d,]*)\))?\))? ?\{([^}]*)\}"
)
_MESH_AXIS = re.compile(r"'([\w.]+)'(?::\((\d+)\)(\d+))?")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction.

    Attributes:
      kind: of KINDS.
      shapes: of its results per device, as (dtype, dimensions).
      bytes: of its results on one device.
      runs: how often a step runs it.
      axes: mesh axes along which devices exchange; ("?",) where the text is not understood.
      group_size: devices that exchange with each other.
      where: the operation of the model that it came from (op_name); "" if not known.
    """

    kind: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    bytes: int
    runs: int
    axes: tuple[str, ...]
    group_size: int
    where: str

    @property
    def sent(self) -> float:
        """Bytes that a device sends in one run, by ring algorithms."""
        n = self.group_size
        if n < 2:
            return float(self.bytes) if self.kind == "collective-permute" else 0.0
        per_result = {
            "all-gather": (n - 1) / n,
            "all-reduce": 2 * (n - 1) / n,
            "reduce-scatter": n - 1.0,  # its result is a shard of its operand
            "all-to-all": (n - 1) / n,
            "collective-permute": 1.0,
        }
        return self.bytes * per_result[self.kind]


def collectives(hlo: str, mesh_shape: Mapping[str, int]) -> list[Collective]:
    """All collectives of a compiled module that join more than one device.

    Args:
      hlo: `compiled.as_text()`.
      mesh_shape: devices per mesh axis, in the mesh's order.
    """
    bodies = {m[1]: m[2] for m in _COMPUTATION.finditer(hlo)}
    runs = _runs(bodies)
    found = [
        # A fusion of this name is TPUs' reduce-scatter: each device keeps its part of the sum.
        _collective(match, runs[name], mesh_shape, scatters="all-reduce-scatter" in name)
        for name, body in bodies.items()
        for match in _INSTRUCTION.finditer(body)
    ]
    return [c for c in found if c.group_size != 1]


def _collective(
    match: re.Match[str], runs: int, mesh_shape: Mapping[str, int], scatters: bool
) -> Collective:
    results, kind, is_start, attributes = match.groups()
    shapes = [
        (dtype, tuple(map(int, re.findall(r"\d+", dims))))
        for dtype, dims in _SHAPE.findall(results)
    ]
    if is_start and kind in ("all-gather", "collective-permute") and len(shapes) > 1:
        # The asynchronous form's result holds the operand too, then the output.
        shapes = shapes[len(shapes) // 2 :][:1]
    groups = "source_target_pairs=" if kind == "collective-permute" else "replica_groups="
    axes, size = _axes(attributes.partition(groups)[2], mesh_shape)
    size_in_bytes = sum(_BYTES[d] * math.prod(s) for d, s in shapes)
    if scatters and kind == "all-reduce":
        kind, size_in_bytes = "reduce-scatter", size_in_bytes // max(size, 1)
    where = (_OP_NAME.findall(attributes) or [""])[0]
    return Collective(kind, tuple(shapes), size_in_bytes, runs, axes, size, where)


def _runs(bodies: Mapping[str, str]) -> dict[str, int]:
    """How often each computation runs: the product of the trip counts around it."""
    callers: dict[str, list[tuple[str, int]]] = {}
    for name, body in bodies.items():
        for line in body.splitlines():
            called = {
                computation.strip().lstrip("%"): kind
                for kind, group in _CALLED.findall(line.split(", metadata=")[0])
                for computation in group.strip("{}").split(",")
            }
            count = _trip_count(bodies, line, called) if " while(" in line else 1
            for computation in called:
                callers.setdefault(computation, []).append((name, count))

    @functools.cache
    def runs(name: str) -> int:
        if name not in callers:  # the entry
            return 1
        return sum(runs(caller) * count for caller, count in callers[name])

    return {name: runs(name) for name in bodies}


def _trip_count(bodies: Mapping[str, str], loop: str, called: Mapping[str, str]) -> int:
    """What XLA writes down, else the one constant that the condition compares with, else 1."""
    if known := _TRIPS.search(loop):
        return int(known[1])
    text = "".join(bodies.get(name, "") for name, kind in called.items() if kind == "condition")
    # The comparison may be fused.
    text += "".join(bodies.get(name, "") for name in re.findall(r"\bcalls=%?([\w.\-]+)", text))
    constants = set(_CONSTANT.findall(text))
    return int(constants.pop()) if len(constants) == 1 and "direction=LT" in text else 1


def traffic(found: list[Collective]) -> dict[tuple[str, str], dict[str, float]]:
    """{(kind, axes joined by "+"): {"bytes": results, "sent": by a device, "runs": ...}} a step."""
    table: dict[tuple[str, str], dict[str, float]] = {}
    for c in found:
        row = table.setdefault((c.kind, "+".join(c.axes)), {"bytes": 0.0, "sent": 0.0, "runs": 0.0})
        row["bytes"] += float(c.bytes) * c.runs
        row["sent"] += c.sent * c.runs
        row["runs"] += c.runs
    return dict(sorted(table.items(), key=lambda item: -item[1]["sent"]))


# ------------------------------------------------------------------------------ groups and axes


def _axes(groups: str, mesh_shape: Mapping[str, int]) -> tuple[tuple[str, ...], int]:
    """(mesh axes that a group spans, its size). No groups: all devices are one."""
    shape = tuple(mesh_shape.values())
    members = first_group(groups, math.prod(shape))
    if members is None:
        return ("?",), 0
    places = np.array(np.unravel_index(members, shape))
    differ = (places != places[:, :1]).any(axis=1)
    return tuple(a for a, d in zip(mesh_shape, differ, strict=True) if d), len(members)


def first_group(groups: str, num_devices: int) -> np.ndarray | None:
    """Members of the first group, as numbers in the mesh; None where the text is not understood.

    The text begins with one of three forms: lists `{{0,1},{2,3}}`; iota,
    `[groups,size]<=[dims]T(permutation)`; or named, `mesh['a'=4,'b'=2] {'b'}`, perhaps with
    `, device_ids=([dims]T(permutation))` before the axes.
    """
    if not groups or groups.startswith("{}"):
        return np.arange(num_devices)
    listed = re.match(r"\{\{([\d,]+)\}", groups)
    if listed:
        return np.array([int(n) for n in listed[1].split(",")])
    iota = re.match(r"\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", groups)
    if iota:
        return _iota(num_devices, iota[3], iota[4]).reshape(int(iota[1]), int(iota[2]))[0]
    named = _NAMED.match(groups)
    if named:
        order = _iota(num_devices, named[2] or str(num_devices), named[3])
        return _named_group(named[1], named[4], order.reshape(-1))
    return None


def _iota(num_devices: int, dims: str, permutation: str | None) -> np.ndarray:
    """0, 1, ... in the given shape, transposed."""
    order = np.arange(num_devices).reshape([int(n) for n in dims.split(",")])
    if permutation:
        order = order.transpose([int(n) for n in permutation.split(",")])
    return order


def _named_group(mesh: str, axes: str, order: np.ndarray) -> np.ndarray | None:
    sizes = {name: int(n) for name, n in re.findall(r"'([\w.]+)'=(\d+)", mesh)}
    if math.prod(sizes.values()) != len(order):
        return None
    numbers = order.reshape(tuple(sizes.values()))
    wanted = _MESH_AXIS.findall(axes)
    index: list[object] = []
    for name, size in sizes.items():
        parts = [(int(b or 1), int(n or size)) for a, b, n in wanted if a == name]
        # A part of an axis: (pre)size takes `size` of it after `pre` slower parts.
        taken = np.zeros(1, int)
        for before, count in parts:
            step = size // (before * count)
            taken = (taken[:, None] + step * np.arange(count)).reshape(-1)
        index.append(taken)
    return numbers[np.ix_(*index)].reshape(-1)
