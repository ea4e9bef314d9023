"""Shapes come in a few sizes, so that few programs are compiled; and how many have been."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax


def power_of_two(n: int, least: int = 1) -> int:
    """The smallest power of two that is n and `least` or more. For lengths and capacities."""
    return max(least, 1 << max(n - 1, 0).bit_length())


def fine(n: int, least: int = 1) -> int:
    """The smallest of 1, 2, 3, 4, 6, 8, 12, 16, 24, ... that is n or more: at most half is spare.

    For what is computed many times over: rows, and tokens of the pictures being drawn.
    """
    n = max(n, least)
    two = power_of_two(n)
    return two * 3 // 4 if two >= 4 and two * 3 // 4 >= n else two


class Programs:
    """`jit` with a count of the programs that were compiled.

    Attributes:
      num_compilations: one for each function and combination of shapes.
    """

    def __init__(self) -> None:
        self.num_compilations = 0

    def jit(self, function: Callable[..., Any], **kwargs: Any) -> Callable[..., Any]:
        def counted(*args: Any, **static: Any) -> Any:
            self.num_compilations += 1  # this line runs while tracing only
            return function(*args, **static)

        inner = getattr(function, "func", function)  # of a partial
        counted.__name__ = counted.__qualname__ = inner.__name__
        return jax.jit(counted, **kwargs)
