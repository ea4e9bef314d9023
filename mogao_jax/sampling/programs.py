"""Compiled programs: shapes in a few sizes, so that few are compiled; a count; and a probe."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import io_callback

# (what, arrays by name). "logits": row, t, active, logits. "velocity": row, x, t, velocity.
Probe = Callable[[str, dict[str, np.ndarray]], None]


def round_up_pow2(n: int, least: int) -> int:
    """The smallest of least, 2 least, 4 least, ... that is n or more."""
    size = least
    while size < n:
        size *= 2
    return size


def round_up_bucket(n: int) -> int:
    """The smallest of 1, 2, 3, 4, 6, 8, 12, 16, 24, ... that is n or more."""
    two = round_up_pow2(n, 1)
    return two * 3 // 4 if two >= 4 and two * 3 // 4 >= n else two


def halve_while_fits(n: int, most: int) -> int:
    """Halves `most`, rounding up, while `n` still fits: for what is computed many times over."""
    while most > 1 and (most + 1) // 2 >= n:
        most = (most + 1) // 2
    return most


def batch_bucket(n: int, most: int) -> int:
    """`most`, or the next power of two if that is at most a quarter of it.

    So few rows are worth one more compilation; for more of them, padding costs less than it.
    """
    few = round_up_pow2(n, 1)
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


def tell(probe: Probe | None, what: str, arrays: dict[str, jax.Array]) -> None:
    """Calls the probe with the arrays' values whenever the program comes by here, in order."""
    if probe is not None:
        io_callback(lambda values: probe(what, values), None, arrays, ordered=True)
