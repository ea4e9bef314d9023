"""The training loop, top to bottom: evaluate, save, next batch, step, log.

It is handed its batches and its evaluators. It knows neither where data come from nor what is
measured on them.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.contrib.logging import logging_redirect_tqdm

from mogao_jax.config.schema import MogaoConfig, TrainConfig
from mogao_jax.models.modules import EncoderParams
from mogao_jax.sequence.batch import PackedBatch
from mogao_jax.sequence.packing import fill_shares
from mogao_jax.sharding import multihost
from mogao_jax.sharding.mesh import global_batch, row_reader
from mogao_jax.training.checkpointing import Checkpointer
from mogao_jax.training.metrics import (
    UNCONDITIONAL,
    UNTRAINED,
    VALIDATION,
    Accumulator,
    MetricsWriter,
    Throughput,
    Writer,
    labels,
)
from mogao_jax.training.optimizer import Schedule
from mogao_jax.training.progress import Progress
from mogao_jax.training.state import TrainState

# Given the parameters, measures them: {metric: value}.
Evaluator = Callable[[Any], Mapping[str, float]]


@dataclasses.dataclass
class Counters:
    """What a run has consumed, kept in its checkpoints."""

    seconds: float = 0.0
    tokens: int = 0


@dataclasses.dataclass(frozen=True)
class Trainer:
    """What the loop works with.

    Attributes:
      train_step: jitted (state, encoders, batch, learning_rate) -> (state, metrics).
      data: Grain iterator of numpy PackedBatch [A, rows of this process, ...].
      schedule: (step, progress) -> learning rate.
      evaluators: by split; run every `train.eval_every` steps and at the end.
      record: metrics.jsonl, which also knows what was measured before the run was resumed.
      writers: get the same records in the first process.
      sources: names of the data sources, in the order that batches number them.
      should_stop: asked after every step; true ends the run early, with a checkpoint.
    """

    config: MogaoConfig
    mesh: jax.sharding.Mesh
    train_step: Callable[..., Any]
    encoders: EncoderParams
    data: Any
    schedule: Schedule
    evaluators: Mapping[str, Evaluator]
    checkpointer: Checkpointer
    record: MetricsWriter
    writers: Sequence[Writer]
    sources: tuple[str, ...]
    should_stop: Callable[[], bool] = lambda: False

    def train(self, state: TrainState, counters: Counters) -> TrainState:
        """Trains from `state` to the end of the run, or until it is stopped.

        Args:
          counters: of the run so far; updated.
        Returns:
          The last state, which has been saved.
        Raises:
          LossNotFinite: training diverged.
          DataError: too many broken records.
          CheckpointError: a checkpoint could not be written.
        """
        config = self.config.train
        step = int(state.step)
        self._evaluate_untrained(state, step)
        clock = _Clock(config, counters.seconds)
        accumulator = Accumulator(labels(self.sources, config.timestep_bins))
        throughput = Throughput()
        _, num_readers = row_reader(self.mesh)
        pending: Any = None
        # Log lines appear above the bar instead of breaking it.
        with (
            Progress(config.num_steps, start=clock.progress(step)) as progress,
            logging_redirect_tqdm(),
        ):
            while clock.progress(step) < 1.0 and not self._stopped(step):
                # 1. evaluate
                if _is_due(step, config.eval_every):
                    with throughput.paused():
                        self.evaluate(jax.block_until_ready(state), step)
                # 2. save
                if _is_due(step, config.checkpoint_every):
                    with throughput.paused():
                        accumulator.check()  # nothing that diverged is saved
                        jax.block_until_ready(state)
                        counters.seconds = clock.seconds()
                        self._save(state, step, counters)
                # 3. next batch
                with throughput.waiting_for_data():
                    host_batch = next(self.data)
                batch = global_batch(self.mesh, host_batch, batch_axis=1)
                # 4. step
                rate = self.schedule(step, clock.progress(step))
                jax.block_until_ready(pending)  # one step ahead of the devices, no further
                state, pending = self.train_step(state, self.encoders, batch, jnp.float32(rate))
                step += 1
                accumulator.add(step, pending)
                tokens = _num_tokens(host_batch) * num_readers
                throughput.step(tokens, fill_shares(host_batch))
                counters.tokens += tokens
                # 5. log
                values = None
                if step == 1 or _is_due(step, config.log_every):
                    values = accumulator.take() | throughput.take() | {"learning_rate": rate}
                    self._write(step, values)
                progress.update(step, clock.progress(step), values)

        jax.block_until_ready(state)
        if throughput.num_steps:
            self._write(step, accumulator.take() | throughput.take())
        counters.seconds = clock.seconds()
        self._save(state, step, counters, force=True)
        if clock.progress(step) >= 1.0:
            self.evaluate(state, step, last=True)
        self.checkpointer.wait()
        return state

    def _evaluate_untrained(self, state: TrainState, step: int) -> None:
        if step == 0 and VALIDATION in self.evaluators:
            untrained = self.evaluators[VALIDATION](evaluated_params(state))
            self._write(0, untrained, UNTRAINED)

    def evaluate(self, state: TrainState, step: int, *, last: bool = False) -> None:
        """Runs the evaluators, but for those that ran before the checkpoint of this step."""
        for split, evaluator in self.evaluators.items():
            if (split != UNCONDITIONAL or last) and not self.record.has(step, split):
                self._write(step, evaluator(evaluated_params(state)), split)

    def _save(self, state: TrainState, step: int, counters: Counters, force: bool = False) -> None:
        values = dataclasses.asdict(counters)
        self.checkpointer.save(step, state, counters=values, data=self.data, force=force)

    def _write(self, step: int, values: Mapping[str, float], split: str = "train") -> None:
        self.record.write(step, values, split=split)
        if multihost.is_main():
            for writer in self.writers:
                writer.write(step, values, split=split)

    def _stopped(self, step: int) -> bool:
        return self.should_stop() or self.checkpointer.reached_preemption(step)


def _is_due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps (0: never) happens after this one."""
    return bool(every and step) and step % every == 0


def evaluated_params(state: TrainState) -> Any:
    """The weights that are evaluated and sampled from: the moving average where there is one."""
    return state.params if state.ema_params is None else state.ema_params


class _Clock:
    """Seconds trained, over all processes that a run was made of, and its progress."""

    def __init__(self, config: TrainConfig, before: float):
        self._config, self._before, self._began = config, before, time.monotonic()

    def seconds(self) -> float:
        return self._before + time.monotonic() - self._began

    def progress(self, step: int) -> float:
        """Share of the run that is over: of its steps, or of its minutes if those end first."""
        done = step / self._config.num_steps
        if self._config.max_minutes:
            done = max(done, self.seconds() / (60 * self._config.max_minutes))
        return min(done, 1.0)


def _num_tokens(batch: PackedBatch) -> int:
    """Real tokens of a host batch."""
    streams = (batch.und, batch.clean, batch.noised)
    return sum(int(np.count_nonzero(stream.meta.segment)) for stream in streams)
