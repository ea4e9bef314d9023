"""Benchmarks as text for people, and as numbers for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mogao_jax.tools.bench.soak import Soak
from mogao_jax.tools.bench.speed import Figure, Measured, Setting

_MIB = 2**20


def speed_text(name: str, setting: Setting, measured: Measured, machine: Mapping[str, str]) -> str:
    """The table of figures, each with its bar."""
    lines = [
        f"Sampling of {name}: medians of {setting.rounds} rounds, what is compared run in turn",
        _machine(machine),
        "",
    ]
    width = max(len(f.what) for f in measured.figures)
    for f in measured.figures:
        lines.append(f"{f.what:<{width}}  {_value(f):>8}  {_bar(f):<16}  {f.note}".rstrip())
    return "\n".join(lines)


def speed_json(
    name: str, setting: Setting, measured: Measured, machine: Mapping[str, str]
) -> dict[str, Any]:
    """The same, and the seconds behind it."""
    return {
        "model": name,
        "setting": dataclasses.asdict(setting),
        "machine": dict(machine),
        "figures": [{**dataclasses.asdict(f), "passed": f.passed} for f in measured.figures],
        "median_seconds": {k: float(np.median(v)) for k, v in measured.seconds.items()},
        "seconds": {k: list(v) for k, v in measured.seconds.items()},
    }


def _machine(machine: Mapping[str, str]) -> str:
    return "; ".join(f"{key} {value}" for key, value in machine.items())


def _value(figure: Figure) -> str:
    return f"{figure.value:.0f}" if figure.unit == "" else f"{figure.value:.3g} {figure.unit}"


def _bar(figure: Figure) -> str:
    if figure.bar is None:
        return ""
    return f"bar {figure.bar:g}: {'held' if figure.passed else 'MISSED'}"


def soak_text(name: str, found: Soak, machine: Mapping[str, str]) -> str:
    """The curve of compilations and memory, what ended generations, and what was wrong."""
    last = found.points[-1]
    lines = [
        f"{last.done} mixed generations of {name}, half of them again, in {last.seconds:.0f} s",
        _machine(machine),
        "",
        f"{'done':>6}  {'compilations':>12}  {'memory, MiB':>11}  {'seconds':>8}",
    ]
    for p in found.points:
        memory = p.memory / _MIB
        lines.append(f"{p.done:>6}  {p.num_compilations:>12}  {memory:>11.0f}  {p.seconds:>8.0f}")
    programs = ", ".join(f"{k} {n}" for k, n in sorted(last.compilations.items()))
    lines += [
        "",
        f"programs compiled: {programs}",
        f"compiled again for the same shapes: {found.recompiled}",
        f"memory that the second time added: {found.growth / _MIB:.0f} MiB",
        f"produced: {_counts(found.produced)}",
        f"ended by: {_counts(found.stops)}",
        f"results in bad form: {len(found.broken)}",
    ]
    return "\n".join(lines + [f"  {what}" for what in found.broken])


def soak_json(name: str, found: Soak, machine: Mapping[str, str]) -> dict[str, Any]:
    """The same as numbers."""
    record = dataclasses.asdict(found)
    return {"model": name, "machine": dict(machine), **record, "recompiled": found.recompiled}


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in counts.items())
