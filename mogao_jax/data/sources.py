"""Where documents come from: random access by index, nothing but an index held in memory.

A source is anything with `len(source)` and `source[index] -> Document`; reading a record may
raise DocumentError, opening a source raises DataError. Every source is split into training and
validation, in one of two ways:

- by its own: files named `*.validation.jsonl`, the shapes world's split, a tfds split
  `validation`;
- otherwise by index: about one record in HELD_OUT_EVERY is held out.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import pathlib
from collections import Counter
from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np

from mogao_jax.config.schema import ImageConfig, SourceConfig, field
from mogao_jax.errors import DataError, DocumentError
from mogao_jax.paths import expanded
from mogao_jax.registry import SOURCES, Contents, SourceKind
from mogao_jax.sequence.document import Document, Image, Text, from_json

Split = Literal["train", "validation"]
HELD_OUT_EVERY = 20
MAX_RECORD_BYTES = 256 * 2**20
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")

logger = logging.getLogger(__name__)


class Source(Protocol):
    """Documents by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Document: ...


def open_source(
    name: str, config: SourceConfig, *, seed: int, split: Split, images: ImageConfig
) -> Source:
    """The source that a config asks for.

    Args:
      name: its name in the config, for messages.
      seed: of procedural sources; files do not depend on it.
      images: procedural sources draw no image that these limits would shrink.
    Raises:
      DataError: it is missing, empty or unreadable.
    """
    try:
        kind = SOURCES.get(config.kind)
        return kind.open(config, seed=seed, split=split, images=images)
    except DataError as e:
        raise DataError(f"data source {name!r}: {e}") from None


def held_out(length: int) -> np.ndarray:
    """bool[length]: which records of a source without a split of its own are for validation.

    Decided by a hash of the index, so that records in any order are sampled evenly. A source of
    two records or more holds out at least one.
    """
    x = np.arange(length, dtype=np.uint64) + np.uint64(1)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)  # the finaliser of splitmix64
    out = x % np.uint64(HELD_OUT_EVERY) == 0
    if length > 1 and not out.any():
        out[np.argmin(x)] = True
    return out


def select_split(length: int, split: Split, own_split: bool) -> np.ndarray | None:
    """Indices of a split's records; None for all of them (the source has splits of its own)."""
    if own_split:
        return None
    return np.flatnonzero(held_out(length) == (split == "validation"))


# ---------------------------------------------------------------------------------- documents


class DocumentsSource:
    """Documents on disk, in any of these forms:

    - a JSONL file, one document per line (see sequence/document.py for the JSON form);
    - a folder with such files;
    - a folder with one document per `.json` file;
    - a folder of images, each with its caption in a `.txt` file of the same name: the user
      asks with the caption, the assistant draws the image.

    Folders are searched to any depth, in order of names. Of JSONL files those that end in
    `.validation.jsonl` are the validation split; a file `x.jsonl` given alone has
    `x.validation.jsonl` beside it, if that exists.
    """

    def __init__(self, path: str | pathlib.Path, split: Split = "train"):
        """Raises DataError if there is nothing at `path`, or no document in it."""
        if not str(path):
            raise DataError("its path is empty; give a JSONL file or a folder.")
        root = expanded(path)
        try:
            self._parts, own_split = _scan(root, split)
        except OSError as e:
            raise DataError(f"{str(root)!r} cannot be read: {e.strerror or e}.") from None
        self._ends = np.cumsum([len(part) for part in self._parts]).astype(np.int64)
        total = int(self._ends[-1]) if self._parts else 0
        if not total and split == "train":
            raise DataError(
                f"{str(root)!r} holds no documents (found: {_found(root)}): a .jsonl file with one "
                "document per line, .json files, or images with captions in .txt files of the same "
                "name."
            )
        self._selected = select_split(total, split, own_split)
        self._length = total if self._selected is None else len(self._selected)

    def __len__(self) -> int:
        return self._length

    def __deepcopy__(self, memo: dict) -> DocumentsSource:
        return self  # immutable; workers' datasets are copies that may share it

    def __getitem__(self, index: int) -> Document:
        """Raises DocumentError, naming the file and line, if the record is broken."""
        if not 0 <= index < self._length:
            raise IndexError(index)
        record = index if self._selected is None else int(self._selected[index])
        part = int(np.searchsorted(self._ends, record, side="right"))
        return self._parts[part].read(record - (int(self._ends[part - 1]) if part else 0))


def _found(root: pathlib.Path) -> str:
    """What a place without documents holds: "30 .png, 2 .csv"."""
    if root.is_file():
        return "no line"
    files = (p for p in root.rglob("*") if p.is_file())
    suffixes = Counter(p.suffix.lower() or "files without an ending" for p in files)
    return ", ".join(f"{n} {suffix}" for suffix, n in suffixes.most_common(5)) or "nothing"


class _Part(Protocol):
    def __len__(self) -> int: ...

    def read(self, index: int) -> Document: ...


def _scan(root: pathlib.Path, split: Split) -> tuple[list[_Part], bool]:
    """The parts that hold a split, and whether they are that split and no more."""
    if not root.exists():
        raise DataError(f"nothing is at {str(root)!r}; check the path.")
    if root.is_file():
        return _scan_file(root, split)
    files = sorted(p for p in root.rglob("*") if p.is_file() and not p.name.startswith("."))
    by_suffix: dict[str, list[pathlib.Path]] = {}
    for file in files:
        by_suffix.setdefault(file.suffix.lower(), []).append(file)
    if ".jsonl" in by_suffix:
        return _jsonl_parts(by_suffix[".jsonl"], root, split)
    if ".json" in by_suffix:
        return [_JsonFiles(by_suffix[".json"], root)], False
    return _captioned_parts(files, root), False


