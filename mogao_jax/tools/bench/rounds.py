"""Timing things against each other: all of them in every round, and ratios within a round.

Another program that takes the machine's cores for a while then slows both sides of a ratio.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping

import numpy as np

# Does the work, and waits for it; may tell the seconds of parts of it by name.
Call = Callable[[], Mapping[str, float] | None]


@dataclasses.dataclass(frozen=True)
class Rounds:
    """Seconds of each thing, a number per round."""

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
        low, high = np.quantile(self.ratios(over, under), [0.25, 0.75])
        return float(low), float(high)


def alternate(calls: Mapping[str, Call], num_rounds: int) -> Rounds:
    """Times all calls in turn, `num_rounds` times, after one turn that compiles.

    The order is turned around from one round to the next. Parts that a call tells of stand beside
    the calls in the result, under their own names.
    """
    seconds: dict[str, list[float]] = {}
    for round_ in range(num_rounds + 1):
        names = list(calls)[:: 1 if round_ % 2 else -1]
        for name in names:
            began = time.perf_counter()
            parts = calls[name]()
            taken = time.perf_counter() - began
            if round_:
                for part, value in {name: taken, **(parts or {})}.items():
                    seconds.setdefault(part, []).append(value)
    return Rounds({name: tuple(values) for name, values in seconds.items()})
