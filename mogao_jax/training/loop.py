"""The training loop, top to bottom: evaluate, save, next batch, step, log.

It is handed its batches and its evaluators; it knows neither where data come from nor what is
measured on them.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.contrib.logging import logging_redirect_tqdm

from mogao_jax.config.schema import MogaoConfig
from mogao_jax.models.modules import EncoderParams
from mogao_jax.sequence.batch import PackedBatch
from mogao_jax.sequence.packing import fill_shares
from mogao_jax.sharding.mesh import global_batch, row_reader
from mogao_jax.training.checkpointing import Checkpointer
from mogao_jax.training.metrics import Accumulator, MetricsWriter, Throughput, labels
from mogao_jax.training.optimizer import Schedule
from mogao_jax.training.progress import Progress
from mogao_jax.training.state import TrainState

# Given the parameters, measures them: {metric: value}.
Evaluator = Callable[[Any], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Parts:
    """What the loop works with.

    Attributes:
      train_step: jitted (state, encoders, batch, learning_rate) -> (state, metrics).
      data: Grain iterator of numpy PackedBatch [A, rows of this process, ...].
      evaluators: by split name; run every `train.eval_every` steps and at the end.
      final_evaluators: run at the end alone.
      schedule: (step, progress) -> learning rate.
      should_stop: asked after every step; true ends the run early, with a checkpoint.
    """

    config: MogaoConfig
    mesh: jax.sharding.Mesh
    train_step: Callable[..., Any]
    encoders: EncoderParams
    data: Any
    schedule: Schedule
    evaluators: Mapping[str, Evaluator]
    final_evaluators: Mapping[str, Evaluator]
    checkpointer: Checkpointer
    writer: MetricsWriter
    sources: tuple[str, ...]
    should_stop: Callable[[], bool] = lambda: False


@dataclasses.dataclass
class Counters:
    """What a run has consumed, kept in its checkpoints."""

    seconds: float = 0.0
    tokens: int = 0


def evaluated_params(state: TrainState) -> Any:
    """The weights that are evaluated and sampled from: the moving average where there is one."""
    return state.params if state.ema_params is None else state.ema_params


def train(parts: Parts, state: TrainState, counters: Counters) -> TrainState:
    """Trains from `state` to the end of the run, or until it is stopped.

    Returns:
      The last state, which has been saved.
    Raises:
      LossNotFinite: training diverged.
      DataError: too many broken records.
      CheckpointError: a checkpoint could not be written.
    """
    config = parts.config
    accumulator = Accumulator(labels(parts.sources, config.train.timestep_bins))
    throughput = Throughput()
    clock = _Clock(counters.seconds)
    step = int(state.step)
    fills: list[dict[str, float]] = []
    pending: Any = None

    _, num_readers = row_reader(parts.mesh)
    start = clock.progress(config, step)
    # Log lines appear above the bar instead of breaking it.
    with Progress(config.train.num_steps, start=start) as progress, logging_redirect_tqdm():
        while clock.progress(config, step) < 1.0 and not _stopped(parts, step):
            # 1. evaluate
            if config.train.eval_every and step and step % config.train.eval_every == 0:
                with throughput.paused():
                    _evaluate(parts, parts.evaluators, jax.block_until_ready(state), step)
            # 2. save
            counters.seconds = clock.seconds()
            if step and step % config.train.checkpoint_every == 0:
                with throughput.paused():
                    accumulator.check()  # nothing that diverged is saved
                    jax.block_until_ready(state)
                    parts.checkpointer.save(
                        step, state, counters=dataclasses.asdict(counters), data=parts.data
                    )
            # 3. next batch
            with throughput.waiting_for_data():
                host_batch = next(parts.data)
            batch = global_batch(parts.mesh, host_batch, batch_axis=1)
            # 4. step
            rate = parts.schedule(step, clock.progress(config, step))
            jax.block_until_ready(pending)  # one step ahead of the devices, no further
            state, pending = parts.train_step(state, parts.encoders, batch, jnp.float32(rate))
            step += 1
            accumulator.add(step, pending)
            tokens = _num_tokens(host_batch) * num_readers
            fills.append({f"fill/{k}": v for k, v in fill_shares(host_batch).items()})
            counters.tokens += tokens
            throughput.step(tokens)
            # 5. log
            values = None
            if step % config.train.log_every == 0 or step == 1:
                values = accumulator.take() | throughput.take() | _mean(fills)
                values["learning_rate"] = rate
                fills = []
                parts.writer.write(step, values)
            progress.update(step, clock.progress(config, step), values)

    jax.block_until_ready(state)
    if fills:
        values = accumulator.take() | throughput.take() | _mean(fills)
        parts.writer.write(step, values)
    counters.seconds = clock.seconds()
    parts.checkpointer.save(
        step, state, counters=dataclasses.asdict(counters), data=parts.data, force=True
    )
    if clock.progress(config, step) >= 1.0:
        _evaluate(parts, {**parts.evaluators, **parts.final_evaluators}, state, step)
    parts.checkpointer.wait()
    return state


def _evaluate(
    parts: Parts, evaluators: Mapping[str, Evaluator], state: TrainState, step: int
) -> None:
    for split, evaluate in evaluators.items():
        if parts.writer.has(step, split):  # before the checkpoint of this step was written
            continue
        parts.writer.write(step, evaluate(evaluated_params(state)), split=split)


def _stopped(parts: Parts, step: int) -> bool:
    return parts.should_stop() or parts.checkpointer.reached_preemption(step)


class _Clock:
    """Seconds trained, over all processes that a run was made of, and its progress."""

    def __init__(self, before: float):
        self._before, self._began = before, time.monotonic()

    def seconds(self) -> float:
        return self._before + time.monotonic() - self._began

    def progress(self, config: MogaoConfig, step: int) -> float:
        """Share of the run that is over: of its steps, or of its minutes if those end first."""
        done = step / config.train.num_steps
        if config.train.max_minutes:
            done = max(done, self.seconds() / (60 * config.train.max_minutes))
        return min(done, 1.0)


def _num_tokens(batch: PackedBatch) -> int:
    """Real tokens of a host batch."""
    streams = (batch.und, batch.clean, batch.noised)
    return sum(int(np.count_nonzero(stream.meta.segment)) for stream in streams)


def _mean(records: list[dict[str, float]]) -> dict[str, float]:
    return {k: float(np.mean([r[k] for r in records])) for k in records[0]}
