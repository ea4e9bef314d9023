"""Proportions of successes, with the interval that the number of trials allows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

_Z = 1.959963984540054  # of a two-sided 95% interval


@dataclasses.dataclass(frozen=True)
class Proportion:
    """`right` of `total`. Adding a bool counts one trial more; adding a Proportion pools both."""

    right: int = 0
    total: int = 0

    def __add__(self, other: bool | Proportion) -> Proportion:
        if isinstance(other, Proportion):
            return Proportion(self.right + other.right, self.total + other.total)
        return Proportion(self.right + bool(other), self.total + 1)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.1%} [{low:.1%}, {high:.1%}] of {self.total}"

    @property
    def value(self) -> float:
        """The proportion; NaN of no trials."""
        return self.right / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's score interval at 95%; (0, 1) of no trials."""
        n = self.total
        if not n:
            return 0.0, 1.0
        p, z2 = self.value, _Z * _Z
        middle = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = _Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)


def count(trials: Iterable[bool]) -> Proportion:
    """The proportion of True."""
    flags = list(trials)
    return Proportion(sum(map(bool, flags)), len(flags))
