"""GGUF, as far as a llama-shaped LLM needs it: versions 2 and 3, F32, F16, Q4_0, Q4_1, Q8_0.

A GGUF file is a header, key-value metadata, a table of tensors and their data (llama.cpp's
`docs/gguf.md`). Quantised tensors come in blocks of 32 numbers of a row:

    Q4_0   float16 d,            16 bytes: number = d * (nibble - 8)
    Q4_1   float16 d, float16 m, 16 bytes: number = d * nibble + m
    Q8_0   float16 d,            32 int8:  number = d * int8

where the low nibbles are a block's first 16 numbers and the high ones its last 16. Numbers are
computed in float32, which holds each product of a float16 and a small integer exactly.

The `gguf` package reads the same, but not from strangers: release 0.19 loops without end, and
fills the memory, on 45 bytes that claim an array of 2^60 numbers. It also brings requests and
PyYAML. A test compares the two where it is installed.
"""

from __future__ import annotations

import math
import mmap
import pathlib
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mogao_jax.errors import CheckpointError
from mogao_jax.key_tables import compress

VERSIONS = (2, 3)
ALIGNMENT = 32  # of the data, where "general.alignment" does not say otherwise
BLOCK = 32  # numbers of a quantised block
# Bounds of what a sound file of an LLM holds; a damaged one may claim anything.
MAX_TENSORS = MAX_FIELDS = 1 << 16
MAX_STRING = 1 << 24
MAX_DIMS = 4

# Value types of the metadata by number; 8 is a string, 9 an array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q",
            12: "d"}  # fmt: skip
_STRING, _ARRAY = 8, 9


class Encoding(NamedTuple):
    """How numbers of a tensor are stored: blocks of `numbers` numbers in `size` bytes."""

    name: str
    numbers: int
    size: int


