"""A checkpoint's arrays written and read in parts, for models that do not fit into memory.

What is written is what Orbax reads: a folder per array in zarr's format (version 2), named by the
array's path joined with dots, and `_METADATA`, which describes the tree. Orbax itself saves only
what is in memory as a whole. What Orbax has written (a database in place of the folders) is read
here too.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import tensorstore

from mogao_jax.checkpoints import files
from mogao_jax.checkpoints.fingerprint import RunningFingerprint

PART_BYTES = 128 * 2**20  # a part is read and written whole; also the size of files on disk
# Bytes of one place in their numbers together: float32 that was bfloat16 is half zeros.
_COMPRESSOR = {"id": "blosc", "cname": "lz4", "clevel": 1, "shuffle": 1, "blocksize": 0}

Shape = tuple[int, ...]


class PartWriter:
    """Writes the `state` item of a checkpoint.

    Every row of every array must be written exactly once; parts that are whole multiples of
    `rows_of` rows, from a multiple on, are the cheapest.
    """

    def __init__(self, folder: pathlib.Path, arrays: Mapping[str, tuple[Shape, Any]]):
        """Makes the item's folder; `arrays`: name as in a fingerprint -> (shape, dtype)."""
        self._folder = folder
        folder.mkdir(parents=True)
        self._arrays = {name: (shape, np.dtype(dtype)) for name, (shape, dtype) in arrays.items()}
        self._stores = {name: self._create(name, *array) for name, array in self._arrays.items()}
        self._sums = {name: RunningFingerprint() for name in arrays}
        self._rows = dict.fromkeys(arrays, 0)

    def write(self, name: str, start: int, rows: np.ndarray) -> None:
        """Writes rows [n, ...] of an array, from row `start` on; returns when they are on disk."""
        shape, dtype = self._arrays[name]
        if rows.dtype != dtype or rows.shape[1:] != shape[1:]:
            raise ValueError(f"{name}: {rows.dtype}{rows.shape} is no part of {dtype}{shape}")
        row = math.prod(shape[1:])
        step = rows_of(shape, dtype)
        # Rows are large and few: a part at a time, never a copy of all of them.
        for i in range(0, len(rows), step):
            part = np.ascontiguousarray(rows[i : i + step])
            self._stores[name][start + i : start + i + len(part)].write(part).result()
            self._sums[name].add(part, (start + i) * row)
        self._rows[name] += len(rows)

    def finish(self) -> dict[str, str]:
        """Completes the item; returns the fingerprint of all arrays."""
        gaps = [name for name, rows in self._rows.items() if rows != self._arrays[name][0][0]]
        if gaps:
            raise ValueError(f"not every row was written exactly once of {', '.join(gaps)}")
        entries = {
            str(tuple(name.split("/"))): {
                "key_metadata": [{"key": key, "key_type": 2} for key in name.split("/")],
                "value_metadata": {
                    "value_type": "jax.Array",
                    "skip_deserialize": False,
                    "write_shape": list(shape),
                },
            }
            for name, (shape, _) in self._arrays.items()
        }
        metadata = {
            "tree_metadata": entries,
            "use_ocdbt": False,
            "use_zarr3": False,
            "store_array_data_equal_to_fill_value": True,
            "custom_metadata": None,
        }
        (self._folder / "_METADATA").write_text(json.dumps(metadata), encoding="utf-8")
        return {name: total.hexdigest() for name, total in self._sums.items()}

    def _create(self, name: str, shape: Shape, dtype: np.dtype) -> Any:
        chunk = (min(rows_of(shape, dtype), shape[0]), *shape[1:])
        return tensorstore.open(
            {
                "driver": "zarr",
                "kvstore": _file(self._folder / name.replace("/", ".")),
                "metadata": {"compressor": _COMPRESSOR, "dimension_separator": "."},
            },
            create=True,
            dtype=tensorstore.dtype(dtype.name),
            shape=shape,
            chunk_layout=tensorstore.ChunkLayout(chunk_shape=chunk),
        ).result()


