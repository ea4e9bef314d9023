"""Ctrl-C and SIGTERM: a run ends after the step in hand, with a checkpoint."""

from __future__ import annotations

import signal
import sys
from typing import Any

from mogao_jax.sharding import multihost


class StopOnSignals:
    """Whether SIGINT or SIGTERM asked for an end; 128 + its number is the exit status then.

    A second SIGINT interrupts at once, as usual. Of several processes jax takes care itself
    (`Checkpointer.reached_preemption`): they must agree on the step.
    """

    def __init__(self) -> None:
        self.status = 0

    def __call__(self) -> bool:
        return self.status != 0

    def install(self) -> None:
        if multihost.process_count() == 1:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: Any) -> None:
        del frame
        self.status = 128 + number
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("\nStopping after this step; press Ctrl-C again to stop at once.", file=sys.stderr)
