"""Metrics: sums and weights from the devices, means in metrics.jsonl and TensorBoard.

A step hands out pairs (weighted sum, weight), never means: a mean of means is wrong when batches
hold different numbers of text and image tokens. The division comes last, here.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pathlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from mogao_jax.atomic import write_file
from mogao_jax.errors import EnvironmentProblem, MogaoError
from mogao_jax.losses import WeightedMean
from mogao_jax.sharding import multihost
from mogao_jax.training import workdir as workdir_lib

# Splits of the validation set: the model as it is; without what an image is conditioned on
# (measured only when a run ends); and before the first step.
VALIDATION, UNCONDITIONAL = "validation", "validation_no_condition"
UNTRAINED = "validation_untrained"


class LossNotFinite(MogaoError):
    """Training diverged: a loss or a gradient norm is NaN or infinite."""


_TIMESTEP_BIN = re.compile(r"/t\d\.\d\d-\d\.\d\d$")


def timestep_bin_labels(num_bins: int) -> list[str]:
    """['t0.00-0.25', ...]: equal bins of t, where t = 1 is data."""
    edges = [i / num_bins for i in range(num_bins + 1)]
    return [f"t{a:.2f}-{b:.2f}" for a, b in zip(edges[:-1], edges[1:], strict=True)]


def labels(sources: Sequence[str], num_bins: int) -> dict[str, list[str]]:
    """What the elements of the vector metrics are called.

    A step's vector metric `ntp_loss/source` (one element per data source, in the config's order)
    is written as `ntp_loss/<source>`, `flow_loss/timestep` as `flow_loss/t0.00-0.25`, ...
    """
    return {
        "ntp_loss/source": [f"ntp_loss/{s}" for s in sources],
        "flow_loss/source": [f"flow_loss/{s}" for s in sources],
        "flow_loss/timestep": [f"flow_loss/{b}" for b in timestep_bin_labels(num_bins)],
    }


class Accumulator:
    """Collects steps' metrics and fetches them from the devices only when they are wanted.

    `add` does not wait for the step: it keeps device arrays. `take` fetches all of them at once.
    """

    def __init__(self, labels: Mapping[str, Sequence[str]] | None = None):
        """
        Args:
          labels: {vector metric: names of its elements}, as made by `labels`.
        """
        self._labels = {k: list(v) for k, v in (labels or {}).items()}
        self._pending: list[tuple[int, dict[str, WeightedMean]]] = []
        self._sums: dict[str, WeightedMean] = {}
        self._last_good: dict[str, float] = {}

    def add(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Takes one step's metrics.

        Args:
          step: for messages.
          metrics: {name: WeightedMean or (total, weight), or a plain scalar, which weighs 1}.
        """
        pairs = {k: v if isinstance(v, tuple) else (v, 1.0) for k, v in metrics.items()}
        self._pending.append((step, {k: WeightedMean(*pair) for k, pair in pairs.items()}))

    def take(self) -> dict[str, float]:
        """Means over the steps since the last call; metrics of zero weight are left out.

        Raises:
          LossNotFinite: naming the first step with a NaN or an infinity, and where to look.
        """
        self.check()
        sums, self._sums = self._sums, {}
        return _means(sums)

    def check(self) -> None:
        """Waits for the steps so far and raises as `take` does, which still has their numbers.

        To be called before a checkpoint, so that none is written of weights that are lost.
        """
        fetched = jax.device_get(self._pending)
        self._pending = []
        for step, metrics in fetched:
            values = self._expand(metrics)
            bad = sorted(k for k, (total, _) in values.items() if not math.isfinite(total))
            if bad:
                raise LossNotFinite(self._diverged(step, bad, values))
            for name, mean in values.items():
                self._sums[name] = self._sums.get(name, WeightedMean(0.0, 0.0)) + mean
            self._last_good = {"step": step, **_means(values)}

    def _expand(self, metrics: Mapping[str, WeightedMean]) -> dict[str, WeightedMean]:
        """Float64 scalars, those of vectors under their labels."""
        values: dict[str, WeightedMean] = {}
        for name, (total, weight) in metrics.items():
            total = np.asarray(total, np.float64)
            weight = np.broadcast_to(np.asarray(weight, np.float64), total.shape)
            if total.ndim == 0:
                values[name] = WeightedMean(float(total), float(weight))
                continue
            names = self._labels.get(name)
            if names is None or len(names) != total.size:
                raise ValueError(f"metric {name!r} has shape {total.shape}, labels {names}")
            for label, t, w in zip(names, total, weight, strict=True):
                values[label] = WeightedMean(float(t), float(w))
        return values

    def _diverged(self, step: int, bad: list[str], values: Mapping[str, WeightedMean]) -> str:
        parts = [
            f"step {step}: not a finite number: {', '.join(bad)}.",
            _listing("In the same step", _means(values)),
            _listing("Last good step", self._last_good),
            suspects(bad, values),
            "Training stopped and nothing was saved since the last checkpoint, from which the "
            "same command resumes. If grad_norm in metrics.jsonl grew before this step, lower "
            "optimizer.learning_rate or optimizer.clip_norm, or lengthen optimizer.warmup_steps; "
            "if it came at once, look at the documents of this step, or at model.dtype.",
        ]
        return " ".join(part for part in parts if part)


def _means(sums: Mapping[str, WeightedMean]) -> dict[str, float]:
    return {name: total / weight for name, (total, weight) in sums.items() if weight}


def _listing(title: str, values: Mapping[str, float]) -> str:
    """The finite metrics of a whole step (not those of a source or a bin)."""
    shown = {k: v for k, v in values.items() if math.isfinite(v) and "/" not in k}
    return f"{title}: {', '.join(f'{k} {v:.4g}' for k, v in shown.items())}." if shown else ""


