"""Safetensors files written piece by piece: one, or shards of a given size with their index."""

from __future__ import annotations

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from mogao_jax.porting.safetensors_file import FLOATS
from mogao_jax.porting.transforms import Shape

SHARD_BYTES = 5 * 10**9  # transformers' own
_NAMES = {dtype.name: name for name, dtype in FLOATS.items()}


class ShardWriter:
    """Writes tensors, in any order and in parts, into files whose headers are known beforehand.

    The folder must be one that nobody reads yet (`unfinished.py`).
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
        self._dtypes = {key: np.dtype(FLOATS[_NAMES[dtype]]) for key, (_, dtype) in tensors.items()}
        self._shapes = {key: shape for key, (shape, _) in tensors.items()}
        self._left = {key: math.prod(shape) for key, shape in self._shapes.items()}
        self._folder, self._stem = folder, stem
        self._start: dict[str, int] = {}
        self._file: dict[str, str] = {}
        shards = self._shards(shard_bytes)
        for i, keys in enumerate(shards):
            many = f"-{i + 1:05}-of-{len(shards):05}" if len(shards) > 1 else ""
            self._begin(f"{stem}{many}.safetensors", keys, dict(metadata or {}))

    def write(self, key: str, value: np.ndarray, start: int = 0) -> None:
        """Writes a tensor, or rows of it from row `start` on, in the dtype announced."""
        dtype = self._dtypes[key]
        if value.dtype != dtype:
            raise ValueError(f"{key} is {value.dtype}, announced as {dtype}")
        row = math.prod(self._shapes[key][1:]) * dtype.itemsize
        data = memoryview(np.ascontiguousarray(value).reshape(-1).view(np.uint8))
        with open(self._folder / self._file[key], "r+b", buffering=0) as f:
            f.seek(self._start[key] + start * row)
            while data:
                data = data[f.write(data) :]
        self._left[key] -= value.size

    def finish(self) -> list[str]:
        """Writes the index where there are shards; returns the names of all files."""
        bad = [key for key, left in self._left.items() if left]
        if bad:
            raise ValueError(f"not written, or not once: {', '.join(bad)}")
        names = list(dict.fromkeys(self._file.values()))
        if len(names) > 1:
            total = sum(math.prod(s) * self._dtypes[k].itemsize for k, s in self._shapes.items())
            index = {
                "metadata": {"total_size": total},
                "weight_map": dict(sorted(self._file.items())),
            }
            name = f"{self._stem}.safetensors.index.json"
            (self._folder / name).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
            names.append(name)
        for name in names:
            with open(self._folder / name, "rb") as f:
                os.fsync(f.fileno())
        return names

    def _shards(self, shard_bytes: int) -> list[list[str]]:
        shards: list[list[str]] = [[]]
        size = 0
        for key, shape in self._shapes.items():
            num_bytes = math.prod(shape) * self._dtypes[key].itemsize
            if shards[-1] and size + num_bytes > shard_bytes:
                shards.append([])
                size = 0
            shards[-1].append(key)
            size += num_bytes
        return shards

    def _begin(self, name: str, keys: list[str], metadata: dict[str, str]) -> None:
        """Writes the header, and the file's whole length as a hole."""
        fields: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
        offset = 0
        # Wider dtypes first, so that every tensor is aligned.
        for key in sorted(keys, key=lambda k: -self._dtypes[k].itemsize):
            stop = offset + math.prod(self._shapes[key]) * self._dtypes[key].itemsize
            fields[key] = {
                "dtype": _NAMES[self._dtypes[key].name],
                "shape": list(self._shapes[key]),
                "data_offsets": [offset, stop],
            }
            self._start[key], self._file[key] = offset, name
            offset = stop
        header = json.dumps(fields, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        with open(self._folder / name, "xb") as f:
            f.write(len(header).to_bytes(8, "little") + header)
            f.truncate(8 + len(header) + offset)
        for key in keys:
            self._start[key] += 8 + len(header)
