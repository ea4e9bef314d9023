"""Tensors that are read, turned and written one at a time, into a folder of others' layout."""

from __future__ import annotations

import math
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from mogao_jax.errors import CheckpointError
from mogao_jax.porting.from_hf import ROWS_BYTES
from mogao_jax.porting.safetensors_file import FLOATS, is_finite
from mogao_jax.porting.safetensors_writer import ShardWriter
from mogao_jax.porting.tables import Pair
from mogao_jax.porting.tensor_sources import TensorSource
from mogao_jax.porting.transforms import Shape


class ExportJob(NamedTuple):
    """Tensors to be written into one folder.

    Attributes:
      folder: below the output; "" for the output itself.
      stem: of the files' names.
      source: that they are read from.
      pairs: key <- name.
      dtypes: key -> dtype to be written.
      files: name -> text, or a file to be copied.
    """

    folder: str
    stem: str
    source: TensorSource
    pairs: list[Pair]
    dtypes: dict[str, str]
    files: dict[str, str | pathlib.Path]


def write(
    out: pathlib.Path,
    work: ExportJob,
    shard_bytes: int,
    allow_non_finite: bool,
    advance: Callable[[int], Any],
) -> list[str]:
    """Writes the tensors as shards of at most `shard_bytes`, and the files beside them.

    Args:
      out: the output; `work.folder` is made below it.
      advance: called with the number of bytes after each piece.
    Returns:
      The files, relative to `out`.
    Raises:
      CheckpointError: values that are too large for their dtype, or not finite.
    """
    folder = out / work.folder
    folder.mkdir(exist_ok=True)
    shapes = _their_shapes(work)
    writer = ShardWriter(
        folder,
        {pair.key: (shapes[pair.key], work.dtypes[pair.key]) for pair in work.pairs},
        stem=work.stem,
        shard_bytes=shard_bytes,
    )
    for pair in _in_order(work):
        for start, value in _values(work, pair):
            rounded = _rounded(pair.key, value, work.dtypes[pair.key], allow_non_finite)
            writer.write(pair.key, rounded, start)
            advance(rounded.nbytes)
    names = writer.finish()
    for name, content in work.files.items():
        if isinstance(content, pathlib.Path):
            shutil.copyfile(content, folder / name)
        else:
            (folder / name).write_text(content, encoding="utf-8")
        names.append(name)
    return [os.path.join(work.folder, name) for name in names]


def _values(work: ExportJob, pair: Pair) -> Iterable[tuple[int, np.ndarray]]:
    shape = work.source.shapes[pair.name]
    row = 4 * int(np.prod(shape[1:], dtype=np.int64))
    if pair.transform.by_rows and row * shape[0] > ROWS_BYTES:
        step = max(1, ROWS_BYTES // row)
        for start in range(0, shape[0], step):
            stop = min(shape[0], start + step)
            yield start, work.source.read_rows(pair.name, start, stop)
    else:
        yield 0, pair.transform.backward(work.source.read(pair.name))


def _in_order(work: ExportJob) -> list[Pair]:
    """Pairs as they lie in the checkpoint: all layers of a stacked array one after another."""
    leaf = getattr(work.source, "leaf_of", lambda name: name)
    return sorted(work.pairs, key=lambda pair: leaf(pair.name))  # stable: layers stay in order


def _rounded(key: str, value: np.ndarray, dtype: str, allow_non_finite: bool) -> np.ndarray:
    sound = is_finite(value)
    if not sound and not allow_non_finite:
        raise CheckpointError(
            f"{key} has values that are not finite (NaN or infinity); nothing written. A model "
            "with these computes nothing of use: give an older checkpoint. To write them as they "
            "are, say --allow-nan."
        )
    target = FLOATS[next(name for name, d in FLOATS.items() if d.name == dtype)]
    with np.errstate(over="ignore"):
        rounded = np.ascontiguousarray(value).astype(target, copy=False)
    if sound and rounded.dtype != value.dtype and not is_finite(rounded):
        largest = np.abs(value.astype(np.float32)).max()
        raise CheckpointError(
            f"{key} reaches {largest:.3g}, too large for {dtype}; nothing written. Use --dtype "
            "bfloat16 or float32."
        )
    return rounded


def _their_shapes(work: ExportJob) -> dict[str, Shape]:
    return {
        pair.key: pair.transform.theirs(tuple(work.source.shapes[pair.name])) for pair in work.pairs
    }


def bytes_of(work: ExportJob) -> int:
    """What will be written, without headers."""
    wide = {key: 4 if dtype == "float32" else 2 for key, dtype in work.dtypes.items()}
    return sum(wide[p.key] * math.prod(work.source.shapes[p.name]) for p in work.pairs)
