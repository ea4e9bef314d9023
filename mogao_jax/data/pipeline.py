"""The pipeline: draws -> documents -> rows -> batches, ahead of the training step.

    mixture (draws)  ->  Preparer (documents laid out)  ->  Packer (rows)   in a thread or workers
                                                        ->  batches [grad_accum_steps, rows, ...]

The position is a few numbers: the next draw, and which draws wait in the packer's pool. Restoring
reads exactly those again, so what follows is the same to the last bit.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import grain

from mogao_jax.config.schema import MogaoConfig
from mogao_jax.data.mixture import Draw
from mogao_jax.data.preparing import BrokenRecords, Prepared, Preparer, make_preparer
from mogao_jax.errors import ConfigError, DataError
from mogao_jax.sequence.batch import PackedBatch
from mogao_jax.sequence.packing import (
    FillStatistics,
    Packer,
    budgets,
    empty_like,
    pack_row,
    stack_rows,
)
from mogao_jax.tokenizer import Tokenizer

BATCHES_AHEAD = 2  # batches ready before they are asked for

logger = logging.getLogger(__name__)


class Row(NamedTuple):
    """What travels from workers: a row, and what its shard has seen so far."""

    batch: PackedBatch
    shard: int
    num_broken: int


class RowDataset(grain.IterDataset):
    """Packed rows, for ever, of one shard of the mixture."""

    def __init__(self, preparer: Preparer, shard: int, num_shards: int):
        super().__init__()
        self._preparer = preparer
        self._shard, self._num_shards = shard, num_shards

    def set_slice(self, sl: slice, sequential_slice: bool = False) -> None:
        """Makes this the shard of one worker process (called by grain on a copy)."""
        del sequential_slice
        self._shard += self._num_shards * sl.start
        self._num_shards *= sl.step

    def __iter__(self) -> RowIterator:
        return RowIterator(self._preparer, self._shard, self._num_shards)


class RowIterator(grain.DatasetIterator):
    """Rows of one shard. The state is JSON of one structure: an int and two strings."""

    def __init__(self, preparer: Preparer, shard: int, num_shards: int):
        super().__init__()
        self._preparer, self._shard = preparer, shard
        self._draws = preparer.draws(shard, num_shards)
        self._restart(0, [])

    def _restart(self, following: int, pool: list[int]) -> None:
        config = self._preparer.config
        self._packer = Packer(budgets(config.packing), config.packing.pool)
        self._broken = BrokenRecords(config.data.max_broken)
        self._next = following  # the next draw
        self._waiting: list[int] | None = pool  # draws to be read into the pool first
        self._error: DataError | None = None

    @property
    def fill(self) -> FillStatistics:
        """How full the rows were since the start, or since the state was set."""
        return self._packer.fill

    @property
    def broken(self) -> BrokenRecords:
        """What was skipped."""
        return self._broken

    def __next__(self) -> Row:
        if self._error is not None:
            raise self._error
        try:
            self._fill_pool()
        except DataError as e:
            self._error = e
            raise
        config = self._preparer.config
        documents = [batch for _, batch in self._packer.take_row()]
        row = pack_row(
            documents,
            budgets(config.packing),
            config.images.max_side,
            merge_size=config.vit.merge_size,
        )
        return Row(row, self._shard, self._broken.num_broken)

    def _fill_pool(self) -> None:
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            for number in waiting:
                prepared = self._preparer(self._draws[number])
                if not isinstance(prepared, Prepared):
                    raise DataError(
                        "the data have changed since the checkpoint: a record that was fine is "
                        f"not any more. {prepared.reason}"
                    )
                self._packer.add((number, prepared.batch), prepared.size)
        while self._packer.wanted:
            number, self._next = self._next, self._next + 1
            draw: Draw = self._draws[number]
            prepared = self._preparer(draw)
            if isinstance(prepared, Prepared):
                self._broken.good()
                self._packer.add((number, prepared.batch), prepared.size)
            else:
                self._broken.add(
                    draw.source, draw.record, prepared.reason, over_long=prepared.over_long
                )

    def get_state(self) -> dict[str, Any]:
        waiting = self._waiting
        if waiting is None:
            waiting = [number for number, _ in self._packer.held]
        return {
            "next": self._next,
            "pool": json.dumps(waiting),
            "broken": self._broken.get_state(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        self._restart(int(state["next"]), json.loads(state["pool"]))
        self._broken.set_state(state["broken"])


class BatchDataset(grain.IterDataset):
    """Rows put together: [grad_accum_steps, rows, ...]. Watches over all shards' broken records."""

    def __init__(
        self, parent: grain.IterDataset, grad_accum_steps: int, rows: int, max_broken: int
    ):
        super().__init__(parent)
        self._args = (grad_accum_steps, rows, max_broken)

    def __iter__(self) -> BatchIterator:
        return BatchIterator(iter(self._parent), *self._args)


