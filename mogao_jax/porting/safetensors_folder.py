"""A checkpoint as Hugging Face lays it out: one safetensors file, or shards and their index.

Tensors are read one at a time, when asked for. Everything that can be known to be wrong from the
headers and the index is found on opening.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mogao_jax.errors import CheckpointError
from mogao_jax.paths import expanded
from mogao_jax.porting.safetensors_file import (
    FLOATS,
    Entry,
    is_finite,
    read_entry,
    read_header,
)
from mogao_jax.porting.tables import compress

SUFFIX, INDEX_SUFFIX = ".safetensors", ".safetensors.index.json"
PICKLES = (".bin", ".pth", ".pt", ".ckpt", ".pkl", ".pickle")
# The names under which transformers and diffusers save.
_STEMS = ("model", "diffusion_pytorch_model")
_LARGEST_JSON = 64 * 2**20


class SafetensorsFolder:
    """The tensors of a file or folder; a `sources.TensorSource`.

    Its config is the config.json beside the tensors, also where a file alone is given.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        allow_non_finite: bool = False,
        with_config: bool = True,
    ):
        """Finds the files and reads their headers.

        Args:
          path: a .safetensors file; a folder that holds one, or shards and their index; or the
            index itself.
          allow_non_finite: hand over NaN and infinity instead of refusing them.
          with_config: read the config.json; not for files that carry a config of their own.
        Raises:
          CheckpointError: nothing there, a pickle, a damaged file, or an index that contradicts
            the shards; what is wrong in every shard is in one message.
        """
        path = expanded(path)
        _refuse_pickles(path)
        self.place = str(path)
        self.allow_non_finite = allow_non_finite
        self.metadata: dict[str, str] = {}
        self._entries: dict[str, tuple[pathlib.Path, Entry]] = {}
        found = _find(path)
        if found.name.endswith(INDEX_SUFFIX):
            self._open_shards(found)
        else:
            header = read_header(found)
            self._entries = {key: (found, entry) for key, entry in header.entries.items()}
            self.metadata = header.metadata
        file = found.parent / "config.json"
        self.config = read_json(file) if with_config and file.is_file() else {}
        self.shapes = {key: entry.shape for key, (_, entry) in self._entries.items()}
        self.dtypes = {
            key: FLOATS[entry.dtype].name if entry.dtype in FLOATS else entry.dtype
            for key, (_, entry) in self._entries.items()
        }

    def read(self, key: str) -> np.ndarray:
        """A whole tensor in its own dtype. Raises CheckpointError if it is not finite."""
        return self._checked(key, None)

    def read_rows(self, key: str, start: int, stop: int) -> np.ndarray:
        """Rows start to stop (exclusive) of a tensor's first axis; as `read`."""
        return self._checked(key, slice(start, stop))

    def _checked(self, key: str, rows: slice | None) -> np.ndarray:
        path, entry = self._entries[key]
        array = read_entry(path, key, entry, rows)
        if not self.allow_non_finite and not is_finite(array):
            raise self._not_finite()
        return array

    def _not_finite(self) -> CheckpointError:
        """Names every tensor with such values, whichever was come upon first."""
        bad = [
            key
            for key, (path, entry) in self._entries.items()
            if entry.dtype in FLOATS and not is_finite(read_entry(path, key, entry))
        ]
        return CheckpointError(
            f"{self.place!r} has values that are not finite (NaN or infinity) in "
            f"{'; '.join(compress(bad))}. A model with these computes nothing of use: get the file "
            "anew. To take them as they are, say --allow-nan."
        )

    def _open_shards(self, index: pathlib.Path) -> None:
        weight_map = _weight_map(index)
        problems: list[str] = []
        for name in dict.fromkeys(weight_map.values()):
            wanted = {key for key, file in weight_map.items() if file == name}
            try:
                _check_name(name)
                header = read_header(index.parent / name)
            except CheckpointError as e:
                problems.append(str(e))
                continue
            here = set(header.entries)
            problems += [f"{k} is not in {name}" for k in compress(sorted(wanted - here))]
            for key in compress(sorted(here - wanted)):
                problems.append(f"{key} is in {name}, where the index does not have it")
            for key in wanted & here:
                self._entries[key] = (index.parent / name, header.entries[key])
        if problems:
            raise CheckpointError(
                f"the index {str(index)!r} does not fit its shards, {len(problems)} problem(s): "
                f"{'; '.join(problems)}. Download or copy the folder again."
            )
        self._entries = {key: self._entries[key] for key in weight_map}


