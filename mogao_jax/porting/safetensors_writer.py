"""Safetensors files written piece by piece: one, or shards of a given size with their index.

The library's `save_file` takes all tensors of a file at once. Here no more than a part of one is
in memory, which is what lets a 7B model be ported on a small machine.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mogao_jax.key_tables import Shape
from mogao_jax.safetensors_files import DTYPES, FLOATS

SHARD_BYTES = 5 * 10**9  # transformers' own
_FORMATS = {dtype.name: name for name, dtype in FLOATS.items()}


class _Tensor(NamedTuple):
    """Where a tensor is written: from byte `start` of a file on."""

    shape: Shape
    dtype: np.dtype
    file: pathlib.Path
    start: int


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
        """
        Args:
          tensors: key -> (shape, dtype by numpy's name) of everything that will be written.
          stem: of the files' names: STEM.safetensors, or STEM-00001-of-00002.safetensors.
          shard_bytes: no file is larger, unless a single tensor is.
          metadata: strings for the files' headers.
        """
        dtypes = {key: DTYPES[dtype] for key, (_, dtype) in tensors.items()}
        sizes = {k: math.prod(s) * dtypes[k].itemsize for k, (s, _) in tensors.items()}
        self._index = folder / f"{stem}.safetensors.index.json"
        self._total = sum(sizes.values())
        self._left = {key: math.prod(shape) for key, (shape, _) in tensors.items()}
        self._tensors: dict[str, _Tensor] = {}
        shards = _shards(sizes, shard_bytes)
        for i, keys in enumerate(shards):
            many = f"-{i + 1:05}-of-{len(shards):05}" if len(shards) > 1 else ""
            file = folder / f"{stem}{many}.safetensors"
            # Wider dtypes first, so that every tensor is aligned.
            keys.sort(key=lambda k: -dtypes[k].itemsize)
            header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
            offset = 0
            for key in keys:
                shape, dtype = tensors[key]
                ends = [offset, offset + sizes[key]]
                header[key] = {
                    "dtype": _FORMATS[dtype], "shape": list(shape), "data_offsets": ends
                }  # fmt: skip
                offset = ends[1]
            start = _begin(file, header, offset)
            for key in keys:
                first = start + header[key]["data_offsets"][0]
                self._tensors[key] = _Tensor(tensors[key][0], dtypes[key], file, first)

    def write(self, key: str, value: np.ndarray, start: int = 0) -> None:
        """Writes a tensor, or rows of it from row `start` on, in the dtype announced."""
        shape, dtype, file, first = self._tensors[key]
        if value.dtype != dtype:
            raise ValueError(f"{key} is {value.dtype}, announced as {dtype}")
        data = memoryview(np.ascontiguousarray(value).reshape(-1).view(np.uint8))
        with open(file, "r+b", buffering=0) as f:
            f.seek(first + start * math.prod(shape[1:]) * dtype.itemsize)
            while data:
                data = data[f.write(data) :]
        self._left[key] -= value.size

    def finish(self) -> list[str]:
        """Writes the index where there are shards; returns the names of all files."""
        bad = [key for key, left in self._left.items() if left]
        if bad:
            raise ValueError(f"not written, or not once: {', '.join(bad)}")
        files = list(dict.fromkeys(tensor.file for tensor in self._tensors.values()))
        if len(files) > 1:
            weight_map = {key: self._tensors[key].file.name for key in sorted(self._tensors)}
            index = {"metadata": {"total_size": self._total}, "weight_map": weight_map}
            self._index.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
            files.append(self._index)
        for file in files:
            with open(file, "rb") as f:
                os.fsync(f.fileno())
        return [file.name for file in files]


def _shards(sizes: Mapping[str, int], shard_bytes: int) -> list[list[str]]:
    """Keys of each file."""
    shards: list[list[str]] = [[]]
    size = 0
    for key, num_bytes in sizes.items():
        if shards[-1] and size + num_bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(key)
        size += num_bytes
    return shards


def _begin(file: pathlib.Path, header: Mapping[str, Any], num_bytes: int) -> int:
    """Writes the header, and the data as a hole; returns where the data begin."""
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "xb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        f.truncate(8 + len(text) + num_bytes)
    return 8 + len(text)
