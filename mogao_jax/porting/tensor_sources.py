"""Where tensors come from: anything that can say what it holds and hand it over one by one."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from mogao_jax.key_tables import SAME, Pair, Shape, Transform

Place = str | os.PathLike
PART_BYTES = 64 * 2**20  # larger tensors are read in parts, where that is possible


class TensorSource(Protocol):
    """Named tensors, read one at a time."""

    @property
    def place(self) -> str:
        """The file or folder, for messages."""

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """Of everything in it."""

    @property
    def dtypes(self) -> Mapping[str, str]:
        """By numpy's names ("bfloat16" as well); what is no plain float by the format's own."""

    @property
    def config(self) -> Mapping[str, Any]:
        """Its config.json; {} where there is none."""

    def read(self, key: str) -> np.ndarray:
        """A whole tensor, in its own dtype."""

    def read_rows(self, key: str, start: int, stop: int) -> np.ndarray:
        """Rows start to stop (exclusive) of its first axis."""


def read_in_parts(source: TensorSource, key: str) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, rows) of a tensor, in parts of at most PART_BYTES; a scalar's rows are itself."""
    num_rows, *rest = source.shapes[key] or (1,)
    step = max(1, PART_BYTES // (4 * max(1, math.prod(rest))))
    if num_rows <= step:
        yield 0, source.read(key)
        return
    for start in range(0, num_rows, step):
        yield start, source.read_rows(key, start, min(num_rows, start + step))


class InMemory:
    """Tensors in memory: from a file of another kind, or made by a test."""

    def __init__(
        self,
        tensors: Mapping[str, np.ndarray],
        *,
        config: Mapping[str, Any] | None = None,
        place: str = "tensors in memory",
    ):
        self.place, self.config = place, dict(config or {})
        self._tensors = dict(tensors)
        self.shapes = {key: tuple(x.shape) for key, x in tensors.items()}
        self.dtypes = {key: x.dtype.name for key, x in tensors.items()}

    def read(self, key: str) -> np.ndarray:
        return self._tensors[key]

    def read_rows(self, key: str, start: int, stop: int) -> np.ndarray:
        return self._tensors[key][start:stop]


class Origin(NamedTuple):
    """Where a tensor of a view comes from, and how it is turned."""

    source: TensorSource
    key: str
    shape: Shape
    transform: Transform = SAME


class TensorView:
    """Tensors of other sources under other names, and with other axes; itself a `TensorSource`."""

    def __init__(self, place: str, config: Mapping[str, Any], origins: Mapping[str, Origin]):
        self.place, self.config, self._origins = place, config, dict(origins)
        self.shapes = {name: tuple(o.shape) for name, o in origins.items()}
        self.dtypes = {name: o.source.dtypes[o.key] for name, o in origins.items()}

    def read(self, key: str) -> np.ndarray:
        origin = self._origins[key]
        return origin.transform.forward(origin.source.read(origin.key), self.shapes[key])

    def read_rows(self, key: str, start: int, stop: int) -> np.ndarray:
        origin = self._origins[key]
        if origin.transform.by_rows:
            return origin.source.read_rows(origin.key, start, stop)
        return self.read(key)[start:stop]


def prefixed(
    source: TensorSource, config: Mapping[str, Any], *, strip: str = "", prefix: str = ""
) -> TensorView:
    """The tensors whose keys begin with `strip`, which `prefix` replaces; with another config."""
    found = {
        prefix + key.removeprefix(strip): Origin(source, key, shape)
        for key, shape in source.shapes.items()
        if key.startswith(strip)
    }
    return TensorView(source.place, config, found)


def chained(place: str, *sources: TensorSource) -> TensorView:
    """Several sources of one model as one; their keys must not collide."""
    found = {key: Origin(s, key, shape) for s in sources for key, shape in s.shapes.items()}
    return TensorView(place, {}, found)


def unchanged(keys: Iterable[str]) -> list[Pair]:
    """Tensors that keep their names and shapes."""
    return [Pair(key, key, SAME) for key in keys]


def transformed(
    source: TensorSource, pairs: Iterable[Pair], shapes: Mapping[str, Shape]
) -> TensorView:
    """Tensors of a file in others' layout by our names, shaped as ours."""
    found = {p.name: Origin(source, p.key, shapes[p.name], p.transform) for p in pairs}
    return TensorView(source.place, source.config, found)
