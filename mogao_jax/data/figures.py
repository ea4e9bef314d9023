"""What the data amount to: sizes of documents, budgets that suit them, fill, speed."""

from __future__ import annotations

import math
import time
from typing import NamedTuple

import numpy as np

from mogao_jax.config.schema import MogaoConfig
from mogao_jax.data.mixture import make_mixture
from mogao_jax.data.pipeline import RowIterator
from mogao_jax.data.preparing import Preparer, make_preparer, source_lengths
from mogao_jax.errors import DataError, DocumentError
from mogao_jax.sequence.batch import Sizes, sizes
from mogao_jax.sequence.packing import stack_rows
from mogao_jax.tokenizer import Tokenizer

# A little slack for what should not close rows, and the multiple that each size is rounded to.
SLACK = (1.0, 1.0, 1.0, 1.05, 1.05)  # in the order of Sizes
MULTIPLE = Sizes(und=16, clean=4, noised=4, images=1, vit_patches=16)


def measure_sizes(preparer: Preparer, num_documents: int) -> dict[str, np.ndarray]:
    """Sizes of documents drawn from the mixture, over-long ones too: {source: int64[n, 5]}."""
    weights = [settings.weight for settings in preparer.settings]
    draws = make_mixture(source_lengths(preparer.sources), weights, seed=preparer.config.seed)
    found: dict[str, list[Sizes]] = {}
    for number in range(num_documents):
        draw = draws[number]
        try:
            laid_out = preparer.lay_out(preparer.document(draw), draw)
        except DocumentError:
            continue
        found.setdefault(preparer.names[draw.source], []).append(sizes(laid_out))
    if not found:
        raise DataError("no document of the mixture could be used; see 'mogao data inspect'.")
    return {name: np.array(rows, np.int64) for name, rows in sorted(found.items())}


def suggest_budgets(found: dict[str, np.ndarray], und_tokens: int) -> Sizes:
    """Budgets in proportion to the mixture, so that all fill up together.

    Args:
      found: from `measure_sizes`.
      und_tokens: wanted size of the und stream; the others follow. Grown, if need be, until the
        largest document fits.
    """
    everything = np.concatenate(list(found.values()))
    mean = np.maximum(everything.mean(axis=0), 1e-9) * np.array(SLACK)
    scale = max(und_tokens / mean[0], *(everything.max(axis=0)[:1] / mean[:1]))
    budgets = []
    for value, largest, multiple in zip(
        mean * scale, everything.max(axis=0), MULTIPLE, strict=True
    ):
        budgets.append(max(1, math.ceil(max(value, largest) / multiple)) * multiple)
    return Sizes(*budgets)


class FillReport(NamedTuple):
    """Figures of a stretch of the pipeline."""

    shares: dict[str, float]  # used share of each budget, and of 'gen'
    rows: int
    documents: int
    seconds: float
    tokens: int  # without padding
    num_broken: int
    num_over_long: int


def measure_fill(config: MogaoConfig, tokenizer: Tokenizer, num_rows: int) -> FillReport:
    """Packs rows and stacks them to batches in this process, and times it after the first batch."""
    rows = RowIterator(make_preparer(config, tokenizer, "train"), 0, 1)
    per_batch = config.train.global_batch_rows
    next(rows)  # fills the pool
    documents = rows.fill.documents
    used = rows.fill.used.copy()
    start, done = time.perf_counter(), 0
    while done < num_rows:
        count = min(per_batch, num_rows - done)
        stack_rows([next(rows).batch for _ in range(count)])
        done += count
    seconds = time.perf_counter() - start
    return FillReport(
        shares=rows.fill.shares(),
        rows=done,
        documents=rows.fill.documents - documents,
        seconds=seconds,
        tokens=int((rows.fill.used - used)[:3].sum()),
        num_broken=rows.broken.num_broken,
        num_over_long=rows.broken.num_over_long,
    )
