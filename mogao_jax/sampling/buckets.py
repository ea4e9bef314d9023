"""Shapes come in a few sizes, so that few programs are compiled; and how many have been."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import jax


def power(n: int, least: int) -> int:
    """The smallest of least, 2 least, 4 least, ... that is n or more."""
    size = least
    while size < n:
        size *= 2
    return size


def fine(n: int) -> int:
    """The smallest of 1, 2, 3, 4, 6, 8, 12, 16, 24, ... that is n or more."""
    two = power(n, 1)
    return two * 3 // 4 if two >= 4 and two * 3 // 4 >= n else two


def halved(n: int, most: int) -> int:
    """`most`, halved (rounding up) as often as n fits: for what is computed many times over."""
    while most > 1 and (most + 1) // 2 >= n:
        most = (most + 1) // 2
    return most


def all_or_few(n: int, most: int) -> int:
    """`most`, unless n is so much smaller that another program pays."""
    few = power(n, 1)
    return few if 4 * few <= most else most


class Programs:
    """`jit` with a count of the programs that were compiled.

    Attributes:
      counts: how many of each function, by its name: one for each combination of shapes.
    """

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()

    @property
    def num_compilations(self) -> int:
        """Of all functions together."""
        return self.counts.total()

    def jit(self, function: Callable[..., Any], **kwargs: Any) -> Callable[..., Any]:
        name = getattr(function, "func", function).__name__  # of what a partial is made of

        def counted(*args: Any, **static: Any) -> Any:
            self.counts[name] += 1  # this line runs while tracing only
            return function(*args, **static)

        counted.__name__ = counted.__qualname__ = name
        return jax.jit(counted, **kwargs)
