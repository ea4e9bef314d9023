"""Tensors that are read, turned and written one at a time, into one folder."""

from __future__ import annotations

import math
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from mogao_jax.errors import CheckpointError
from mogao_jax.key_tables import Pair
from mogao_jax.porting.safetensors_reader import FLOATS, is_finite
from mogao_jax.porting.safetensors_writer import ShardWriter
from mogao_jax.porting.tensor_sources import TensorSource, read_in_parts

_DTYPES = {dtype.name: dtype for dtype in FLOATS.values()}


class ExportJob(NamedTuple):
    """Tensors to be written into one folder.

    Attributes:
      folder: below the output; "" for the output itself.
      stem: of the files' names.
      source: that they are read from.
      pairs: key <- name.
      dtypes: key -> dtype to be written.
      files: name -> text, or a file to be copied.
      metadata: strings for the files' headers.
    """

    folder: str
    stem: str
    source: TensorSource
    pairs: list[Pair]
    dtypes: Mapping[str, str]
    files: Mapping[str, str | pathlib.Path] = {}
    metadata: Mapping[str, str] = {}

    @property
    def num_bytes(self) -> int:
        """What will be written, without headers."""
        return sum(
            _DTYPES[self.dtypes[p.key]].itemsize * math.prod(self.source.shapes[p.name])
            for p in self.pairs
        )

    def write(
        self,
        out: pathlib.Path,
        *,
        advance: Callable[[int], Any],
        shard_bytes: int = 2**62,
        allow_non_finite: bool = False,
    ) -> list[str]:
        """Writes the tensors as shards, and the files beside them.

        Args:
          out: the output; `folder` is made below it.
          advance: called with the number of bytes after each piece.
        Returns:
          The files, relative to `out`.
        Raises:
          CheckpointError: values that are too large for their dtype, or not finite.
        """
        folder = out / self.folder
        folder.mkdir(exist_ok=True)
        shapes = {p.key: p.transform.theirs(tuple(self.source.shapes[p.name])) for p in self.pairs}
        writer = ShardWriter(
            folder,
            {key: (shape, self.dtypes[key]) for key, shape in shapes.items()},
            stem=self.stem,
            shard_bytes=shard_bytes,
            metadata=self.metadata,
        )
        # As they lie in a checkpoint: all layers of a stacked array one after another.
        leaf = getattr(self.source, "leaf_of", lambda name: name)
        for pair in sorted(self.pairs, key=lambda pair: leaf(pair.name)):  # stable
            for start, value in _values(self.source, pair):
                rounded = _rounded(pair.key, value, self.dtypes[pair.key], allow_non_finite)
                writer.write(pair.key, rounded, start)
                advance(rounded.nbytes)
        names = writer.finish()
        for name, content in self.files.items():
            if isinstance(content, pathlib.Path):
                shutil.copyfile(content, folder / name)
            else:
                (folder / name).write_text(content, encoding="utf-8")
            names.append(name)
        return [os.path.join(self.folder, name) for name in names]


def _values(source: TensorSource, pair: Pair) -> Iterator[tuple[int, np.ndarray]]:
    if pair.transform.by_rows:
        yield from read_in_parts(source, pair.name)
    else:
        yield 0, pair.transform.backward(source.read(pair.name))


def _rounded(key: str, value: np.ndarray, dtype: str, allow_non_finite: bool) -> np.ndarray:
    sound = is_finite(value)
    if not sound and not allow_non_finite:
        raise CheckpointError(
            f"{key} has values that are not finite (NaN or infinity); nothing written. A model "
            "with these computes nothing of use: give an older checkpoint. To write them as they "
            "are, say --allow-nan."
        )
    with np.errstate(over="ignore"):
        rounded = np.ascontiguousarray(value).astype(_DTYPES[dtype], copy=False)
    if sound and rounded.dtype != value.dtype and not is_finite(rounded):
        largest = np.abs(value.astype(np.float32)).max()
        raise CheckpointError(
            f"{key} reaches {largest:.3g}, too large for {dtype}; nothing written. Use --dtype "
            "bfloat16 or float32."
        )
    return rounded
