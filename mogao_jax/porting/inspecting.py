"""`mogao port inspect`: what a checkpoint or a folder of safetensors holds."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping

from mogao_jax.checkpoints.fingerprint import RunningFingerprint
from mogao_jax.models.modules import part_of
from mogao_jax.porting.from_hf import Place, open_vae
from mogao_jax.porting.mogao_checkpoint import MogaoCheckpoint, is_own
from mogao_jax.porting.safetensors_file import FLOATS
from mogao_jax.porting.tables import compress
from mogao_jax.porting.tensor_sources import TensorSource
from mogao_jax.porting.transforms import Shape


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
    """What there is.

    Attributes:
      title: what kind of thing it is, in words.
      parts: part -> its lines.
      fingerprint: 16 hexadecimal digits that say whether two are alike, value by value.
      facts: what else is known of it, name -> value.
      fingerprint_is: whether it was computed from the values, or is the one saved with them.
    """

    title: str
    parts: dict[str, list[Line]]
    fingerprint: str
    facts: dict[str, str]
    fingerprint_is: str = "computed"

    @property
    def parameters(self) -> int:
        return sum(line.parameters for lines in self.parts.values() for line in lines)


def open_any(place: Place) -> TensorSource:
    """A model of ours (checkpoint, exported file, folder), or others' safetensors."""
    return MogaoCheckpoint(place) if is_own(place) else open_vae(place, allow_non_finite=True)


def inspect(place: Place, *, verify: bool = False) -> Inspection:
    """Lists the tensors, with their fingerprint: a checkpoint's as saved, else computed.

    Args:
      verify: read a checkpoint's arrays and hold them against their saved checksums.
    Raises:
      CheckpointError: nothing there that can be read; or, with `verify`, it is damaged.
    """
    source = open_any(place)
    part_of = _own_part if isinstance(source, MogaoCheckpoint) else _their_part
    parts: dict[str, list[str]] = {}
    for name in source.shapes:
        parts.setdefault(part_of(name), []).append(name)
    lines = {part: _lines(source, names) for part, names in parts.items()}
    if not isinstance(source, MogaoCheckpoint):
        kind = source.config.get("architectures") or [source.config.get("_class_name", "")]
        title = f"safetensors of {kind[0]}" if kind[0] else "safetensors"
        return Inspection(title, lines, _fingerprint(source), {})
    facts = {
        "name": source.model_config.name,
        "step": f"{source.step:,}",
        "weights": source.weights,
        "vae": source.model_config.vae.weights,
        "vit": source.model_config.vit.weights,
        "tokenizer": source.model_config.tokenizer.path or source.model_config.tokenizer.kind,
        **_origins(source.porting),
    }
    saved = source.fingerprint
    if not saved:
        return Inspection("a Mogao model", lines, _fingerprint(source), facts)
    if verify:
        source.verify(all_of_it=True)
    how = "saved, and checked" if verify else "saved, not checked"
    return Inspection("a Mogao checkpoint", lines, _digest(saved), facts, how)


def as_text(found: Inspection) -> str:
    """The table."""
    rows: list[tuple[str, ...]] = [("part", "tensor", "number", "shape", "dtype", "parameters")]
    for part, lines in found.parts.items():
        for line in lines:
            shape = " x ".join(map(str, line.shape)) or "1"
            rows.append(
                (part, line.name, f"{line.count:,}", shape, line.dtype, f"{line.parameters:,}")
            )
        rows.append((part, "all", "", "", "", f"{sum(x.parameters for x in lines):,}"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    right = {2, 5}
    text = [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    facts = [f"{name:<12} {value}" for name, value in found.facts.items()]
    return "\n".join(
        [
            found.title,
            *facts,
            "",
            *text,
            "",
            f"{found.parameters:,} parameters, fingerprint {found.fingerprint} "
            f"({found.fingerprint_is})",
        ]
    )


def as_json(found: Inspection) -> str:
    """The same as JSON."""
    return json.dumps({**dataclasses.asdict(found), "parameters": found.parameters}, indent=2)


# ---------------------------------------------------------------------------------------- helpers


def _lines(source: TensorSource, names: Iterable[str]) -> list[Line]:
    groups: dict[tuple[str, Shape, str], list[str]] = {}
    for name in names:
        key = re.sub(r"(?<=\.)[0-9]+(?=\.)", "#", name, count=1)
        groups.setdefault((key, tuple(source.shapes[name]), source.dtypes[name]), []).append(name)
    return [
        Line(compress(found)[0], len(found), shape, dtype)
        for (_, shape, dtype), found in groups.items()
    ]


def _own_part(name: str) -> str:
    return part_of(name.split("."))


def _their_part(name: str) -> str:
    pieces = name.split(".")[:-1]
    stop = next((i for i, piece in enumerate(pieces) if piece.isdigit()), 2)
    return ".".join(pieces[:stop]) or name


def _origins(porting: Mapping) -> dict[str, str]:
    facts = {}
    for part in ("llm", "vit", "vae"):
        record = porting.get(part)
        if record:
            dtypes = ", ".join(f"{n} in {d}" for d, n in record["dtypes"].items())
            facts[f"from {part}"] = f"{record['place']} ({dtypes})"
    if porting.get("allow_missing"):
        facts["missing"] = f"allowed: {', '.join(porting['allow_missing'])}; " + (
            f"initialised: {', '.join(compress(porting['missing']))}"
        )
    return facts


def _fingerprint(source: TensorSource) -> str:
    floats = {dtype.name for dtype in FLOATS.values()}
    sums = {}
    for name in source.shapes:
        total = RunningFingerprint()
        if source.dtypes[name] in floats:
            total.add(source.read(name), 0)
        sums[name] = f"{source.dtypes[name]} {list(source.shapes[name])} {total.hexdigest()}"
    return _digest(sums)


def _digest(sums: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(dict(sums), sort_keys=True).encode()).hexdigest()[:16]
