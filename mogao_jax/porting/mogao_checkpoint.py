"""Our own models as a source of tensors: checkpoints, exported files, folders of `port to-hf`.

Only headers are read on opening, and one tensor at a time afterwards; an exported file's checksum
is checked first.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import types
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mogao_jax.checkpoints import exported, files
from mogao_jax.checkpoints.chunked_io import PartReader
from mogao_jax.checkpoints.sidecar_files import naming, origin, with_carried
from mogao_jax.config.convert import from_dict
from mogao_jax.config.schema import MogaoConfig
from mogao_jax.errors import CheckpointError, ConfigError
from mogao_jax.paths import expanded
from mogao_jax.porting.formats import mogao
from mogao_jax.porting.params import param_specs, shapes_of
from mogao_jax.porting.safetensors_reader import SafetensorsFolder, read_json


class MogaoCheckpoint:
    """A model of ours; a `TensorSource`.

    Attributes:
      model_config: its config, naming the files that lie beside it.
      folder: where it lies.
      step: optimizer steps done.
      weights: "ema" or "raw".
      porting: what its meta says of where it came from; {}: nothing.
      fingerprint: array -> checksum, as saved; {}: not known.
      encoders: `models.encoder_weights.file_digests` of those it was made with; {}: not known.
    """

    config: Mapping[str, Any] = {}

    def __init__(self, path: str | os.PathLike, *, weights: files.Weights = "best"):
        """Opens a run's folder, a checkpoint, an exported file, or a folder of `port to-hf`.

        Raises CheckpointError: nothing there that can be read; an exported file that is damaged;
        or `weights` are asked for that are not there.
        """
        self.place = str(path)
        path = expanded(path).absolute()
        self.porting: dict[str, Any] = {}
        self.fingerprint: dict[str, str] = {}
        self.encoders: Mapping[str, str] = {}
        self._checkpoint: PartReader | None = None
        if path.is_file():
            self._open_exported(path)
        elif is_mogao_folder(path):
            self._open_folder(path)
        else:
            self._open_checkpoint(path, weights)
        if weights not in ("best", self.weights):
            raise CheckpointError(
                f"{self.place!r} holds {self.weights} parameters only; write {weights} ones anew "
                f"from the run that it came from, with --weights {weights}."
            )
        self.shapes = shapes_of(self._specs)
        self.dtypes = {name: spec.dtype for name, spec in self._specs.items()}

    def read(self, key: str) -> np.ndarray:
        """A whole tensor, in its own dtype."""
        spec = self._specs[key]
        if spec.layer is None:
            return self._rows(spec.leaf, 0, spec.shape[0])
        return self._rows(spec.leaf, spec.layer, spec.layer + 1)[0]

    def read_rows(self, key: str, start: int, stop: int) -> np.ndarray:
        """Rows start to stop (exclusive) of its first axis."""
        spec = self._specs[key]
        if spec.layer is None:
            return self._rows(spec.leaf, start, stop)
        return self.read(key)[start:stop]

    def leaf_of(self, key: str) -> str:
        """The array that holds a tensor: reading those of one array in turn is cheapest."""
        return self._specs[key].leaf

    def verify(self, *, all_of_it: bool = False) -> None:
        """Raises CheckpointError if what was read whole (`all_of_it`: all, now) is not as saved."""
        if self._checkpoint is not None:
            with self._errors_of("a part"):
                if all_of_it:
                    self._checkpoint.read_all()
                self._checkpoint.verify()

    def _rows(self, leaf: str, start: int, stop: int) -> np.ndarray:
        if self._checkpoint is None:
            return self._file.read_rows(leaf, start, stop)
        with self._errors_of(f"array {leaf}"):
            return self._checkpoint.rows(leaf, start, stop)

    @contextlib.contextmanager
    def _errors_of(self, what: str) -> Iterator[None]:
        try:
            yield
        except (ValueError, RuntimeError, OSError) as e:  # whatever a damaged file makes it raise
            reason = f"{what} cannot be read: {files.brief(e)}"
        except files.Damaged as e:
            reason = str(e)
        else:
            return
        raise CheckpointError(
            f"the checkpoint {self.place!r} is damaged ({reason}). Give an older one, or copy it "
            "again."
        )

    def _open_exported(self, path: pathlib.Path) -> None:
        header = exported.read_header(path)
        exported.check_digest(path)
        self.encoders, self.porting = header.encoders, dict(header.porting)
        self.folder, self.model_config = path.parent, header.config
        self.step, self.weights = header.step, header.weights
        self._use(SafetensorsFolder(path, allow_non_finite=True, with_config=False))

    def _open_folder(self, path: pathlib.Path) -> None:
        source = SafetensorsFolder(path, allow_non_finite=True)
        step = source.config.get("step", 0)
        if not isinstance(step, int) or isinstance(step, bool):
            raise CheckpointError(
                f"{str(path / 'config.json')!r} has step {step!r}, which is no number: it is "
                "damaged. Copy the folder again."
            )
        self.folder, self.step = path, step
        self.weights = str(source.config.get("weights", "raw"))
        config = with_carried(config_of_folder(path, source.config), path)
        folders = {part: path / part for part in mogao.ENCODERS if (path / part).is_dir()}
        self.model_config = naming(config, folders)
        self._use(source)

    def _use(self, file: SafetensorsFolder) -> None:
        self._file = file
        leaf = types.SimpleNamespace
        leaves = {k: leaf(shape=shape, dtype=file.dtypes[k]) for k, shape in file.shapes.items()}
        self._specs = param_specs(leaves)

    def _open_checkpoint(self, path: pathlib.Path, weights: files.Weights) -> None:
        def use(folder: pathlib.Path, meta: dict[str, Any]) -> tuple[pathlib.Path, dict[str, Any]]:
            self.weights = files.best_weights(meta, weights, folder)
            self._checkpoint = PartReader(folder, meta, files.PARTS[self.weights])
            self._specs = param_specs(self._checkpoint.arrays)
            return folder, meta

        self.folder, meta = files.newest(path, use)
        self.step = int(meta["step"])
        self.model_config = with_carried(from_dict(meta["config"]), self.folder)
        self.porting = origin(meta, self.folder)
        self.encoders = meta.get("encoders", {})
        part = f"{files.PARTS[self.weights]}/"
        self.fingerprint = {k: v for k, v in meta["fingerprint"].items() if k.startswith(part)}


def is_own(path: str | os.PathLike) -> bool:
    """Whether a path holds a model of ours, rather than others' safetensors."""
    path = expanded(path)
    try:
        if path.is_file():
            opened = SafetensorsFolder(path, with_config=False)
            return opened.metadata.get("format") == exported.FORMAT
        return is_mogao_folder(path) or bool(files.find_checkpoints(path))
    except CheckpointError:
        return False


def is_mogao_folder(path: pathlib.Path) -> bool:
    """Whether a folder is one that `mogao port to-hf` wrote for a whole model."""
    try:
        return read_json(path / "config.json").get("model_type") == mogao.MODEL_TYPE
    except CheckpointError:
        return False


def config_of_folder(path: pathlib.Path, fields: Mapping[str, Any]) -> MogaoConfig:
    """Our config in the config.json of a folder that `mogao port to-hf` wrote.

    Raises CheckpointError if it has none, or one that this release does not understand.
    """
    file = str(path / "config.json")
    if not isinstance(fields.get("config"), dict):
        raise CheckpointError(
            f"{file!r} says model_type {mogao.MODEL_TYPE!r}, but has no config of the model: it is "
            "damaged, or was not written by `mogao port to-hf`. Copy the folder again."
        )
    try:
        return from_dict(fields["config"])
    except ConfigError as e:
        raise CheckpointError(
            f"{file!r}, written by mogao_jax {fields.get('mogao_jax_version')}, has a config that "
            f"this release does not understand: {e}"
        ) from e