class BatchIterator(grain.DatasetIterator):
    def __init__(self, parent: Any, grad_accum_steps: int, rows: int, max_broken: int):
        super().__init__(parent)
        self._grad_accum_steps, self._rows, self._max_broken = grad_accum_steps, rows, max_broken
        self._num_broken: dict[int, int] = {}  # by shard; each worker knows its own alone

    def __next__(self) -> PackedBatch:
        steps = []
        for _ in range(self._grad_accum_steps):
            rows = [next(self._parent) for _ in range(self._rows)]
            self._num_broken.update({row.shard: int(row.num_broken) for row in rows})
            steps.append(stack_rows([row.batch for row in rows]))
        total = sum(self._num_broken.values())
        if total > self._max_broken:
            raise DataError(
                f"{total} records are broken, more than data.max_broken ({self._max_broken}) "
                "allows; the log names them. Repair or remove them, or raise data.max_broken."
            )
        return stack_rows(steps)

    def get_state(self) -> dict[str, Any]:
        return {"rows": self._parent.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        self._num_broken = {}
        self._parent.set_state(state["rows"])


def make_train_iterator(
    config: MogaoConfig,
    *,
    tokenizer: Tokenizer,
    reader: int = 0,
    num_readers: int = 1,
) -> grain.DatasetIterator:
    """An endless iterator of batches for one process.

    It has `get_state` and `set_state` (JSON-able; for grain.checkpoint.CheckpointSave and
    CheckpointRestore), and `close`. A state fits the same config, number of readers and number
    of workers alone.

    Args:
      config: `train.global_batch_rows` counts the rows of all processes together.
      tokenizer: see mogao_jax.tokenizer.
      reader, num_readers: which share of the data and of the rows this is; processes whose
        devices hold the same rows are one reader (`sharding.mesh.reader`).
    Returns:
      yields PackedBatch with leading axes
      [train.grad_accum_steps, train.global_batch_rows / num_readers].
    Raises:
      ConfigError: the rows cannot be shared out.
      DataError: a source is missing or empty; while iterating: too many broken records.
    """
    rows = _rows_per_reader(config, num_readers)
    _prepare_grain()
    preparer = make_preparer(config, tokenizer, "train")
    dataset: grain.IterDataset = RowDataset(preparer, reader, num_readers)
    if config.data.num_workers:
        ahead = max(
            1, BATCHES_AHEAD * rows * config.train.grad_accum_steps // config.data.num_workers
        )
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(config.data.num_workers, per_worker_buffer_size=ahead)
        )
    dataset = BatchDataset(dataset, config.train.grad_accum_steps, rows, config.data.max_broken)
    dataset = grain.experimental.ThreadPrefetchIterDataset(
        dataset, prefetch_buffer_size=BATCHES_AHEAD
    )
    return iter(dataset)


def _rows_per_reader(config: MogaoConfig, num_readers: int) -> int:
    rows, rest = divmod(config.train.global_batch_rows, num_readers)
    if rest or not rows:
        raise ConfigError(
            f"train.global_batch_rows ({config.train.global_batch_rows}) must be a "
            f"multiple of the number of processes that read rows of their own ({num_readers})."
        )
    return rows


def _prepare_grain() -> None:
    """Grain reads absl flags, and writes of its own frames into our error messages; not here."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    grain.config.update("py_traceback_filtering", "off")


# -------------------------------------------------------------------------------- validation


def make_validation_batches(
    config: MogaoConfig,
    tokenizer: Tokenizer,
    *,
    context: int | None = None,
    reader: int = 0,
    num_readers: int = 1,
) -> list[PackedBatch]:
    """The fixed validation set: the same held-out documents, in the same rows, every time.

    `data.validation_documents` are shared out over the sources by weight. Rows of the last batch
    that no document needed are padding.

    Args:
      context: FULL, IMAGE_ONLY or EMPTY puts every target image into that context, so that the
        same images can be judged with and without their condition.
      reader, num_readers: which of each batch's rows are returned.
    Returns:
      batches with the leading axis [train.global_batch_rows / num_readers]; none if no source has
      held-out documents.
    Raises:
      DataError: more than `data.max_broken` of the held-out records are broken.
    """
    rows = _rows_per_reader(config, num_readers)
    preparer = make_preparer(config, tokenizer, "validation", context)
    packer_rows = list(_validation_rows(preparer))
    limits, side = budgets(config.packing), config.images.max_side
    batches = []
    for start in range(0, len(packer_rows), config.train.global_batch_rows):
        mine = packer_rows[start + reader * rows : start + (reader + 1) * rows]
        packed = [pack_row(r, limits, side, merge_size=config.vit.merge_size) for r in mine]
        packed += [empty_like(packer_rows[0][0], limits)] * (rows - len(packed))
        batches.append(stack_rows(packed))
    if not batches:
        logger.warning("No source has held-out documents: there is no validation set.")
    return batches


def _validation_rows(preparer: Preparer) -> Iterator[list[PackedBatch]]:
    config = preparer.config
    packer = Packer(budgets(config.packing), config.packing.pool)
    broken = BrokenRecords(config.data.max_broken)
    for draw in validation_draws(preparer):
        prepared = preparer(draw)
        if not isinstance(prepared, Prepared):
            broken.add(draw.source, draw.record, prepared.reason, over_long=prepared.over_long)
            continue
        broken.good()
        packer.add(prepared.batch, prepared.size)
        if not packer.wanted:
            yield packer.take_row()
    while row := packer.take_row():
        yield row


def validation_draws(preparer: Preparer) -> list[Draw]:
    """The held-out records of each source, sources taken in turn."""
    weights = [settings.weight for settings in preparer.settings]
    draws = []
    for source, (documents, weight) in enumerate(zip(preparer.sources, weights, strict=True)):
        wanted = round(preparer.config.data.validation_documents * weight / sum(weights))
        number = min(len(documents), max(1, wanted) if weight else 0)
        # Spread over the source, whose order may mean something.
        stride = max(1, len(documents) // number) if number else 1
        draws.append([Draw(source, i * stride, i) for i in range(number)])
    in_turn = itertools.zip_longest(*draws)
    return [draw for turn in in_turn for draw in turn if draw is not None]
