"""Tensors that are read, turned and written one at a time, into one folder."""

from __future__ import annotations

import math
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from mogao_jax.key_tables import Pair
from mogao_jax.porting.safetensors_writer import ShardWriter
from mogao_jax.porting.tensor_sources import TensorSource, read_in_parts
from mogao_jax.safetensors_files import DTYPES, rounded


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
            DTYPES[self.dtypes[p.key]].itemsize * math.prod(self.source.shapes[p.name])
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
                dtype = self.dtypes[pair.key]
                part = rounded(pair.key, value, dtype, allow_non_finite=allow_non_finite)
                writer.write(pair.key, part, start)
                advance(part.nbytes)
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
