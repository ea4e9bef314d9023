"""One safetensors file: its header read and checked, its tensors read in parts.

The format (github.com/huggingface/safetensors): eight bytes with the header's length, the header
as JSON (key -> dtype, shape, data_offsets; "__metadata__" -> strings), then the tensors' bytes
without gaps. Read with plain file reads: a memory map of the file would count as our memory.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from mogao_jax.errors import CheckpointError
from mogao_jax.porting.transforms import Shape

# What weights come in; the format's other dtypes have sizes too, but are none for weights.
FLOATS = {
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
}
_BITS = {
    **{"F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32},
    **{"BF16": 16, "F16": 16, "I16": 16, "U16": 16, "I8": 8, "U8": 8, "BOOL": 8},
    **{"F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4},
}
_EXPONENT = {2: {"bfloat16": 0x7F80, "float16": 0x7C00}, 4: {"float32": 0x7F800000}}
_LONGEST_HEADER = 100 * 2**20  # the format's own limit


class Entry(NamedTuple):
    """One tensor of a file; `start` counts from the file's beginning."""

    dtype: str  # the format's name, as "BF16"
    shape: Shape
    start: int
    num_bytes: int


class Header(NamedTuple):
    entries: dict[str, Entry]
    metadata: dict[str, str]


def read_header(path: pathlib.Path) -> Header:
    """What a file holds.

    Raises:
      CheckpointError: it is no safetensors file, or cut short, or its header contradicts itself.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as f:
            length = int.from_bytes(f.read(8), "little")
            if size < 8 or length > min(_LONGEST_HEADER, size - 8):
                raise _damaged(
                    path, f"its header should be {length:,} bytes long, the file is {size:,}"
                )
            text = f.read(length)
    except OSError as e:
        raise CheckpointError(f"{str(path)!r} cannot be read ({e.strerror or e}).") from None
    try:
        fields = json.loads(text.decode("utf-8"), object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as e:
        raise _damaged(path, f"its header is not readable: {e}") from None
    if not isinstance(fields, dict):
        raise _damaged(path, "its header is no table of tensors")
    metadata = fields.pop("__metadata__", {})
    entries = {key: _entry(path, key, field, 8 + length) for key, field in fields.items()}
    _check_offsets(path, entries, 8 + length, size)
    return Header(entries, metadata if isinstance(metadata, dict) else {})


def read_entry(path: pathlib.Path, key: str, entry: Entry, rows: slice | None = None) -> np.ndarray:
    """A tensor (or rows of it) in its own dtype.

    Raises:
      CheckpointError: it is not float32, bfloat16 or float16; or the file has changed meanwhile.
    """
    dtype = FLOATS.get(entry.dtype)
    if dtype is None:
        raise CheckpointError(
            f"{key} in {str(path)!r} is stored as {entry.dtype}; weights are read as "
            f"{', '.join(FLOATS)}. Save the checkpoint in one of these first."
        )
    shape, start, count = entry.shape, entry.start, math.prod(entry.shape)
    if rows is not None:
        row = math.prod(shape[1:])
        shape = (rows.stop - rows.start, *shape[1:])
        start, count = start + rows.start * row * dtype.itemsize, math.prod(shape)
    try:
        flat = np.fromfile(path, dtype, count, offset=start)
    except OSError as e:
        raise CheckpointError(f"{str(path)!r} cannot be read ({e.strerror or e}).") from None
    if flat.size != count:
        raise _damaged(path, f"{key} ends too early")
    return flat.reshape(shape)


def is_finite(x: np.ndarray) -> bool:
    """Whether no element is NaN or infinite: no exponent with all bits set."""
    mask = _EXPONENT.get(x.dtype.itemsize, {}).get(x.dtype.name)
    if mask is None:
        return bool(np.isfinite(x.astype(np.float64)).all())
    bits = np.ascontiguousarray(x).reshape(-1).view(f"uint{8 * x.dtype.itemsize}")
    step = 2**22  # in parts: masks of a whole embedding would take as much memory again
    return not any(
        ((bits[i : i + step] & mask) == mask).any() for i in range(0, max(1, bits.size), step)
    )


def _entry(path: pathlib.Path, key: str, field: Any, data_start: int) -> Entry:
    try:
        dtype, shape, (start, stop) = field["dtype"], tuple(field["shape"]), field["data_offsets"]
        numbers = (*shape, start, stop)
        ok = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers)
    except (TypeError, KeyError, ValueError):
        ok = False
    if not ok or not isinstance(dtype, str) or dtype not in _BITS:
        raise _damaged(path, f"the header's entry of {key} is not readable: {str(field)[:200]}")
    if (stop - start) * 8 != math.prod(shape) * _BITS[dtype]:
        raise _damaged(
            path, f"{key} of shape {list(shape)} in {dtype} does not take {stop - start:,} bytes"
        )
    return Entry(dtype, shape, data_start + start, stop - start)


def _check_offsets(path: pathlib.Path, entries: Mapping[str, Entry], start: int, size: int) -> None:
    """Tensors lie one after another, to the file's last byte."""
    for key, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].num_bytes)):
        if entry.start != start:
            raise _damaged(path, f"{key} does not begin where the tensor before it ends")
        start += entry.num_bytes
    if start > size:
        raise _damaged(path, f"cut short: {size:,} of {start:,} bytes are there")
    if start < size:
        raise _damaged(path, f"{size - start:,} bytes follow its last tensor")


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"it has {', '.join(twice)} twice")
    return found


def _damaged(path: pathlib.Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{str(path)!r} is damaged, or no safetensors file ({reason}). Download or copy it again."
    )
