"""The mixture: which record of which source comes next, for ever, as numbers alone."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import grain
import numpy as np

from mogao_jax.errors import DataError

# grain's shuffle walks a cipher of 2**16 blocks until it meets an index of the source: 2 us a
# record for long sources, 6 ms for a source of five.
SHORT = 4096


class Draw(NamedTuple):
    """One record drawn.

    `number` counts the draws from this source over all shards and epochs: with the source it
    names the draw, so it keys what is random about it.
    """

    source: int
    record: int
    number: int


def make_mixture(
    lengths: Sequence[int],
    weights: Sequence[float],
    *,
    seed: int,
    shard: int = 0,
    num_shards: int = 1,
) -> grain.MapDataset:
    """An endless MapDataset of `Draw`s.

    Each source is shuffled anew in each epoch, repeated, split by shard (every record comes up
    once per epoch over all shards), and then the sources are mixed. Splitting before mixing
    matters: the mixture's pattern is regular, and every second element of an even mixture of two
    sources would all be of one source.

    Args:
      lengths: records of each source.
      weights: relative shares of documents, not of tokens; sources of weight 0 are left out.
      seed: of the shuffling.
      shard, num_shards: which part of the draws this is.
    Raises:
      DataError: nothing to draw from.
    """
    parts, shares = [], []
    for source, (length, weight) in enumerate(zip(lengths, weights, strict=True)):
        if weight <= 0 or length <= 0:
            continue
        key = zlib.crc32(f"{seed}/{source}".encode())
        records = grain.MapDataset.range(length)
        if length > SHORT:
            records = records.shuffle(seed=key)
        draws = records.repeat().map_with_index(_Number(source, length, key))
        parts.append(draws[shard::num_shards])
        shares.append(float(weight))
    if not parts:
        raise DataError("every data source is empty or of weight 0; there is nothing to train on.")
    return grain.MapDataset.mix(parts, shares)


class _Number:
    """Makes Draws of records; shuffles short sources, for which grain's shuffle is slow."""

    def __init__(self, source: int, length: int, key: int):
        self._source, self._length, self._key = source, length, key
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))

    def __call__(self, number: int, record: int) -> Draw:
        if self._length <= SHORT:
            epoch, position = divmod(number, self._length)
            cached, order = self._order
            if cached != epoch:
                order = np.random.default_rng([self._key, epoch]).permutation(self._length)
                self._order = (epoch, order)
            record = order[position]
        return Draw(self._source, int(record), int(number))
