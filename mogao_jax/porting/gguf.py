"""GGUF, just enough to read a llama-shaped LLM: versions 2 and 3, F32, F16, Q4_0, Q4_1, Q8_0.

A GGUF file is a header, key-value metadata, a table of tensors and their data (llama.cpp's
`docs/gguf.md`). Quantised tensors come in blocks of 32 numbers of a row:

    Q4_0   float16 d,            16 bytes: number = d * (nibble - 8)
    Q4_1   float16 d, float16 m, 16 bytes: number = d * nibble + m
    Q8_0   float16 d,            32 int8:  number = d * int8

where the low nibbles are a block's first 16 numbers and the high ones its last 16. Numbers are
computed in float32, which holds each product of a float16 and a small integer exactly.
"""

from __future__ import annotations

import dataclasses
import mmap
import pathlib
import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from mogao_jax.errors import CheckpointError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32  # of the data, where "general.alignment" does not say otherwise
BLOCK = 32  # numbers of a quantised block
# Bounds of what a sound file of an LLM holds; a damaged one may claim anything.
MAX_TENSORS = 1 << 16
MAX_FIELDS = 1 << 16
MAX_STRING = 1 << 24
MAX_DIMS = 4

# Value types of the metadata by number; 8 is a string, 9 an array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q",
            12: "d"}  # fmt: skip
_STRING, _ARRAY = 8, 9


@dataclasses.dataclass(frozen=True)
class Encoding:
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


@dataclasses.dataclass(frozen=True)
class Entry:
    """A tensor of the table: its shape as numpy has it, its encoding, its bytes in the file."""

    shape: tuple[int, ...]
    encoding: Encoding
    start: int
    size: int


class GgufFile:
    """An open file: `metadata` and `entries` are read, tensors are when they are asked for.

    Attributes:
      metadata: key -> int, float, bool, str, or a list of these.
      entries: name -> Entry.
    """

    def __init__(self, path: str | pathlib.Path):
        """Reads header, metadata and table.

        Raises:
          CheckpointError: missing, another format or version, damaged, cut short, or with a
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
        if cursor.take(4) != MAGIC:
            raise CheckpointError(f"{self.path} is not a GGUF file: it does not begin with 'GGUF'.")
        version = cursor.scalar("I")
        if version not in VERSIONS:
            raise CheckpointError(
                f"{self.path} is GGUF of version {version}; versions 2 and 3 (little-endian) are "
                "read. Convert it with a current llama.cpp."
            )
        num_tensors = cursor.count(MAX_TENSORS, "tensors")
        num_fields = cursor.count(MAX_FIELDS, "metadata fields")
        self.metadata: Mapping[str, Any] = MappingProxyType(
            {cursor.string(): cursor.value() for _ in range(num_fields)}
        )
        self.entries: Mapping[str, Entry] = MappingProxyType(self._table(cursor, num_tensors))

    def _table(self, cursor: _Cursor, num_tensors: int) -> dict[str, Entry]:
        rows = []
        for _ in range(num_tensors):
            name = cursor.string()
            dims = [cursor.scalar("Q") for _ in range(cursor.count(MAX_DIMS, "axes", "I"))]
            rows.append((name, tuple(reversed(dims)), cursor.scalar("I"), cursor.scalar("Q")))
        alignment = self.metadata.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment % 8:
            raise CheckpointError(f"{self.path}: general.alignment is {alignment!r}: damaged.")
        begin = -(-cursor.position // alignment) * alignment
        entries: dict[str, Entry] = {}
        problems = []
        for name, shape, kind, offset in rows:
            if name in entries:
                problems.append(f"{name} stands there twice")
                continue
            if kind not in ENCODINGS:
                known = ", ".join(e.name for e in ENCODINGS.values())
                problems.append(f"{name} is of ggml type {kind} (read are {known})")
                continue
            encoding, numbers = ENCODINGS[kind], 1
            for length in shape:
                numbers *= length
            if not shape or shape[-1] % encoding.numbers:
                problems.append(f"{name} has rows of shape {list(shape)}, not whole blocks")
                continue
            size = numbers // encoding.numbers * encoding.size
            entry = entries[name] = Entry(shape, encoding, begin + offset, size)
            if entry.start + size > len(self._data):
                problems.append(f"{name} ends behind the end of the file, which is cut short")
        if problems:
            rest = f"; and {len(problems) - 12} more" if len(problems) > 12 else ""
            raise CheckpointError(
                f"{self.path}: {len(problems)} tensor(s) cannot be read: "
                + "; ".join(problems[:12])
                + rest
                + ". Copy or download the file again, or take one of another quantisation."
            )
        return entries

    def tensor(self, name: str) -> np.ndarray:
        """A tensor as float32 in its own shape; fresh memory.

        Raises:
          CheckpointError: there is no such tensor.
        """
        if name not in self.entries:
            raise CheckpointError(f"{self.path} holds no tensor {name!r}.")
        entry = self.entries[name]
        raw = np.frombuffer(self._data[entry.start : entry.start + entry.size], np.uint8)
        return dequantise(raw, entry.encoding).reshape(entry.shape)

    def close(self) -> None:
        self._data.close()

    def __enter__(self) -> GgufFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def dequantise(raw: np.ndarray, encoding: Encoding) -> np.ndarray:
    """Numbers of whole blocks: uint8[blocks * size] -> float32[blocks * numbers]."""
    if encoding.name == "F32":
        return raw.view("<f4").astype(np.float32)
    if encoding.name == "F16":
        return raw.view("<f2").astype(np.float32)
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


class _Cursor:
    """Reads one thing after another, and never behind the end."""

    def __init__(self, data: mmap.mmap, path: pathlib.Path):
        self.position = 0
        self._data, self._path = data, path

    def take(self, size: int) -> bytes:
        taken = self._data[self.position : self.position + size]
        if len(taken) < size:
            raise CheckpointError(
                f"{self._path} ends inside its header: it is damaged or cut short; download or "
                "copy it again."
            )
        self.position += size
        return taken

    def scalar(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def count(self, limit: int, what: str, code: str = "Q") -> int:
        number = self.scalar(code)
        if number > limit:
            raise CheckpointError(
                f"{self._path} claims to hold {number} {what} (at most {limit} are read): it is "
                "damaged."
            )
        return number

    def string(self) -> str:
        raw = self.take(self.count(MAX_STRING, "bytes in one string"))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as e:
            raise CheckpointError(f"{self._path}: a string is not UTF-8 ({e}): damaged.") from None

    def value(self, kind: int | None = None) -> Any:
        kind = self.scalar("I") if kind is None else kind
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            raise CheckpointError(f"{self._path}: unknown metadata type {kind}: damaged.")
        of, length = self.scalar("I"), self.scalar("Q")
        if length > len(self._data) or of == _ARRAY:
            raise CheckpointError(
                f"{self._path} holds an array of {length} entries of type {of}: damaged."
            )
        if of in _SCALARS:
            code = f"<{length}{_SCALARS[of]}"
            return list(struct.unpack(code, self.take(struct.calcsize(code))))
        return [self.value(of) for _ in range(length)]
