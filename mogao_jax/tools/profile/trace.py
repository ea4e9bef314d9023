"""Where a compiled program spends its time, instruction by instruction, from a profiler trace."""

from __future__ import annotations

import collections
import dataclasses
import gzip
import json
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from mogao_jax.tools.profile.groups import GROUPS, OTHER, group_of

Event = Mapping[str, Any]
MARKER = "end: "  # XLA's CPU backend marks the end of every instruction by an event of its own


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
    lines = {
        (e["pid"], e.get("tid"))
        for e in events
        if e.get("ph") == "M" and e.get("name") == "thread_name"
        and str(e.get("args", {}).get("name", "")).startswith("XLA Ops")
    }  # fmt: skip
    found = []
    for e in events:
        if e.get("ph") != "X" or str(e.get("name", "")).startswith(MARKER):
            continue
        if _instruction(e) in known and (not lines or (e["pid"], e.get("tid")) in lines):
            found.append(e)
    return found


def _instruction(event: Event) -> str:
    return str(event.get("args", {}).get("hlo_op") or event.get("name", ""))


def self_times(events: Iterable[Event]) -> list[tuple[Event, float, Event | None]]:
    """Every event with its own time (duration less that of events inside), and its parent.

    Events nest per thread (pid, tid): a loop's event holds those of its body. Times are those of
    the events (microseconds).
    """
    threads: dict[Any, list[Event]] = collections.defaultdict(list)
    for event in events:
        threads[event.get("pid"), event.get("tid")].append(event)
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
      names: {instruction: path of names} of the program (`groups.op_names`).
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
