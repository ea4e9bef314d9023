"""`mogao port inspect` and `mogao port diff`: what a checkpoint holds, and how two differ."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from mogao_jax.checkpoints.fingerprint import RunningFingerprint
from mogao_jax.key_tables import Shape, compress, match
from mogao_jax.models.modules import part_of
from mogao_jax.porting.formats import qwen2
from mogao_jax.porting.from_hf import open_vae
from mogao_jax.porting.mogao_checkpoint import MogaoCheckpoint, is_own
from mogao_jax.porting.tensor_sources import Place, TensorSource, transformed, unchanged
from mogao_jax.safetensors_files import DTYPES


def open_any(place: Place) -> TensorSource:
    """A model of ours (checkpoint, exported file, folder), or others' safetensors."""
    return MogaoCheckpoint(place) if is_own(place) else open_vae(place, allow_non_finite=True)


# ---------------------------------------------------------------------------------------- inspect


@dataclasses.dataclass(frozen=True)
class Line:
    """Tensors of one name (but for the layer), shape and dtype."""

    name: str
    count: int
    shape: Shape
    dtype: str

    @property
    def parameters(self) -> int:
        return self.count * math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What a checkpoint or a folder holds."""

    title: str  # what kind of thing it is, in words
    parts: dict[str, list[Line]]
    fingerprint: str  # 16 hexadecimal digits that say whether two are alike, value by value
    facts: dict[str, str]  # what else is known of it, name -> value
    fingerprint_is: str = "computed"  # from the values, or saved with them

    @property
    def parameters(self) -> int:
        return sum(line.parameters for lines in self.parts.values() for line in lines)

    def as_text(self) -> str:
        """The facts and a table of the tensors."""
        rows: list[tuple[str, ...]] = [("part", "tensor", "number", "shape", "dtype", "parameters")]
        for part, lines in self.parts.items():
            for x in lines:
                shape = " x ".join(map(str, x.shape)) or "1"
                rows.append((part, x.name, f"{x.count:,}", shape, x.dtype, f"{x.parameters:,}"))
            rows.append((part, "all", "", "", "", f"{sum(x.parameters for x in lines):,}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        line = "  ".join(f"{{:{side}{n}}}" for side, n in zip("<<><<>", widths, strict=True))
        table = [line.format(*row) for row in rows]
        facts = [f"{name:<12} {value}" for name, value in self.facts.items()]
        fingerprint = f"fingerprint {self.fingerprint} ({self.fingerprint_is})"
        last = f"{self.parameters:,} parameters, {fingerprint}"
        return "\n".join([self.title, *facts, "", *table, "", last])

    def as_json(self) -> str:
        """The same as JSON."""
        return json.dumps({**dataclasses.asdict(self), "parameters": self.parameters}, indent=2)


def inspect(place: Place, *, verify: bool = False) -> Inspection:
    """Lists the tensors, with their fingerprint: a checkpoint's as saved, else computed.

    With `verify`, a checkpoint's arrays are read and compared with their saved checksums. Raises
    CheckpointError for what cannot be read, or is found to be damaged.
    """
    source = open_any(place)
    lines = _lines_by_part(source)
    if not isinstance(source, MogaoCheckpoint):
        kind = (source.config.get("architectures") or [source.config.get("_class_name", "")])[0]
        title = f"safetensors of {kind}" if kind else "safetensors"
        return Inspection(title, lines, _fingerprint(source), {})
    config = source.model_config
    facts = {
        "name": config.name,
        "step": f"{source.step:,}",
        "weights": source.weights,
        "vae": config.vae.weights,
        "vit": config.vit.weights,
        "tokenizer": config.tokenizer.path or config.tokenizer.kind,
        **_origins(source.porting),
    }
    if not source.fingerprint:
        return Inspection("a Mogao model", lines, _fingerprint(source), facts)
    if verify:
        source.verify(all_of_it=True)
    how = "saved, and checked" if verify else "saved, not checked"
    return Inspection("a Mogao checkpoint", lines, _digest(source.fingerprint), facts, how)


def _lines_by_part(source: TensorSource) -> dict[str, list[Line]]:
    own = isinstance(source, MogaoCheckpoint)
    groups: defaultdict[tuple[str, str, Shape, str], list[str]] = defaultdict(list)
    for name, shape in source.shapes.items():
        part = part_of(name.split(".")) if own else _their_part(name)
        key = re.sub(r"(?<=\.)[0-9]+(?=\.)", "#", name, count=1)
        groups[part, key, shape, source.dtypes[name]].append(name)
    lines: defaultdict[str, list[Line]] = defaultdict(list)
    for (part, _, shape, dtype), names in groups.items():
        lines[part].append(Line(compress(names)[0], len(names), shape, dtype))
    return dict(lines)


def _their_part(name: str) -> str:
    pieces = name.split(".")[:-1]
    stop = next((i for i, piece in enumerate(pieces) if piece.isdigit()), 2)
    return ".".join(pieces[:stop]) or name


def _origins(porting: Mapping[str, Any]) -> dict[str, str]:
    facts = {}
    for part in ("llm", "vit", "vae"):
        if record := porting.get(part):
            dtypes = ", ".join(f"{n} in {d}" for d, n in record["dtypes"].items())
            facts[f"from {part}"] = f"{record['place']} ({dtypes})"
    if porting.get("allow_missing"):
        facts["missing"] = f"allowed: {', '.join(porting['allow_missing'])}; " + (
            f"initialised: {', '.join(compress(porting['missing']))}"
        )
    return facts


def _fingerprint(source: TensorSource) -> str:
    sums = {}
    for name in source.shapes:
        total = RunningFingerprint()
        if source.dtypes[name] in DTYPES:
            total.add(source.read(name), 0)
        sums[name] = f"{source.dtypes[name]} {list(source.shapes[name])} {total.hexdigest()}"
    return _digest(sums)


def _digest(sums: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(dict(sums), sort_keys=True).encode()).hexdigest()[:16]


# ------------------------------------------------------------------------------------------- diff


@dataclasses.dataclass(frozen=True)
class Difference:
    """Two tensors of one name and shape with other values."""

    name: str
    largest: float  # of the absolute differences
    relative: float  # norm of the difference over the norm of A's


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How two checkpoints differ; names are sorted as in A."""

    same: int  # number of tensors with equal values
    only_a: list[str]  # names that B lacks
    only_b: list[str]
    shapes: dict[str, tuple[Shape, Shape]]  # name -> both, where they differ
    dtypes: Mapping[tuple[str, str], int]  # (dtype of A, dtype of B) -> number of tensors
    values: list[Difference]  # the farthest first
    note: str = ""  # what was compared, where that needs saying

    @property
    def equal(self) -> bool:
        """Whether all values are equal (dtypes may differ)."""
        return not (self.only_a or self.only_b or self.shapes or self.values)

    def as_text(self, *, listed: int = 20) -> str:
        """What was found, in lines; the farthest tensors one by one."""
        lines = [self.note] * bool(self.note) + [f"{self.same:,} tensors have equal values"]
        for (a, b), count in self.dtypes.items():
            if a != b:
                lines.append(f"{count:,} tensors are {a} in A, {b} in B")
        for where, names in (("A", self.only_a), ("B", self.only_b)):
            if names:
                keys = ", ".join(compress(names))
                lines.append(f"{len(names):,} tensors are in {where} alone: {keys}")
        for name, (first, second) in self.shapes.items():
            lines.append(f"{name}: shape {list(first)} in A, {list(second)} in B")
        if self.values:
            lines.append(f"{len(self.values):,} tensors have other values:")
        for name, largest, relative in map(dataclasses.astuple, self.values[:listed]):
            lines.append(f"  {name}: relative {relative:.3g}, largest difference {largest:.3g}")
        if len(self.values) > listed:
            lines.append(f"  and {len(self.values) - listed:,} more that are nearer")
        return "\n".join([*lines, "equal" if self.equal else "different"])