class PartReader:
    """Reads rows of a checkpoint's parameters. Cheapest in the order in which they lie."""

    def __init__(self, folder: pathlib.Path, meta: Mapping[str, Any], part: str):
        """Opens "params" or "ema_params" (`part`) of a checkpoint's folder, with its meta item."""
        self._state = folder / "state"
        self._meta, self._part = meta, part
        shapes = files.saved_shapes(folder)[part]
        self.arrays = {  # by dotted path
            name.replace("/", "."): jax.ShapeDtypeStruct(x.shape, x.dtype)
            for name, x in files.named_leaves(shapes)
        }
        self._stores: dict[str, Any] = {}
        self._kept: tuple[str, int, np.ndarray] | None = None  # the part read last
        self._sums: defaultdict[str, RunningFingerprint] = defaultdict(RunningFingerprint)
        self._seen: defaultdict[str, set[int]] = defaultdict(set)  # first rows

    def rows(self, leaf: str, start: int, stop: int) -> np.ndarray:
        """Rows start to stop (exclusive) of an array."""
        step = self._step(leaf)
        found = []
        while start < stop:
            first = start // step * step
            part = self._read(leaf, first)
            found.append(part[start - first : min(stop - first, len(part))])
            start = first + len(part)
        return found[0] if len(found) == 1 else np.concatenate(found)

    def read_all(self) -> None:
        """Reads everything once, for `verify`; a part at a time."""
        for leaf, x in self.arrays.items():
            for first in range(0, x.shape[0], self._step(leaf)):
                self._read(leaf, first)

    def verify(self) -> None:
        """Raises files.Damaged if an array that has been read whole is not what was saved."""
        whole = {
            f"{self._part}/{leaf.replace('.', '/')}": self._sums[leaf].hexdigest()
            for leaf, seen in self._seen.items()
            if len(seen) == -(-self.arrays[leaf].shape[0] // self._step(leaf))
        }
        files.compare_checksums(whole, self._meta["fingerprint"])

    def _read(self, leaf: str, first: int) -> np.ndarray:
        if self._kept is None or self._kept[:2] != (leaf, first):
            self._kept = None  # before the next one is read: never two at a time
            shape = self.arrays[leaf].shape
            stop = min(shape[0], first + self._step(leaf))
            part = np.asarray(self._store(leaf)[first:stop].read().result())
            if first not in self._seen[leaf]:
                self._seen[leaf].add(first)
                self._sums[leaf].add(part, first * math.prod(shape[1:]))
            self._kept = (leaf, first, part)
        return self._kept[2]

    def _step(self, leaf: str) -> int:
        """Rows that are read at a time: whole chunks of the file, however large."""
        x = self.arrays[leaf]
        chunk = int(self._store(leaf).chunk_layout.read_chunk.shape[0])
        return max(chunk, rows_of(x.shape, x.dtype) // chunk * chunk)

    def _store(self, leaf: str) -> Any:
        if leaf in self._stores:
            return self._stores[leaf]
        name = f"{self._part}.{leaf}"
        if (self._state / "manifest.ocdbt").exists():
            kvstore: Any = {"driver": "ocdbt", "base": _file(self._state), "path": f"{name}/"}
        else:
            kvstore = _file(self._state / name)
        metadata = json.loads((self._state / "_METADATA").read_text(encoding="utf-8"))
        driver = "zarr3" if metadata.get("use_zarr3") else "zarr"
        spec = {"driver": driver, "kvstore": kvstore}
        return self._stores.setdefault(leaf, tensorstore.open(spec, read=True).result())


def rows_of(shape: Shape, dtype: Any) -> int:
    """How many rows of an array make a part."""
    row = math.prod(shape[1:]) * np.dtype(dtype).itemsize
    return max(1, PART_BYTES // max(1, row))


def _file(path: pathlib.Path) -> dict[str, str]:
    return {"driver": "file", "path": f"{path.absolute()}/"}
