"""The collectives of a compiled program, read from its HLO text.

Each is counted with the bytes that it moves, the mesh axes that it joins, and how often it runs:
once for every turn of the loops around it. The number of turns is what XLA writes down
(`known_trip_count`), else the constant that the loop's condition compares its counter with, as
scans have; loops whose number of turns depends on the data count once.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4,
          "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "f8e4m3fn": 1, "f8e5m2": 1}  # fmt: skip
_SHAPE = re.compile(r"\b(" + "|".join(_BYTES) + r")\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(
    r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) (" + "|".join(KINDS) + r")(-start)?\("
)
_CALLED = re.compile(
    r"\b(body|condition|to_apply|calls|branch_computations|true_computation|false_computation)="
    r"(\{[^}]*\}|%?[\w.\-]+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
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
      turns: how often a step runs it; 1 where the number of turns is not known.
      axes: mesh axes along which devices exchange; ("?",) where the text is not understood.
      group_size: devices that exchange with each other.
      where: the model's names of the operation it came from (op_name), "" if not known.
    """

    kind: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    bytes: int
    turns: int
    axes: tuple[str, ...]
    group_size: int
    where: str

    @property
    def sent(self) -> float:
        """Bytes that a device sends in one run, with the ring algorithms that are in use."""
        n = self.group_size
        if n < 2:
            return float(self.bytes) if self.kind == "collective-permute" else 0.0
        per_result = {
            "all-gather": (n - 1) / n,
            "all-reduce": 2 * (n - 1) / n,
            "reduce-scatter": n - 1.0,  # its result is a part of what goes in
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
    bodies = dict(_computations(hlo))
    turns = _turns(bodies)
    found = []
    for name, lines in bodies.items():
        # TPUs' fused form: an all-reduce of which each device keeps its part.
        scatters = "all-reduce-scatter" in name
        for line in lines:
            match = _INSTRUCTION.match(line)
            if not match:
                continue
            kind = match[3]
            shapes = [
                (dtype, tuple(int(n) for n in dims.split(",") if n))
                for dtype, dims in _SHAPE.findall(match[2])
            ]
            if match[4] and kind in ("all-gather", "collective-permute") and len(shapes) > 1:
                # The asynchronous form's result holds the operand too, then what is gathered.
                shapes = shapes[len(shapes) // 2 :][:1]
            axes, size = _axes(_attribute(line, "replica_groups"), mesh_shape)
            if kind == "collective-permute":
                pairs = _attribute(line, "source_target_pairs")
                axes, size = _axes(pairs.replace("}}", "}").split("}")[0] + "}}", mesh_shape)
            if size == 1:
                continue
            size_in_bytes = sum(_BYTES[d] * math.prod(s) for d, s in shapes)
            if scatters and kind == "all-reduce":
                kind, size_in_bytes = "reduce-scatter", size_in_bytes // max(size, 1)
            where = re.search(r'op_name="([^"]*)"', line)
            found.append(
                Collective(
                    kind,
                    tuple(shapes),
                    size_in_bytes,
                    turns.get(name, 1),
                    axes,
                    size,
                    where[1] if where else "",
                )
            )
    return found


def _computations(hlo: str) -> Iterator[tuple[str, list[str]]]:
    name = ""
    lines: list[str] = []
    for line in hlo.splitlines():
        opened = _COMPUTATION.match(line)
        if opened:
            name, lines = opened[1], []
        elif line.startswith("}") and name:
            yield name, lines
            name = ""
        elif name:
            lines.append(line)


def _turns(bodies: dict[str, list[str]]) -> dict[str, int]:
    """How often each computation runs: the product of the loops around it."""
    callers: dict[str, list[tuple[str, int]]] = {}
    for name, lines in bodies.items():
        for line in lines:
            called = [
                (kind, computation.strip().lstrip("%"))
                for kind, group in _CALLED.findall(line.split(", metadata=")[0])
                for computation in group.strip("{}").split(",")
            ]
            count = 1
            if " while(" in line:
                trips = _TRIPS.search(line)
                condition = dict(called).get("condition", "")
                count = int(trips[1]) if trips else _limit(bodies, condition)
            for _, computation in called:
                callers.setdefault(computation, []).append((name, count))

    known: dict[str, int] = {}

    def of(name: str) -> int:
        if name not in known:
            known[name] = 1  # the entry; also what breaks a circle, which HLO does not have
            if name in callers:
                known[name] = sum(of(caller) * count for caller, count in callers[name])
        return known[name]

    return {name: of(name) for name in bodies}


def _limit(bodies: dict[str, list[str]], condition: str) -> int:
    """The one constant that a loop's condition compares with; 1 where there is none, or more."""
    lines = bodies.get(condition, [])
    for line in list(lines):  # the comparison may be fused
        for kind, group in _CALLED.findall(line):
            if kind == "calls":
                lines = lines + bodies.get(group.strip().lstrip("%"), [])
    constants = {int(n) for line in lines for n in _CONSTANT.findall(line)}
    is_less = any("direction=LT" in line for line in lines)
    return constants.pop() if len(constants) == 1 and is_less else 1


def _attribute(line: str, name: str) -> str:
    """The value of an attribute: up to the comma that is in no bracket."""
    start = line.find(f"{name}=")
    if start < 0:
        return ""
    start += len(name) + 1
    named = _NAMED.match(line, start)  # has a comma outside of its brackets
    if named:
        return named[0]
    depth = 0
    for end in range(start, len(line)):
        depth += (line[end] in "{[(") - (line[end] in "}])")
        if depth < 0 or (not depth and line[end] == ","):
            return line[start:end]
    return line[start:]


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

    Three forms are in use: lists `{{0,1},{2,3}}`; iota, `[groups,size]<=[dims]T(permutation)`;
    and named, `mesh['a'=4,'b'=2] {'b'}`, perhaps with `, device_ids=([dims]T(permutation))`.
    """
    if groups in ("", "{}"):
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
        # An axis may be cut: (pre)size takes `size` of it after `pre` slower parts.
        taken = np.zeros(1, int)
        for before, count in parts:
            step = size // (before * count)
            taken = (taken[:, None] + step * np.arange(count)).reshape(-1)
        index.append(taken)
    return numbers[np.ix_(*index)].reshape(-1)


def traffic(found: list[Collective]) -> dict[tuple[str, str], dict[str, float]]:
    """{(kind, axes joined by "+"): {"bytes": results, "sent": by a device, "runs": ...}} a step."""
    table: dict[tuple[str, str], dict[str, float]] = {}
    for c in found:
        row = table.setdefault((c.kind, "+".join(c.axes)), {"bytes": 0.0, "sent": 0.0, "runs": 0.0})
        row["bytes"] += float(c.bytes) * c.turns
        row["sent"] += c.sent * c.turns
        row["runs"] += c.turns
    return dict(sorted(table.items(), key=lambda item: -item[1]["sent"]))
