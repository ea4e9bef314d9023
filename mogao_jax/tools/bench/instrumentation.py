"""Timing: calls against each other in turn, and a sampler's programs from outside."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np

from mogao_jax.sampling.engine import Engine


@dataclasses.dataclass(frozen=True)
class Rounds:
    """Seconds of each call, a number per round.

    Ratios are taken within a round: another program that takes the machine's cores for a while
    then slows both sides of a ratio.
    """

    seconds: dict[str, tuple[float, ...]]

    def median(self, name: str) -> float:
        return float(np.median(self.seconds[name]))

    def ratios(self, over: str, under: str) -> np.ndarray:
        """Of each round, float[rounds]."""
        return np.divide(self.seconds[over], self.seconds[under])

    def ratio(self, over: str, under: str) -> float:
        """The median over rounds."""
        return float(np.median(self.ratios(over, under)))

    def spread(self, over: str, under: str) -> tuple[float, float]:
        """The quartiles of a ratio over rounds."""
        low, high = np.quantile(self.ratios(over, under), [0.25, 0.75]).tolist()
        return low, high


def alternate(
    calls: Mapping[str, Callable[[], Mapping[str, float] | Any]], num_rounds: int
) -> Rounds:
    """Times all calls in turn, `num_rounds` times, after one turn that compiles.

    The order is reversed from one round to the next.

    Args:
      calls: each does its work and waits for it. It may return {part: seconds}: parts stand beside
        the calls in the result, under their own names. Any other result is discarded.
    """
    seconds: dict[str, list[float]] = {}
    for round_ in range(num_rounds + 1):
        for name in list(calls)[:: 1 if round_ % 2 else -1]:
            began = time.perf_counter()
            result = calls[name]()
            taken = time.perf_counter() - began
            parts = result if isinstance(result, Mapping) else {}
            for part, value in {name: taken, **parts}.items() if round_ else ():
                seconds.setdefault(part, []).append(value)
    return Rounds({name: tuple(values) for name, values in seconds.items()})


class Call(NamedTuple):
    """One call of a program: seconds of the clock, and its arguments."""

    name: str
    began: float
    ended: float
    args: tuple


@dataclasses.dataclass
class Watch:
    """All calls so far, in order. Names of the encoders' programs begin with "image "."""

    calls: list[Call] = dataclasses.field(default_factory=list)

    def named(self, name: str) -> list[Call]:
        return [call for call in self.calls if call.name == name]

    def span(self, name: str) -> float:
        """Seconds from the beginning of a program's first call to the end of its last."""
        calls = self.named(name)
        return calls[-1].ended - calls[0].began if calls else 0.0

    def total(self, name: str) -> float:
        """Seconds inside a program's calls."""
        return sum(call.ended - call.began for call in self.named(name))


@contextlib.contextmanager
def watching(engine: Engine) -> Iterator[Watch]:
    """Within it, every call of the engine's programs is waited for and noted."""
    watch = Watch()

    def noted(label: str, program: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            result = jax.block_until_ready(program(*args, **kwargs))
            watch.calls.append(Call(label, began, time.perf_counter(), args))
            return result

        return call

    programs: list[tuple[Any, str, str]] = [
        *((engine, name, name) for name in ("prefill", "decode", "integrate_flow")),
        *((engine.encoders, name, f"image {name}") for name in ("encode", "decode", "read")),
    ]
    with contextlib.ExitStack() as restored:
        for owner, name, label in programs:
            program = noted(label, getattr(owner, name))
            restored.enter_context(mock.patch.object(owner, name, program))
        yield watch