ENCODINGS = {
    0: Encoding("F32", 1, 4),
    1: Encoding("F16", 1, 2),
    2: Encoding("Q4_0", BLOCK, 2 + BLOCK // 2),
    3: Encoding("Q4_1", BLOCK, 4 + BLOCK // 2),
    8: Encoding("Q8_0", BLOCK, 2 + BLOCK),
}


class Entry(NamedTuple):
    """A tensor of the table: its shape as numpy has it, its encoding, its bytes in the file."""

    shape: tuple[int, ...]
    encoding: Encoding
    start: int
    size: int


class GgufFile:
    """An open file: `metadata` and `entries` are read, tensors are when they are asked for.

    A value of the metadata is an int, float, bool, str, or a list of these.
    """

    def __init__(self, path: str | pathlib.Path):
        """Reads header, metadata and table.

        Raises CheckpointError: missing, another format or version, damaged, cut short, or with a
        tensor of an encoding that is not read.
        """
        self.path = pathlib.Path(path)
        if not self.path.is_file():
            raise CheckpointError(f"there is no GGUF file at {self.path}; check the path.")
        try:
            with self.path.open("rb") as f:
                self._data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as e:  # ValueError: an empty file
            raise CheckpointError(f"{self.path} cannot be read: {e}.") from None
        cursor = _Cursor(self._data, self.path)
        if cursor.take(4) != b"GGUF":
            raise CheckpointError(f"{self.path} is not a GGUF file: it does not begin with 'GGUF'.")
        version = cursor.scalar("I")
        if version not in VERSIONS:
            raise CheckpointError(
                f"{self.path} is GGUF of version {version}; versions 2 and 3 (little-endian) are "
                "read. Convert it with a current llama.cpp."
            )
        num_tensors = cursor.count(MAX_TENSORS, "tensors")
        num_fields = cursor.count(MAX_FIELDS, "metadata fields")
        self.metadata: Mapping[str, Any] = {
            cursor.string(): cursor.value() for _ in range(num_fields)
        }
        self.entries: Mapping[str, Entry] = self._table(cursor, num_tensors)

    def _table(self, cursor: _Cursor, num_tensors: int) -> dict[str, Entry]:
        rows = []
        for _ in range(num_tensors):
            name = cursor.string()
            dims = [cursor.scalar("Q") for _ in range(cursor.count(MAX_DIMS, "axes", "I"))]
            rows.append((name, tuple(reversed(dims)), cursor.scalar("I"), cursor.scalar("Q")))
        alignment = self.metadata.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment % 8:
            raise cursor.damaged(f"general.alignment is {alignment!r}")
        begin = -(-cursor.position // alignment) * alignment
        entries: dict[str, Entry] = {}
        problems = []
        for name, shape, kind, offset in rows:
            entry = _entry(name, shape, kind, begin + offset)
            if name in entries:
                problems.append(f"{name} stands there twice")
            elif isinstance(entry, str):
                problems.append(entry)
            elif entry.start + entry.size > len(self._data):
                problems.append(f"{name} ends behind the end of the file, which is cut short")
            else:
                entries[name] = entry
        if problems:
            raise CheckpointError(
                f"{self.path}: {len(problems)} tensor(s) cannot be read: "
                f"{'; '.join(compress(problems))}. Copy or download the file again, or take one of "
                "another quantisation."
            )
        return entries

    def tensor(self, name: str) -> np.ndarray:
        """A tensor as float32, in fresh memory; raises CheckpointError if it is not there."""
        if name not in self.entries:
            raise CheckpointError(f"{self.path} holds no tensor {name!r}.")
        entry = self.entries[name]
        raw = np.frombuffer(self._data[entry.start : entry.start + entry.size], np.uint8)
        return dequantise(raw, entry.encoding).reshape(entry.shape)

    def __enter__(self) -> GgufFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._data.close()


def dequantise(raw: np.ndarray, encoding: Encoding) -> np.ndarray:
    """Numbers of whole blocks: uint8[blocks * size] -> float32[blocks * numbers]."""
    if encoding.numbers == 1:
        return raw.view({"F32": "<f4", "F16": "<f2"}[encoding.name]).astype(np.float32)
    blocks = raw.reshape(-1, encoding.size)

    def half(first: int) -> np.ndarray:
        return np.ascontiguousarray(blocks[:, first : first + 2]).view("<f2").astype(np.float32)

    scale = half(0)
    if encoding.name == "Q8_0":
        return (scale * np.ascontiguousarray(blocks[:, 2:]).view(np.int8)).reshape(-1)
    packed = blocks[:, -BLOCK // 2 :]
    nibbles = np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32)
    if encoding.name == "Q4_0":
        return (scale * (nibbles - 8)).reshape(-1)
    return (scale * nibbles + half(2)).reshape(-1)


def _entry(name: str, shape: tuple[int, ...], kind: int, start: int) -> Entry | str:
    """A tensor of the table, or why it cannot be read."""
    if kind not in ENCODINGS:
        known = ", ".join(e.name for e in ENCODINGS.values())
        return f"{name} is of ggml type {kind} (read are {known})"
    encoding = ENCODINGS[kind]
    if not shape or shape[-1] % encoding.numbers:
        return f"{name} has rows of shape {list(shape)}, not whole blocks"
    return Entry(shape, encoding, start, math.prod(shape) // encoding.numbers * encoding.size)


class _Cursor:
    """Reads one thing after another, and never behind the end."""

    def __init__(self, data: mmap.mmap, path: pathlib.Path):
        self.position = 0
        self._data, self._path = data, path

    def damaged(self, reason: str) -> CheckpointError:
        return CheckpointError(
            f"{self._path} is damaged or cut short: {reason}. Download or copy it again."
        )

    def take(self, size: int) -> bytes:
        taken = self._data[self.position : self.position + size]
        if len(taken) < size:
            raise self.damaged("it ends inside its header")
        self.position += size
        return taken

    def scalar(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def count(self, limit: int, what: str, code: str = "Q") -> int:
        number = self.scalar(code)
        if number > limit:
            raise self.damaged(f"it claims to hold {number} {what} (at most {limit} are read)")
        return number

    def string(self) -> str:
        raw = self.take(self.count(MAX_STRING, "bytes in one string"))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as e:
            raise self.damaged(f"a string is not UTF-8 ({e})") from None

    def value(self, kind: int | None = None) -> Any:
        kind = self.scalar("I") if kind is None else kind
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            raise self.damaged(f"unknown metadata type {kind}")
        of, length = self.scalar("I"), self.scalar("Q")
        if length > len(self._data) or of == _ARRAY:
            raise self.damaged(f"an array of {length} entries of type {of}")
        if of in _SCALARS:
            code = f"<{length}{_SCALARS[of]}"
            return list(struct.unpack(code, self.take(struct.calcsize(code))))
        return [self.value(of) for _ in range(length)]
