"""Our own models as a source of tensors, named by slots: checkpoints, exported files, folders.

Nothing but headers is read on opening, and one tensor at a time afterwards.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from flax import traverse_util

from mogao_jax.checkpoints import exported, files
from mogao_jax.checkpoints.by_parts import PartReader
from mogao_jax.checkpoints.carried import with_carried
from mogao_jax.checkpoints.load_params import best_weights
from mogao_jax.config.convert import from_dict
from mogao_jax.errors import CheckpointError
from mogao_jax.paths import expanded
from mogao_jax.porting.formats import mogao
from mogao_jax.porting.safetensors_folder import SafetensorsFolder
from mogao_jax.porting.slots import Slot, slots
from mogao_jax.porting.transforms import Shape

Weights = Literal["best", "ema", "raw"]


@dataclasses.dataclass(frozen=True)
class _Array:
    shape: Shape
    dtype: str


class OwnModel:
    """A model of ours; a `sources.TensorSource`.

    Attributes:
      model_config: its config, naming the files that lie beside it.
      folder: where it lies.
      step: optimizer steps done.
      weights: "ema" or "raw".
      porting: what its meta says of where it came from; {}: nothing.
      fingerprint: array -> checksum, as saved; {}: not known.
    """

    config: Mapping[str, Any] = {}

    def __init__(self, path: str | os.PathLike, *, weights: Weights = "best"):
        """Opens a run's folder, a checkpoint, an exported file, or a folder of `port to-hf`.

        Raises:
          CheckpointError: nothing there that can be read.
        """
        self.place = str(path)
        path = expanded(path).absolute()
        self.porting: dict[str, Any] = {}
        self.fingerprint: dict[str, str] = {}
        self._checkpoint: PartReader | None = None
        self._file: SafetensorsFolder | None = None
        if path.is_file():
            self._open_exported(path)
        elif is_mogao_folder(path):
            self._open_folder(path)
        else:
            self._open_checkpoint(path, weights)
        self.shapes = {name: slot.shape for name, slot in self._slots.items()}
        self.dtypes = {name: slot.dtype for name, slot in self._slots.items()}

    def read(self, key: str) -> np.ndarray:
        """A whole tensor, in its own dtype."""
        slot = self._slots[key]
        if slot.layer is not None:
            return self._rows(slot.leaf, slot.layer, slot.layer + 1)[0]
        return self._rows(slot.leaf, 0, slot.shape[0])

    def read_rows(self, key: str, start: int, stop: int) -> np.ndarray:
        """Rows start to stop (exclusive) of its first axis."""
        slot = self._slots[key]
        if slot.layer is not None:
            return self.read(key)[start:stop]
        return self._rows(slot.leaf, start, stop)

    def leaf_of(self, key: str) -> str:
        """The array that holds a tensor: reading those of one array in turn is cheapest."""
        return self._slots[key].leaf

    def verify(self) -> None:
        """Raises CheckpointError if what has been read whole is not what was saved."""
        if self._checkpoint is not None:
            try:
                self._checkpoint.verify()
            except files.Damaged as e:
                raise CheckpointError(
                    f"the checkpoint {self.place!r} is damaged: {e}. Give an older one, or copy it "
                    "again."
                ) from None

    def _rows(self, leaf: str, start: int, stop: int) -> np.ndarray:
        if self._checkpoint is None:
            assert self._file is not None
            return self._file.read_rows(leaf, start, stop)
        try:
            return self._checkpoint.rows(leaf, start, stop)
        except (ValueError, RuntimeError, OSError) as e:  # whatever a damaged file makes it raise
            raise CheckpointError(
                f"array {leaf} of {self.place!r} cannot be read ({files.brief(e)}): the checkpoint "
                "is damaged. Give an older one, or copy it again."
            ) from e

    def _open_exported(self, path: pathlib.Path) -> None:
        header = exported.read_header(path)
        self.folder, self.model_config = path.parent, header.config
        self.step, self.weights = header.step, header.weights
        self._file = SafetensorsFolder(path)
        self._slots = _slots_of({k: (s, self._file.dtypes[k]) for k, s in header.shapes.items()})

    def _open_folder(self, path: pathlib.Path) -> None:
        source = SafetensorsFolder(path)
        self._file = source
        self.folder, self.step = path, int(source.config.get("step", 0))
        self.weights = str(source.config.get("weights", "raw"))
        self.model_config = with_carried(from_dict(source.config["config"]), path)
        self._slots = {
            key: Slot(key, None, shape, source.dtypes[key]) for key, shape in source.shapes.items()
        }

    def _open_checkpoint(self, path: pathlib.Path, weights: Weights) -> None:
        reasons = []
        for folder in files.find_checkpoints(path):
            try:
                meta = files.read_folder_meta(folder)
                self.weights = best_weights(meta, weights)
                part = "ema_params" if self.weights == "ema" else "params"
                self._checkpoint = PartReader(folder, meta, part)
            except CheckpointError:
                raise
            except Exception as e:  # noqa: BLE001  (whatever a damaged file makes a reader raise)
                reasons.append(f"{folder}: {e if isinstance(e, files.Damaged) else files.brief(e)}")
                continue
            self.folder, self.step = folder, int(meta["step"])
            self.model_config = with_carried(from_dict(meta["config"]), folder)
            self.porting = meta.get("porting", {})
            self.fingerprint = {
                name: value
                for name, value in meta["fingerprint"].items()
                if name.startswith(f"{part}/")
            }
            self._slots = _slots_of(self._checkpoint.arrays)
            return
        raise CheckpointError(f"no checkpoint can be read: {'; '.join(reasons)}.")


def is_own(path: str | os.PathLike) -> bool:
    """Whether a path holds a model of ours, rather than others' safetensors."""
    path = expanded(path)
    if path.is_file():
        try:
            return SafetensorsFolder(path).metadata.get("format") == exported.FORMAT
        except CheckpointError:
            return False
    if is_mogao_folder(path):
        return True
    try:
        return bool(files.find_checkpoints(path))
    except CheckpointError:
        return False


def is_mogao_folder(path: pathlib.Path) -> bool:
    """Whether a folder is one that `mogao port to-hf` wrote for a whole model."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") == mogao.MODEL_TYPE


def _slots_of(arrays: Mapping[str, tuple[Shape, str]]) -> dict[str, Slot]:
    tree = {name: _Array(tuple(shape), dtype) for name, (shape, dtype) in arrays.items()}
    return slots(traverse_util.unflatten_dict(tree, sep="."))
