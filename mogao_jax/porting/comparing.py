"""`mogao port diff A B`: which tensors two checkpoints share, and how far they are apart.

Models of ours are compared by slots, so that stacked and unstacked layers are the same thing; a
Qwen2 checkpoint beside one of ours is compared with its und branch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mogao_jax.porting.formats import qwen2
from mogao_jax.porting.from_hf import Place
from mogao_jax.porting.inspecting import open_any
from mogao_jax.porting.mogao_checkpoint import MogaoCheckpoint
from mogao_jax.porting.tables import compress, match
from mogao_jax.porting.tensor_sources import TensorSource, TransformedSource
from mogao_jax.porting.transforms import Shape


@dataclasses.dataclass(frozen=True)
class Difference:
    """Two tensors of one name and shape with other values.

    Attributes:
      largest: of the absolute differences.
      relative: norm of the difference over the norm of A's.
    """

    name: str
    largest: float
    relative: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What was found; names are sorted as in A.

    Attributes:
      same: number of tensors with equal values.
      only_a, only_b: names that the other one lacks.
      shapes: name -> both shapes, where they differ.
      dtypes: (dtype of A, dtype of B) -> number of tensors, where they differ.
      values: tensors with other values, the farthest first.
      note: what was compared, where that needs saying.
    """

    same: int
    only_a: list[str]
    only_b: list[str]
    shapes: dict[str, tuple[Shape, Shape]]
    dtypes: dict[tuple[str, str], int]
    values: list[Difference]
    note: str = ""

    @property
    def equal(self) -> bool:
        """Whether all values are equal (dtypes may differ)."""
        return not (self.only_a or self.only_b or self.shapes or self.values)


def compare(a: Place, b: Place) -> Comparison:
    """Compares two checkpoints, folders or files.

    Raises:
      CheckpointError: one of them cannot be read.
    """
    first, second, note = _alike(open_any(a), open_any(b))
    common = [name for name in first.shapes if name in second.shapes]
    shapes = {
        name: (tuple(first.shapes[name]), tuple(second.shapes[name]))
        for name in common
        if tuple(first.shapes[name]) != tuple(second.shapes[name])
    }
    dtypes: dict[tuple[str, str], int] = {}
    values, same = [], 0
    for name in common:
        pair = first.dtypes[name], second.dtypes[name]
        if pair[0] != pair[1]:
            dtypes[pair] = dtypes.get(pair, 0) + 1
        if name in shapes:
            continue
        difference = _difference(name, first.read(name), second.read(name))
        if difference is None:
            same += 1
        else:
            values.append(difference)
    for source in (first, second):
        if isinstance(source, MogaoCheckpoint):
            source.verify()
    return Comparison(
        same,
        [name for name in first.shapes if name not in second.shapes],
        [name for name in second.shapes if name not in first.shapes],
        shapes,
        dtypes,
        sorted(values, key=lambda d: -d.relative),
        note,
    )


def as_text(found: Comparison, *, listed: int = 20) -> str:
    """What was found, in lines; the farthest tensors one by one."""
    lines = [found.note] if found.note else []
    lines.append(f"{found.same:,} tensors have equal values")
    for (a, b), count in found.dtypes.items():
        lines.append(f"{count:,} tensors are {a} in A, {b} in B")
    for where, names in (("A", found.only_a), ("B", found.only_b)):
        if names:
            lines.append(
                f"{len(names):,} tensors are in {where} alone: {', '.join(compress(names))}"
            )
    for name, (shape_a, shape_b) in found.shapes.items():
        lines.append(f"{name}: shape {list(shape_a)} in A, {list(shape_b)} in B")
    if found.values:
        lines.append(f"{len(found.values):,} tensors have other values:")
    for d in found.values[:listed]:
        lines.append(f"  {d.name}: relative {d.relative:.3g}, largest difference {d.largest:.3g}")
    if len(found.values) > listed:
        lines.append(f"  and {len(found.values) - listed:,} more that are nearer")
    lines.append("equal" if found.equal else "different")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------- helpers


def _difference(name: str, a: np.ndarray, b: np.ndarray) -> Difference | None:
    if a.dtype == b.dtype and a.tobytes() == b.tobytes():
        return None
    a, b = a.astype(np.float64), b.astype(np.float64)
    if np.array_equal(a, b, equal_nan=True):
        return None
    difference = np.abs(a - b)
    norm = float(np.linalg.norm(a))
    relative = float(np.linalg.norm(difference)) / norm if norm else float("inf")
    return Difference(name, float(difference.max()), relative)


def _alike(a: TensorSource, b: TensorSource) -> tuple[TensorSource, TensorSource, str]:
    """Both by the same names; and a word on what is compared."""
    own = isinstance(a, MogaoCheckpoint), isinstance(b, MogaoCheckpoint)
    if own == (True, False) and _is_llm(b):
        return _Part(a), _as_own(b, a), "the und branch of A against the language model B"
    if own == (False, True) and _is_llm(a):
        return _as_own(a, b), _Part(b), "the language model A against the und branch of B"
    return a, b, ""


def _is_llm(source: TensorSource) -> bool:
    return "model.embed_tokens.weight" in source.shapes or "embed_tokens.weight" in source.shapes


class _Part:
    """What of a model of ours comes from the language model."""

    config: Mapping[str, Any] = {}

    def __init__(self, model: TensorSource):
        self._model = model
        self.place = model.place
        names = [name for name in model.shapes if qwen2.is_of_llm(name)]
        self.shapes = {name: model.shapes[name] for name in names}
        self.dtypes = {name: model.dtypes[name] for name in names}

    def read(self, key: str) -> np.ndarray:
        return self._model.read(key)

    def read_rows(self, key: str, start: int, stop: int) -> np.ndarray:
        return self._model.read_rows(key, start, stop)


def _as_own(llm: TensorSource, model: TensorSource) -> TensorSource:
    """A language model by our names, shaped as `model` has them."""
    assert isinstance(model, MogaoCheckpoint)
    source = qwen2.of_the_model_alone(llm)
    wanted = _Part(model).shapes
    table = qwen2.table(model.model_config.model)
    qwen2.check_tied_head(source, model.model_config.model)
    plan = match(table, source.shapes, wanted, place=repr(llm.place))
    return TransformedSource(source, plan, wanted)
