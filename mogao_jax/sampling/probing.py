"""Looking inside the programs: a function that is told of every prediction, in order."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import io_callback

# (what, arrays by name). "logits": row, t, active, logits. "velocity": row, x, t, velocity.
Probe = Callable[[str, dict[str, np.ndarray]], None]


def tell(probe: Probe | None, what: str, arrays: dict[str, jax.Array]) -> None:
    """Calls the probe with the arrays' values each time the program comes by here."""
    if probe is not None:
        io_callback(lambda values: probe(what, values), None, arrays, ordered=True)
