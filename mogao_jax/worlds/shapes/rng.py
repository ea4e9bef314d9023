"""Cheap draws from a numpy Generator (`rng.choice` costs 20 times as much as `rng.random`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")
Rng = np.random.Generator


def pick(rng: Rng, options: Sequence[T]) -> T:
    """One of the options, each as likely."""
    return options[int(rng.random() * len(options))]


def pick_other(rng: Rng, options: Sequence[T], than: T) -> T:
    """One of the options but `than`, each as likely."""
    return pick(rng, [o for o in options if o != than])


def chance(rng: Rng, probability: float) -> bool:
    """True with the given probability."""
    return rng.random() < probability


def between(rng: Rng, low: int, high: int) -> int:
    """An integer in [low, high], both included."""
    return low + int(rng.random() * (high - low + 1))


def sample(rng: Rng, options: Sequence[T], count: int) -> list[T]:
    """`count` different options in random order (Fisher-Yates, stopped early)."""
    pool = list(options)
    for i in range(count):
        j = i + int(rng.random() * (len(pool) - i))
        pool[i], pool[j] = pool[j], pool[i]
    return pool[:count]