def compare(a: Place, b: Place) -> Comparison:
    """Compares two checkpoints, folders or files; raises CheckpointError if one cannot be read.

    Models of ours are compared by names that do not depend on whether layers are stacked; a Qwen2
    checkpoint beside one of ours is compared with its und branch.
    """
    first, second, note = _alike(open_any(a), open_any(b))
    common = [name for name in first.shapes if name in second.shapes]
    shapes = {name: (first.shapes[name], second.shapes[name]) for name in common}
    wrong = {name: both for name, both in shapes.items() if both[0] != both[1]}
    alike = [name for name in common if name not in wrong]
    values = [_difference(name, first.read(name), second.read(name)) for name in alike]
    for source in (first, second):
        if isinstance(source, MogaoCheckpoint):
            source.verify()
    return Comparison(
        same=values.count(None),
        only_a=[name for name in first.shapes if name not in second.shapes],
        only_b=[name for name in second.shapes if name not in first.shapes],
        shapes=wrong,
        dtypes=Counter((first.dtypes[name], second.dtypes[name]) for name in common),
        values=sorted(filter(None, values), key=lambda d: -d.relative),
        note=note,
    )


def _difference(name: str, a: np.ndarray, b: np.ndarray) -> Difference | None:
    if a.dtype == b.dtype and a.tobytes() == b.tobytes():
        return None
    a, b = a.astype(np.float64), b.astype(np.float64)
    if np.array_equal(a, b, equal_nan=True):
        return None
    difference, norm = np.abs(a - b), float(np.linalg.norm(a))
    relative = float(np.linalg.norm(difference)) / norm if norm else float("inf")
    return Difference(name, float(difference.max()), relative)


def _alike(a: TensorSource, b: TensorSource) -> tuple[TensorSource, TensorSource, str]:
    """Both by the same names; and a word on what is compared."""
    if isinstance(a, MogaoCheckpoint) and _is_llm(b):
        return *_branch_and_llm(a, b), "the und branch of A against the language model B"
    if isinstance(b, MogaoCheckpoint) and _is_llm(a):
        branch, llm = _branch_and_llm(b, a)
        return llm, branch, "the language model A against the und branch of B"
    return a, b, ""


def _is_llm(source: TensorSource) -> bool:
    return "model.embed_tokens.weight" in source.shapes or "embed_tokens.weight" in source.shapes


def _branch_and_llm(model: MogaoCheckpoint, llm: TensorSource) -> tuple[TensorSource, TensorSource]:
    """The und branch of a model, and a language model by our names, shaped like it."""
    pairs = unchanged(filter(qwen2.is_of_llm, model.shapes))
    branch = transformed(model, pairs, model.shapes)
    source = qwen2.of_the_model_alone(llm)
    qwen2.check_tied_head(source, model.model_config.model)
    table = qwen2.table(model.model_config.model)
    plan = match(table, source.shapes, branch.shapes, place=repr(llm.place))
    return branch, transformed(source, plan.pairs, branch.shapes)