def suspects(bad: list[str], values: Iterable[str]) -> str:
    """Metrics of the sources that are to blame, where not all of them are."""
    of_sources = {k for k in values if "/" in k and not _TIMESTEP_BIN.search(k)}
    found = [k for k in bad if k in of_sources]
    some = found and len(found) < len(of_sources)
    return f"Look first at the data behind {', '.join(found)}." if some else ""


class Throughput:
    """Tokens and steps per second, how full rows were, and the share of time waiting for data."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._reset()

    def _reset(self) -> None:
        self._began = self._clock()
        self._waited = self._paused = 0.0
        self.num_steps = self._tokens = 0
        self._fill: dict[str, float] = {}

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Around the call that gets the next batch."""
        began = self._clock()
        yield
        self._waited += self._clock() - began

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Around what is not training (evaluation, saving): taken out of the time."""
        began = self._clock()
        yield
        self._paused += self._clock() - began

    def step(self, tokens: int, fill: Mapping[str, float] | None = None) -> None:
        """After a step over `tokens` real (not padding) tokens; `fill`: their share per stream."""
        self.num_steps += 1
        self._tokens += tokens
        for stream, share in (fill or {}).items():
            self._fill[stream] = self._fill.get(stream, 0.0) + share

    def take(self) -> dict[str, float]:
        """Rates since the last call. Call it after the devices were waited for."""
        seconds = max(self._clock() - self._began - self._paused, 1e-9)
        rates = {
            "tokens_per_second": self._tokens / seconds,
            "steps_per_second": self.num_steps / seconds,
            "data_wait_share": self._waited / seconds,
        }
        rates |= {f"fill/{k}": total / self.num_steps for k, total in self._fill.items()}
        self._reset()
        return rates


class Writer(Protocol):
    """Anything that takes the records of a run."""

    def write(self, step: int, metrics: Mapping[str, float], split: str = "train") -> None:
        """One record. `step` counts steps done; metric names are flat ('flow_loss/qa')."""


class MetricsWriter:
    """Appends to metrics.jsonl, and to TensorBoard; the first of several processes alone does.

    A line is {"step": int, "time": unix seconds, "split": "train", "<metric>": float, ...}. It is
    written in one piece, so that a reader, or a kill, never meets half of one (a torn last line,
    after a power cut, is dropped on opening). A value that is not finite is written as null.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        resume_step: int = 0,
        tensorboard: bool = True,
        clock: Callable[[], float] = time.time,
    ):
        """
        Args:
          workdir: the run's folder.
          resume_step: steps done in the state that training resumes from. Later records, of steps
            that will be done again, are removed. 0: a run begins, and all records are removed.
          tensorboard: False: JSON lines only.
        """
        folder = pathlib.Path(workdir)
        self._path = folder / workdir_lib.METRICS
        self._clock = clock
        self._active = multihost.is_main()
        self._file, self._tensorboard = -1, None
        self._kept: set[tuple[int, str]] = set()
        if not self._active:
            return
        self._truncate(resume_step)
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        if tensorboard:
            import tensorboardX

            self._tensorboard = tensorboardX.SummaryWriter(
                str(folder / workdir_lib.TENSORBOARD),
                purge_step=resume_step + 1 if resume_step else None,
            )

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def _truncate(self, resume_step: int) -> None:
        if not self._path.exists():
            return
        text = self._path.read_text(encoding="utf-8")
        kept = []
        for line, record in _records(text):
            if record["step"] <= resume_step and resume_step:
                kept.append(line)
                self._kept.add((record["step"], record.get("split", "")))
        wanted = "".join(line + "\n" for line in kept)
        if wanted != text:
            write_file(self._path, wanted, durable=True)

    def has(self, step: int, split: str) -> bool:
        """Whether this was measured before training went on from a checkpoint.

        Evaluations need all processes, so all must ask, and the first of them knows.
        """
        return bool(multihost.gather(int((step, split) in self._kept))[0])

    def write(self, step: int, metrics: Mapping[str, float], split: str = "train") -> None:
        """One record, as of `Writer`."""
        if not self._active:
            return
        values = {k: float(v) for k, v in metrics.items()}
        record: dict[str, Any] = {"step": int(step), "time": self._clock(), "split": split}
        record |= {k: v if math.isfinite(v) else None for k, v in values.items()}
        line = (json.dumps(record, allow_nan=False) + "\n").encode()
        try:
            written = os.write(self._file, line)
        except OSError as e:
            raise EnvironmentProblem(
                f"{str(self._path)!r} cannot be written ({e.strerror}). Free some disk space; "
                "the same command then resumes from the last checkpoint."
            ) from e
        if written != len(line):
            raise EnvironmentProblem(
                f"{str(self._path)!r} could not be written to the end: the disk is full. Free "
                "some space; the same command then resumes from the last checkpoint."
            )
        if self._tensorboard is not None:
            for name, value in values.items():
                self._tensorboard.add_scalar(f"{split}/{name}", value, int(step))

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = None


def _records(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines that are whole records."""
    for line in text.split("\n"):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            yield line, record


def read_metrics(workdir: str | os.PathLike, split: str | None = None) -> list[dict[str, Any]]:
    """The records of a run in order, of one split or of all; [] where there is none."""
    path = pathlib.Path(workdir) / workdir_lib.METRICS
    if not path.exists():
        return []
    records = [record for _, record in _records(path.read_text(encoding="utf-8"))]
    return [r for r in records if split is None or r.get("split") == split]
