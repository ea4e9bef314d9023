"""Where a compiled program spends its time, instruction by instruction, from a profiler trace.

An instruction belongs to a part of the model by the path of names under which JAX traced it, which
XLA keeps in its metadata ("jit(train_step)/transpose(jvp(Mogao))/layers_0/und.finish/gate/
dot_general"). A fusion bears the name of its last operation: what was fused into it counts there.
"""

from __future__ import annotations

import collections
import dataclasses
import gzip
import json
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

Event = Mapping[str, Any]
MARKER = "end: "  # XLA's CPU backend marks the end of every instruction by an event of its own


ATTENTION = "attention"
UND = "und branch: matmuls"
GEN = "gen branch: matmuls"
ADALN = "AdaLN, timesteps, modulation"
ELEMENTWISE = "norms, residuals, elementwise"
ROPE = "rotary embedding"
CONNECTORS = "embedding, connectors, velocity head"
CROSS_ENTROPY = "language head, cross-entropy"
VAE = "VAE (frozen)"
VIT = "ViT (frozen)"
NOISE = "noise and timesteps: drawing"
OPTIMIZER = "optimizer, EMA, gradient norm"
COMMUNICATION = "communication between devices"
OTHER = "other (losses, gathers, copies without a name)"

GROUPS = (
    UND, GEN, ATTENTION, CROSS_ENTROPY, ADALN, ELEMENTWISE, ROPE, CONNECTORS, VAE, VIT, NOISE,
    OPTIMIZER, COMMUNICATION, OTHER,
)  # fmt: skip

_PROJECTIONS = {"query", "key", "value", "output", "gate", "up", "down"}
_ADALN = {"adaln", "final_adaln", "modulation", "timestep_embedder", "_conditioning"}
_CONNECTORS = {"vit_merger", "vit_linear", "latent_in", "velocity_head", "_embed"}
# The first row wins that has one of its names on the path (and, if it has more, one of those too).
_BY_NAME: tuple[tuple[str, set[str], set[str]], ...] = (
    (VIT, {"VisionTower"}, set()),  # before attention: the tower calls the same one
    (VAE, {"FluxVae", "Taef1"}, set()),
    (ATTENTION, {"attention"}, set()),
    (CROSS_ENTROPY, {"cross_entropy"}, set()),
    (ROPE, {"rope"}, set()),
    (ADALN, _ADALN, set()),
    (UND, {"und"}, _PROJECTIONS),
    (GEN, {"gen"}, _PROJECTIONS),
    (CONNECTORS, _CONNECTORS, set()),
    (ELEMENTWISE, {"Mogao"}, set()),
)
_RANDOM = re.compile(r"random|threefry|_normal|_uniform|erf_inv|fold_in")
_COLLECTIVE = re.compile(
    r"^(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)", re.IGNORECASE
)


@dataclasses.dataclass(frozen=True)
class OperationTimes:
    """Seconds per step by group of operations.

    Attributes:
      groups: own time (without that of instructions inside, as in a loop), summed over threads
        or devices.
      top: the instructions that took most: (seconds, instruction, its path of names).
      covered: seconds per step in which at least one instruction ran.
    """

    groups: dict[str, float]
    top: list[tuple[float, str, str]]
    covered: float

    @property
    def shares(self) -> dict[str, float]:
        """Of all groups' time, each one's."""
        total = sum(self.groups.values()) or 1.0
        return {group: seconds / total for group, seconds in self.groups.items()}