def _captioned_parts(files: list[pathlib.Path], root: pathlib.Path) -> list[_Part]:
    images = [p for p in files if p.suffix.lower() in IMAGE_SUFFIXES]
    captions = {p for p in files if p.suffix == ".txt"}
    captioned = [p for p in images if p.with_suffix(".txt") in captions]
    if len(captioned) < len(images):
        logger.warning(
            "%s: %d of %d images have no caption (.txt) and are left out.",
            root,
            len(images) - len(captioned),
            len(images),
        )
    return [_Captioned(captioned, root)] if captioned else []


def _scan_file(file: pathlib.Path, split: Split) -> tuple[list[_Part], bool]:
    if file.suffix.lower() == ".json":
        return [_JsonFiles([file], file.parent)], False
    if file.suffix.lower() != ".jsonl":
        raise DataError(f"{str(file)!r} is not a .jsonl file or a folder.")
    validation = file.with_suffix(".validation.jsonl")
    if not validation.is_file():
        return [_Jsonl(file, file.parent)], False
    return _jsonl_parts([file, validation], file.parent, split)


def _jsonl_parts(
    files: list[pathlib.Path], root: pathlib.Path, split: Split
) -> tuple[list[_Part], bool]:
    """All files, or those of the split where some are named as validation."""
    validation = [p for p in files if p.name.lower().endswith(".validation.jsonl")]
    if validation:
        files = validation if split == "validation" else sorted({*files} - {*validation})
    return [_Jsonl(p, root) for p in files], bool(validation)


class _Jsonl:
    """Lines of a file, by byte offset."""

    def __init__(self, file: pathlib.Path, root: pathlib.Path):
        self._file, self._name = file, str(file.relative_to(root))
        self._starts, self._numbers = _line_starts(file)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def read(self, index: int) -> Document:
        line = index if self._numbers is None else int(self._numbers[index])
        place = f"{self._name}:{line + 1}"
        start, end = int(self._starts[index]), int(self._starts[index + 1])
        if end - start > MAX_RECORD_BYTES:
            raise DocumentError(f"{place}: the line has {(end - start) / 2**20:.0f} MiB.")
        try:
            with open(self._file, "rb") as f:
                f.seek(start)
                raw = f.read(end - start)
        except OSError as e:
            raise DocumentError(f"{place} cannot be read: {e.strerror or e}.") from None
        return _parse(raw.partition(b"\n")[0], self._file.parent, place)


def _line_starts(file: pathlib.Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Offsets of the lines that are not blank, int64[n + 1], and their numbers if some are."""
    newlines, offset = [np.zeros(0, np.int64)], 0
    blank = []
    with open(file, "rb") as f:
        while chunk := f.read(1 << 24):
            newlines.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == 10) + offset)
            offset += len(chunk)
        ends = np.concatenate([*newlines, [offset]])
        starts = np.concatenate([[0], ends[:-1] + 1])
        for line in np.flatnonzero(ends - starts < 8):  # too short for a document: blank?
            f.seek(int(starts[line]))
            if not f.read(int(ends[line] - starts[line])).strip():
                blank.append(line)
    if len(blank) == 1 and blank[0] == len(starts) - 1:  # after the last newline
        return np.append(starts[:-1], offset), None
    numbers = np.delete(np.arange(len(starts)), blank)
    return np.append(starts[numbers], offset), numbers if blank else None


def _parse(raw: bytes, base_dir: pathlib.Path, place: str) -> Document:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as e:
        raise DocumentError(f"{place}: not UTF-8 ({e.reason} at byte {e.start}).") from None
    return from_json(text, base_dir=base_dir, place=place)


def _read_small(path: pathlib.Path, place: str) -> bytes:
    try:
        size = os.stat(path).st_size
        if size > MAX_RECORD_BYTES:
            raise DocumentError(f"{place}: the file has {size / 2**20:.0f} MiB.")
        return path.read_bytes()
    except OSError as e:
        raise DocumentError(f"{place} cannot be read: {e.strerror or e}.") from None


class _JsonFiles:
    """One document per file."""

    def __init__(self, files: Sequence[pathlib.Path], root: pathlib.Path):
        self._files, self._root = files, root

    def __len__(self) -> int:
        return len(self._files)

    def read(self, index: int) -> Document:
        file = self._files[index]
        place = str(file.relative_to(self._root))
        return _parse(_read_small(file, place), file.parent, place)


class _Captioned:
    """Images with captions beside them."""

    def __init__(self, images: Sequence[pathlib.Path], root: pathlib.Path):
        self._images, self._root = images, root

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> Document:
        image = self._images[index]
        place = str(image.relative_to(self._root))
        try:
            caption = _read_small(image.with_suffix(".txt"), place).decode("utf-8").strip()
        except UnicodeDecodeError:
            raise DocumentError(f"{place}: its caption is not UTF-8.") from None
        if not caption:
            raise DocumentError(f"{place}: its caption is empty.")
        items = (Text(caption, "user", False), Image(path=image, role="assistant"))
        return Document(items, id=place)


# ------------------------------------------------------------------------------ kinds of sources


@dataclasses.dataclass(frozen=True)
class DocumentsOptions:
    """`config.data.sources.NAME.options` of documents on disk."""

    task: str = field(
        "",
        "what stands for documents that are not here, in 'mogao plan': text, qa, t2i, edit or "
        "story; empty: by flow_weight",
    )


def _contents(config: SourceConfig) -> Contents:
    """Nobody has looked into the files; a flow weight says that they hold images to generate."""
    return Contents(generates=config.flow_weight > 0)


DOCUMENTS = SourceKind(
    options=DocumentsOptions,
    open=lambda config, *, split, **_: DocumentsSource(config.path, split),
    contents=_contents,
)
