"""Where tensors come from: anything that can say what it holds and hand it over one by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from mogao_jax.porting.tables import Plan
from mogao_jax.porting.transforms import Shape


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


class InMemory:
    """Tensors that are at hand already: out of a file of another kind, or made by a test."""

    def __init__(
        self,
        tensors: Mapping[str, np.ndarray],
        *,
        config: Mapping[str, Any] | None = None,
        place: str = "tensors in memory",
    ):
        self.place = place
        self.config = dict(config or {})
        self._tensors = dict(tensors)
        self.shapes = {key: tuple(x.shape) for key, x in tensors.items()}
        self.dtypes = {key: x.dtype.name for key, x in tensors.items()}

    def read(self, key: str) -> np.ndarray:
        return self._tensors[key]

    def read_rows(self, key: str, start: int, stop: int) -> np.ndarray:
        return self._tensors[key][start:stop]


class PrefixedSource:
    """A source with keys of one prefix only, and another prefix in its place."""

    def __init__(
        self,
        source: TensorSource,
        strip: str,
        config: Mapping[str, Any] | None = None,
        *,
        prefix: str = "",
    ):
        """
        Args:
          strip: only keys that begin with this are kept, without it.
          config: in place of the source's own.
          prefix: what the remaining keys get in front.
        """
        self._source = source
        self.place = source.place
        self.config = source.config if config is None else config
        self._keys = {
            prefix + key.removeprefix(strip): key for key in source.shapes if key.startswith(strip)
        }
        self.shapes = {key: source.shapes[old] for key, old in self._keys.items()}
        self.dtypes = {key: source.dtypes[old] for key, old in self._keys.items()}

    def read(self, key: str) -> np.ndarray:
        return self._source.read(self._keys[key])

    def read_rows(self, key: str, start: int, stop: int) -> np.ndarray:
        return self._source.read_rows(self._keys[key], start, stop)


class ChainedSource:
    """Several sources of one model as one; their keys must not collide."""

    def __init__(self, place: str, *sources: TensorSource):
        self.place = place
        self.config: Mapping[str, Any] = {}
        self._of = {key: source for source in sources for key in source.shapes}
        self.shapes = {key: source.shapes[key] for key, source in self._of.items()}
        self.dtypes = {key: source.dtypes[key] for key, source in self._of.items()}

    def read(self, key: str) -> np.ndarray:
        return self._of[key].read(key)

    def read_rows(self, key: str, start: int, stop: int) -> np.ndarray:
        return self._of[key].read_rows(key, start, stop)


class TransformedSource:
    """A file in others' layout by our names, shaped as ours."""

    def __init__(self, source: TensorSource, plan: Plan, shapes: Mapping[str, Shape]):
        self.place = source.place
        self.config = source.config
        self._source, self._pairs = source, {pair.name: pair for pair in plan.pairs}
        self.shapes = shapes
        self.dtypes = {name: source.dtypes[pair.key] for name, pair in self._pairs.items()}

    def read(self, key: str) -> np.ndarray:
        pair = self._pairs[key]
        return pair.transform.forward(self._source.read(pair.key), self.shapes[key])

    def read_rows(self, key: str, start: int, stop: int) -> np.ndarray:
        return self.read(key)[start:stop]