def require_floats(source: Any, keys: Iterable[str]) -> None:
    """Raises CheckpointError naming every one of these tensors that holds no plain floats."""
    known = {dtype.name for dtype in FLOATS.values()}
    wrong: dict[str, list[str]] = {}
    for key in keys:
        if source.dtypes[key] not in known:
            wrong.setdefault(source.dtypes[key], []).append(key)
    if wrong:
        listing = "; ".join(f"{d}: {', '.join(compress(keys))}" for d, keys in wrong.items())
        raise CheckpointError(
            f"{source.place!r} has weights in formats that are not read ({listing}); only "
            f"{', '.join(sorted(known))} are. Save the checkpoint in one of these first."
        )


def folder_of(path: str | os.PathLike) -> pathlib.Path:
    """The folder that a path means: itself, or the one that the file lies in."""
    path = expanded(path)
    return path.parent if path.is_file() else path


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object. Raises CheckpointError if it is too large, or none."""
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise CheckpointError(f"{str(path)!r} is too large for a JSON file of a checkpoint.")
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise CheckpointError(
            f"{str(path)!r} cannot be read as JSON ({e}). Download or copy it again."
        ) from None
    if not isinstance(fields, dict):
        raise CheckpointError(f"{str(path)!r} must hold a JSON object.")
    return fields


# ---------------------------------------------------------------------------------------- helpers


def _find(path: pathlib.Path) -> pathlib.Path:
    """The safetensors file or the index that a path means."""
    if path.is_file():
        if path.name.endswith((SUFFIX, INDEX_SUFFIX)):
            return path
        raise CheckpointError(
            f"{str(path)!r} is no safetensors file: give a file named *{SUFFIX}, or a folder with "
            "such files as Hugging Face lays them out."
        )
    if not path.is_dir():
        raise CheckpointError(f"there is no file or folder {str(path)!r}.")
    indices = sorted(p for p in path.iterdir() if p.name.endswith(INDEX_SUFFIX))
    files = sorted(p for p in path.iterdir() if p.name.endswith(SUFFIX))
    for stem in _STEMS:
        single, index = path / f"{stem}{SUFFIX}", path / f"{stem}{INDEX_SUFFIX}"
        if single in files and index in indices:
            raise CheckpointError(
                f"{str(path)!r} holds both {single.name} and {index.name}: give the one you mean."
            )
        if single in files or index in indices:
            return single if single in files else index
    if len(indices) == 1:
        return indices[0]
    if len(files) == 1:
        return files[0]
    if not files:
        _refuse_pickles(*sorted(path.iterdir()))
        raise CheckpointError(f"{str(path)!r} holds no {SUFFIX} file.")
    names = ", ".join(p.name for p in files[:8])
    raise CheckpointError(
        f"{str(path)!r} holds {len(files)} {SUFFIX} files ({names}), but no index that says what "
        f"lies where (model{INDEX_SUFFIX}). Copy the index too, or give one of the files."
    )


def _refuse_pickles(*paths: pathlib.Path) -> None:
    found = [p for p in paths if p.name.endswith(PICKLES) and not p.is_dir()]
    if found:
        raise CheckpointError(
            f"{str(found[0])!r} is a pickle, which can run any program when it is opened; mogao "
            f"never opens one. Use the {SUFFIX} files of the same checkpoint; or, where you trust "
            "it, load it with the library that wrote it and save it anew with "
            "save_pretrained(folder, safe_serialization=True)."
        )


def _check_name(name: str) -> None:
    """Shards lie beside their index: a name that leads elsewhere is refused."""
    leads_away = name != pathlib.PurePosixPath(name).name or "\\" in name or name in (".", "..")
    if not name or leads_away or "\0" in name:
        raise CheckpointError(f"the index names {name!r}, a path outside its folder; refused")
    _refuse_pickles(pathlib.Path(name))
    if not name.endswith(SUFFIX):
        raise CheckpointError(f"the index names {name!r}, which is no {SUFFIX} file")


def _weight_map(index: pathlib.Path) -> Mapping[str, str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointError(
            f"{str(index)!r} has no weight_map that names the file of each tensor. Download or "
            "copy it again."
        )
    return weight_map