def record(run: Callable[[], Any]) -> list[Event]:
    """Runs under jax's profiler; the trace's events.

    Raises:
      RuntimeError, OSError: the platform cannot trace, or left no file.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # Python's own calls would crowd out the device's
    with tempfile.TemporaryDirectory(prefix="mogao-profile-") as folder:
        with jax.profiler.trace(folder, create_perfetto_trace=True, profiler_options=options):
            jax.block_until_ready(run())
        files = sorted(pathlib.Path(folder).rglob("perfetto_trace.json.gz"))
        if not files:
            raise RuntimeError("the profiler left no perfetto_trace.json.gz")
        with gzip.open(files[-1], "rt", encoding="utf-8") as file:
            content = json.load(file)
    return content["traceEvents"] if isinstance(content, dict) else content


def instruction_events(events: Iterable[Event], known: Iterable[str]) -> list[Event]:
    """The complete events that are executions of the program's instructions.

    Accelerators draw the same execution on several lines; where there is one called "XLA Ops",
    that one alone is taken.
    """
    events, known = list(events), set(known)
    lines = {_line(e) for e in events if _thread_name(e).startswith("XLA Ops")}
    return [
        e
        for e in events
        if e.get("ph") == "X"
        and not str(e.get("name", "")).startswith(MARKER)
        and _instruction(e) in known
        and (not lines or _line(e) in lines)
    ]


def _line(event: Event) -> tuple[Any, Any]:
    return event.get("pid"), event.get("tid")


def _thread_name(event: Event) -> str:
    """The name that a metadata event gives to a line; "" for other events."""
    is_name = event.get("ph") == "M" and event.get("name") == "thread_name"
    return str(event.get("args", {}).get("name", "")) if is_name else ""


def _instruction(event: Event) -> str:
    return str(event.get("args", {}).get("hlo_op") or event.get("name", ""))


def self_times(events: Iterable[Event]) -> list[tuple[Event, float, Event | None]]:
    """Every event with its own time (duration less that of events inside), and its parent.

    Events nest per thread (pid, tid): a loop's event holds those of its body. Times are those of
    the events (microseconds).
    """
    threads: dict[Any, list[Event]] = collections.defaultdict(list)
    for event in events:
        threads[_line(event)].append(event)
    result = []
    for thread in threads.values():
        thread.sort(key=lambda e: (e["ts"], -e["dur"]))
        own = [float(e["dur"]) for e in thread]
        parents: list[Event | None] = []
        stack: list[int] = []
        for i, event in enumerate(thread):
            while stack and _end(thread[stack[-1]]) <= event["ts"]:
                stack.pop()
            parents.append(thread[stack[-1]] if stack else None)
            if stack:  # an event that outlasts its parent takes from it what lies inside
                own[stack[-1]] -= min(_end(event), _end(thread[stack[-1]])) - event["ts"]
            stack.append(i)
        result += [(e, max(o, 0.0), p) for e, o, p in zip(thread, own, parents, strict=True)]
    return result


def _end(event: Event) -> float:
    return event["ts"] + event["dur"]


def covered(events: Iterable[Event]) -> float:
    """Length of the union of all events' intervals, over all threads."""
    total, reached = 0.0, float("-inf")
    for event in sorted(events, key=lambda e: e["ts"]):
        total += max(0.0, _end(event) - max(event["ts"], reached))
        reached = max(reached, _end(event))
    return total


def operation_times(
    events: Iterable[Event], names: Mapping[str, str], num_steps: int, num_top: int = 12
) -> OperationTimes | None:
    """Sums a trace of `num_steps` steps into groups; None where it holds none of them.

    Args:
      events: of `record`.
      names: {instruction: path of names} of the program (`op_names`).
    """
    events = instruction_events(events, names)
    if not events:
        return None
    scale = 1e-6 / num_steps
    groups = dict.fromkeys(GROUPS, 0.0)
    instructions: dict[str, float] = collections.defaultdict(float)
    for event, own, parent in self_times(events):
        name = _instruction(event)
        group = group_of(names[name], name)
        if group == OTHER and parent is not None:  # a nameless helper inside a loop
            group = group_of(names[_instruction(parent)])
        groups[group] += own * scale
        instructions[name] += own * scale
    longest = sorted(instructions, key=lambda name: -instructions[name])[:num_top]
    top = [(instructions[name], name, names[name]) for name in longest]
    return OperationTimes(groups, top, covered(events) * scale)


# ------------------------------------------------------------------- from instruction to group


def group_of(op_name: str, instruction: str = "") -> str:
    """The group of an instruction by its path of names ("" where XLA kept none)."""
    if _COLLECTIVE.match(instruction):
        return COMMUNICATION
    if not op_name:
        return OTHER
    # transpose(jvp(Mogao))/und.qkv -> transpose, jvp, Mogao, und, qkv: wrappers and names alike.
    names = set(re.split(r"[/().]+", op_name))
    for group, wanted, also in _BY_NAME:
        if names & wanted and (not also or names & also):
            return group
    if _RANDOM.search(op_name):
        return NOISE
    if "jvp" not in names and "train_step" in names:  # outside of what is differentiated
        return OPTIMIZER
    return OTHER


_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*)$")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_CALLS = re.compile(r"calls=%?([\w.\-]+)")
_OPERAND = re.compile(r"%([\w.\-]+)")


def op_names(hlo: str) -> dict[str, str]:
    """{instruction: path of names} of a compiled program's text (`compiled.as_text()`).

    An instruction without a path takes that of the root of the computation that it calls, else
    that of its first operand that has one (copies, mostly): "" where that fails too.
    """
    names: dict[str, str] = {}
    sources: dict[str, list[str]] = {}
    roots: dict[str, str] = {}
    computation = ""
    for line in hlo.splitlines():
        opening = _COMPUTATION.match(line)
        if opening:
            computation = opening[1]
            continue
        match = _INSTRUCTION.match(line)
        if not match:
            continue
        name, rest = match.groups()
        if line.lstrip().startswith("ROOT "):
            roots[computation] = name
        found = _OP_NAME.search(rest)
        # A name without a path ("reduce_sum") is that of some inner function.
        names[name] = found[1] if found and "/" in found[1] else ""
        called = _CALLS.search(rest)
        body = rest.split(", metadata=", 1)[0]
        sources[name] = ([f"root:{called[1]}"] if called else []) + _OPERAND.findall(body)

    def resolve(name: str, depth: int) -> str:
        name = roots.get(name[5:], "") if name.startswith("root:") else name
        if names.get(name) or depth == 0:
            return names.get(name, "")
        return next((r for s in sources.get(name, []) if (r := resolve(s, depth - 1))), "")

    return {name: path or resolve(name, 3) for name, path in names.items()}
