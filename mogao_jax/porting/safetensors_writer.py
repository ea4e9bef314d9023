"""Safetensors files written piece by piece: one, or shards of a given size with their index.

The library's `save_file` takes all tensors of a file at once. Here no more than a part of one is
in memory, which is what lets a 7B model be ported on a small machine.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from mogao_jax.key_tables import Pair, Shape
from mogao_jax.porting.tensor_sources import TensorSource, read_in_parts
from mogao_jax.safetensors_files import DTYPES, FLOATS, rounded

SHARD_BYTES = 5 * 10**9  # transformers' own
_FORMATS = {dtype.name: name for name, dtype in FLOATS.items()}


class ShardWriter:
    """Writes tensors, in any order and in parts, into files whose headers are known beforehand.

    The folder must be one that nobody reads yet (`mogao_jax.atomic`).
    """

    def __init__(
        self,
        folder: pathlib.Path,
        tensors: Mapping[str, tuple[Shape, str]],
        *,
        stem: str = "model",
        shard_bytes: int = SHARD_BYTES,
        metadata: Mapping[str, str] | None = None,
    ):
        """`tensors`: key -> (shape, dtype by numpy's name) of everything that will be written.

        Files are STEM.safetensors, or STEM-00001-of-00002.safetensors, with `metadata` in their
        headers; none is larger than `shard_bytes`, unless a single tensor is.
        """
        self._shapes = {key: shape for key, (shape, _) in tensors.items()}
        self._dtypes = {key: DTYPES[dtype] for key, (_, dtype) in tensors.items()}
        self._sizes = {k: math.prod(s) * self._dtypes[k].itemsize for k, s in self._shapes.items()}
        self._left = dict(self._sizes)
        self._index = folder / f"{stem}.safetensors.index.json"
        self._place: dict[str, tuple[pathlib.Path, int]] = {}  # file, and first byte in it
        shards = _shards(self._sizes, shard_bytes)
        for i, keys in enumerate(shards):
            many = f"-{i + 1:05}-of-{len(shards):05}" if len(shards) > 1 else ""
            self._begin(folder / f"{stem}{many}.safetensors", keys, metadata or {})

    def write(self, key: str, value: np.ndarray, start: int = 0) -> None:
        """Writes a tensor, or rows of it from row `start` on, in the dtype announced."""
        dtype = self._dtypes[key]
        if value.dtype != dtype:
            raise ValueError(f"{key} is {value.dtype}, announced as {dtype}")
        file, first = self._place[key]
        data = memoryview(np.ascontiguousarray(value).reshape(-1).view(np.uint8))
        with open(file, "r+b", buffering=0) as f:
            f.seek(first + start * math.prod(self._shapes[key][1:]) * dtype.itemsize)
            while data:
                data = data[f.write(data) :]
        self._left[key] -= value.nbytes

    def finish(self) -> list[str]:
        """Writes the index where there are shards; returns the names of all files."""
        bad = [key for key, left in self._left.items() if left]
        if bad:
            raise ValueError(f"not written, or not once: {', '.join(bad)}")
        files = list(dict.fromkeys(file for file, _ in self._place.values()))
        if len(files) > 1:
            weight_map = {key: self._place[key][0].name for key in sorted(self._place)}
            total = {"total_size": sum(self._sizes.values())}
            text = json.dumps({"metadata": total, "weight_map": weight_map}, indent=2)
            self._index.write_text(text + "\n", encoding="utf-8")
            files.append(self._index)
        for file in files:
            with open(file, "rb") as f:
                os.fsync(f.fileno())
        return [file.name for file in files]

    def _begin(self, file: pathlib.Path, keys: list[str], metadata: Mapping[str, str]) -> None:
        """Writes the header, and the file's whole length as a hole."""
        fields: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
        start = 0
        # Wider dtypes first, so that every tensor is aligned.
        for key in sorted(keys, key=lambda k: -self._dtypes[k].itemsize):
            stop = start + self._sizes[key]
            dtype, shape = _FORMATS[self._dtypes[key].name], list(self._shapes[key])
            fields[key] = {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}
            start = stop
        header = json.dumps(fields, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        with open(file, "xb") as f:
            f.write(len(header).to_bytes(8, "little") + header)
            f.truncate(8 + len(header) + start)
        for key in keys:
            self._place[key] = file, 8 + len(header) + fields[key]["data_offsets"][0]


class ExportJob(NamedTuple):
    """Tensors that are read, turned and written one at a time, into one folder."""

    folder: str  # below the output; "" for the output itself
    stem: str  # of the files' names
    source: TensorSource
    pairs: list[Pair]  # key <- name
    dtype: str | None = None  # to be written in; None: each in its own
    files: Mapping[str, Any] = {}  # name -> text, fields of a JSON, or a file (Path) to be copied
    metadata: Mapping[str, str] = {}  # strings for the files' headers

    @property
    def dtypes(self) -> dict[str, str]:
        """Key -> dtype to be written."""
        return {p.key: self.dtype or self.source.dtypes[p.name] for p in self.pairs}

    @property
    def common_dtype(self) -> str:
        """That of most tensors, for a config.json."""
        return Counter(self.dtypes.values()).most_common(1)[0][0]

    @property
    def num_bytes(self) -> int:
        """What will be written, without headers."""
        dtypes, shapes = self.dtypes, self.source.shapes
        return sum(DTYPES[dtypes[p.key]].itemsize * math.prod(shapes[p.name]) for p in self.pairs)

    def write(
        self,
        out: pathlib.Path,
        *,
        advance: Callable[[int], Any],
        shard_bytes: int = 2**62,
        allow_non_finite: bool = False,
    ) -> list[str]:
        """Writes the tensors as shards, and the files beside them; returns the files below `out`.

        `advance` is called with the number of bytes after each piece. Raises CheckpointError for
        values that are too large for their dtype, or not finite.
        """
        folder, source, dtypes = out / self.folder, self.source, self.dtypes
        folder.mkdir(exist_ok=True)
        shapes = {p.key: p.transform.theirs(tuple(source.shapes[p.name])) for p in self.pairs}
        tensors = {key: (shape, dtypes[key]) for key, shape in shapes.items()}
        writer = ShardWriter(
            folder, tensors, stem=self.stem, shard_bytes=shard_bytes, metadata=self.metadata
        )
        # As they lie in a checkpoint: all layers of a stacked array one after another.
        leaf = getattr(source, "leaf_of", lambda name: name)
        for key, name, transform in sorted(self.pairs, key=lambda pair: leaf(pair.name)):  # stable
            parts = read_in_parts(source, name) if transform.by_rows else [(0, source.read(name))]
            for start, value in parts:
                turned = transform.backward(value)
                part = rounded(key, turned, dtypes[key], allow_non_finite=allow_non_finite)
                writer.write(key, part, start)
                advance(part.nbytes)
        for name, content in self.files.items():
            if isinstance(content, pathlib.Path):
                shutil.copyfile(content, folder / name)
            else:
                text = content if isinstance(content, str) else json.dumps(content, indent=2) + "\n"
                (folder / name).write_text(text, encoding="utf-8")
        return [os.path.join(self.folder, name) for name in (*writer.finish(), *self.files)]


def _shards(sizes: Mapping[str, int], shard_bytes: int) -> list[list[str]]:
    """Keys of each file."""
    shards: list[list[str]] = []
    size = 0
    for key, num_bytes in sizes.items():
        if not shards or size + num_bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(key)
        size += num_bytes
    return shards
