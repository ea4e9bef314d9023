"""Progress for people: a bar with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

import tqdm

# Shown in this order if they are there: metric, label, format.
_SHOWN: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("loss", "loss", lambda v: f"{v:.4f}"),
    ("ntp_loss", "ntp", lambda v: f"{v:.4f}"),
    ("flow_loss", "flow", lambda v: f"{v:.4f}"),
    ("grad_norm", "grad", lambda v: f"{v:.2f}"),
    ("learning_rate", "lr", lambda v: f"{v:.1e}"),
    ("tokens_per_second", "tok/s", lambda v: f"{v:,.0f}"),
    ("data_wait_share", "wait", lambda v: f"{v:.0%}"),
)


class Progress:
    """Shows how far a run is.

    Use as a context manager; call `update` after every step and `write` for any other line to
    print meanwhile.
    """

    def __init__(
        self,
        num_steps: int,
        *,
        start: float = 0.0,
        stream: TextIO | None = None,
        terminal: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """
        Args:
          num_steps: of the whole run (an upper limit where the clock ends it).
          start: progress in [0, 1] at which this process begins (a resumed run).
          stream: default stderr.
          terminal: whether to draw a bar; default: whether the stream is a terminal.
          clock: seconds.
        """
        self._num_steps = num_steps
        self._start = start
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty() if terminal is None else terminal
        self._clock = clock
        self._began = clock()
        self._values: Mapping[str, float] = {}
        self._bar = None
        if self._terminal:
            self._bar = tqdm.tqdm(
                total=1.0, initial=start, file=self._stream, dynamic_ncols=True,
                bar_format="{percentage:3.0f}%|{bar}| {postfix}", leave=True,
            )  # fmt: skip

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def seconds_left(self, progress: float) -> float | None:
        """From the rate so far in this process; None before there is one."""
        done = progress - self._start
        if done <= 0:
            return None
        return (self._clock() - self._began) * (1 - min(progress, 1.0)) / done

    def update(self, step: int, progress: float, values: Mapping[str, float] | None = None) -> None:
        """After a step.

        Args:
          step: steps done.
          progress: share of the run that is over, in [0, 1] (steps, or time).
          values: metrics, when there are new ones: a plain line is printed then, and the bar
            keeps showing them.
        """
        if values is not None:
            self._values = values
        if self._bar is not None:
            self._bar.n = min(progress, 1.0)
            self._bar.set_postfix_str(self.text(step, progress), refresh=False)
            self._bar.refresh()
        elif values is not None:
            self._stream.write(f"{min(progress, 1.0):4.0%} {self.text(step, progress)}\n")
            self._stream.flush()

    def text(self, step: int, progress: float) -> str:
        """The numbers, the same on a bar and on a line."""
        # Where the clock ends the run, the last step is estimated from the time so far.
        last = round(step / progress) if progress > 0 else self._num_steps
        is_guess = last < 0.99 * self._num_steps
        parts = [f"step {step}/{f'~{last}' if is_guess else self._num_steps}"]
        for metric, label, form in _SHOWN:
            if metric in self._values:
                parts.append(f"{label} {form(self._values[metric])}")
        left = self.seconds_left(progress)
        parts.append(f"left {duration(left) if left is not None else '?'}")
        return "  ".join(parts)

    def write(self, message: str) -> None:
        """A line of its own, above the bar."""
        if self._bar is not None:
            self._bar.write(message, file=self._stream)
        else:
            self._stream.write(message + "\n")
            self._stream.flush()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def duration(seconds: float) -> str:
    """3.2 -> '0:04', 200 -> '3:20', 7384 -> '2:03:04' (rounded up to whole seconds)."""
    whole = math.ceil(seconds)
    minutes, seconds_ = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds_:02}" if hours else f"{minutes}:{seconds_:02}"
