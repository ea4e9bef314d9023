"""A checkpoint as Hugging Face lays it out: one safetensors file, or shards and their index.

Tensors are read one at a time, when asked for. Everything that can be known to be wrong from the
headers and the index is found on opening.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mogao_jax.errors import CheckpointError
from mogao_jax.key_tables import compress
from mogao_jax.paths import expanded
from mogao_jax.porting.tensor_sources import TensorSource
from mogao_jax.safetensors_files import DTYPES, FLOATS, is_finite, opened

SUFFIX, INDEX_SUFFIX = ".safetensors", ".safetensors.index.json"
PICKLES = (".bin", ".pth", ".pt", ".ckpt", ".pkl", ".pickle")
# The names under which transformers and diffusers save.
_STEMS = ("model", "diffusion_pytorch_model")
_LARGEST_JSON = 64 * 2**20


class SafetensorsFolder:
    """The tensors of a file or folder; a `TensorSource`.

    Its config is the config.json beside the tensors, also where a file alone is given.
    """

    def __init__(
        self, path: str | os.PathLike, *, allow_non_finite: bool = False, with_config: bool = True
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
        self.place, self.allow_non_finite = str(path), allow_non_finite
        self.metadata: dict[str, str] = {}
        self._files: dict[str, pathlib.Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        found = _find(path)
        open_it = self._open_shards if found.name.endswith(INDEX_SUFFIX) else self._open_file
        open_it(found)
        file = found.parent / "config.json"
        self.config = read_json(file) if with_config and file.is_file() else {}

    def read(self, key: str, rows: slice | None = None) -> np.ndarray:
        """A whole tensor in its own dtype, or rows of its first axis.

        Raises CheckpointError if values are not finite, or no floats; or if the file has changed.
        """
        require_floats(self, [key])
        array = self._raw(key, rows)
        if not self.allow_non_finite and not is_finite(array):
            # Names every tensor with such values, whichever was read first.
            floats = [k for k in self.shapes if self.dtypes[k] in DTYPES]
            bad = [k for k in floats if not is_finite(self._raw(k))]
            raise CheckpointError(
                f"{self.place!r} has values that are not finite (NaN or infinity) in "
                f"{'; '.join(compress(bad))}. A model with these computes nothing of use: get the "
                "file anew. To take them as they are, say --allow-nan."
            )
        return array

    def read_rows(self, key: str, start: int, stop: int) -> np.ndarray:
        """Rows start to stop (exclusive) of a tensor's first axis; as `read`."""
        return self.read(key, slice(start, stop))

    def _raw(self, key: str, rows: slice | None = None) -> np.ndarray:
        with opened(self._files[key]) as f:
            return f.get_tensor(key) if rows is None else f.get_slice(key)[rows]

    def _open_file(self, path: pathlib.Path, wanted: set[str] | None = None) -> set[str]:
        """Notes what a file holds (of the wanted keys); returns all its keys."""
        with opened(path) as f:
            here = set(f.keys())
            self.metadata = f.metadata() or {}
            for key in sorted(here if wanted is None else here & wanted):
                tensor = f.get_slice(key)
                dtype = tensor.get_dtype()
                self._files[key] = path
                self.shapes[key] = tuple(tensor.get_shape())
                self.dtypes[key] = FLOATS[dtype].name if dtype in FLOATS else dtype
        return here

    def _open_shards(self, index: pathlib.Path) -> None:
        shards: defaultdict[str, set[str]] = defaultdict(set)
        for key, name in _weight_map(index).items():
            shards[name].add(key)
        problems: list[str] = []
        for name, wanted in shards.items():
            try:
                _check_name(name)
                here = self._open_file(index.parent / name, wanted)
            except CheckpointError as e:
                problems.append(str(e))
                continue
            problems += [f"{k} is not in {name}" for k in compress(sorted(wanted - here))]
            more = compress(sorted(here - wanted))
            problems += [f"{k} is in {name}, where the index does not have it" for k in more]
        if problems:
            raise CheckpointError(
                f"the index {str(index)!r} does not fit its shards, {len(problems)} problem(s): "
                f"{'; '.join(problems)}. Download or copy the folder again."
            )


def require_floats(source: TensorSource, keys: Iterable[str]) -> None:
    """Raises CheckpointError naming every one of these tensors that holds no plain floats."""
    wrong: defaultdict[str, list[str]] = defaultdict(list)
    for key in keys:
        if source.dtypes[key] not in DTYPES:
            wrong[source.dtypes[key]].append(key)
    if wrong:
        listing = "; ".join(f"{d}: {', '.join(compress(keys))}" for d, keys in wrong.items())
        raise CheckpointError(
            f"{source.place!r} has weights in formats that are not read ({listing}); only "
            f"{', '.join(sorted(DTYPES))} are. Save the checkpoint in one of these first."
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
    files = [p.name for p in sorted(path.iterdir()) if p.name.endswith((SUFFIX, INDEX_SUFFIX))]
    indices = [name for name in files if name.endswith(INDEX_SUFFIX)]
    usual = [{f"{stem}{SUFFIX}", f"{stem}{INDEX_SUFFIX}"} & set(files) for stem in _STEMS]
    for found in (*usual, indices, files):
        if len(found) == 1:
            return path / min(found)
        if found and found in usual:
            names = " and ".join(sorted(found))
            raise CheckpointError(f"{str(path)!r} holds both {names}: give the one you mean.")
    if not files:
        _refuse_pickles(*sorted(path.iterdir()))
        raise CheckpointError(f"{str(path)!r} holds no {SUFFIX} file.")
    raise CheckpointError(
        f"{str(path)!r} holds {len(files)} {SUFFIX} files ({', '.join(files[:8])}), but no index "
        f"that says what lies where (model{INDEX_SUFFIX}). Copy the index too, or give one of the "
        "files."
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
