"""Encodes all images of a config's sources once: the writer of data/encoded.py's folders."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from mogao_jax.atomic import atomic_directory
from mogao_jax.checkpoints.fingerprint import fingerprint
from mogao_jax.config.geometry import LATENT_STRIDE
from mogao_jax.config.schema import MogaoConfig
from mogao_jax.data.encoded import FORMAT, EncodedImages, key
from mogao_jax.data.sources import Source, Split, open_source
from mogao_jax.errors import ConfigError, DocumentError
from mogao_jax.images import native_pixels, vit_input
from mogao_jax.models.modules import EncoderParams, Modules
from mogao_jax.models.vae import moments_of_images
from mogao_jax.models.vit import unstacked
from mogao_jax.registry import SOURCES
from mogao_jax.sequence.document import Image

CANVAS_STEP = 64  # canvases are rounded up to multiples of it: fewer programs to compile
BATCH = 16  # images encoded at once


class Counts(NamedTuple):
    """What was written: images and bytes; and the records that could not be read."""

    images: int
    skipped: int
    bytes: int


def encode_sources(
    modules: Modules,
    encoders: EncoderParams,
    out: pathlib.Path,
    *,
    dtype: str = "float32",
    log: Callable[[str], None] = print,
) -> Counts:
    """Encodes every image of the training and held-out records, each once.

    Args:
      out: the folder to write; it appears when everything is in it.
      dtype: of the values on disk, float32 or float16.
      log: takes lines of progress.
    Raises:
      ConfigError: a source is of a kind without an end (`SourceKind.is_endless`).
      EnvironmentProblem: the folder is there already, or cannot be written.
    """
    config = modules.config
    for name, source in config.data.sources.items():
        if source.weight > 0 and SOURCES.get(source.kind).is_endless:
            raise ConfigError(
                f"config.data.sources.{name} is of kind {source.kind!r}, whose images have no "
                "end; only documents and tfds can be encoded beforehand."
            )
    with atomic_directory(out, say=log) as partial:
        writers = {"vae": _Writer(partial, "vae", dtype)}
        if modules.vit is not None:
            writers["vit"] = _Writer(partial, "vit", dtype)
        broken: list[str] = []
        for number, group in enumerate(_grouped(_native_images(config, broken)), start=1):
            _encode_group(modules, encoders, group, writers)
            if number % 10 == 0:
                log(f"  {len(writers['vae'])} images")
        size = sum(writer.finish() for writer in writers.values())
        meta = {"format": FORMAT, **_identity(modules, encoders)}
        (partial / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    return Counts(len(writers["vae"]), len(broken), size)


def check_encoded(encoded: EncodedImages, modules: Modules, encoders: EncoderParams) -> None:
    """Raises ConfigError unless a folder was written by these encoders."""
    ours = _identity(modules, encoders)
    for part, mine in ours.items():
        theirs = encoded.meta.get(part)
        if theirs == mine:
            continue
        differing = sorted(n for n in mine or {} if (theirs or {}).get(n) != mine[n])
        raise ConfigError(
            f"config.data.encoded: {str(encoded.folder)!r} was written by another {part.upper()}"
            + (f" (other {', '.join(differing)})" if differing else "")
            + "; run 'mogao data encode' with this config."
        )


def _identity(modules: Modules, encoders: EncoderParams) -> dict[str, Any]:
    """What the outputs depend on: configs, and checksums of the weights."""
    vae, vit = modules.config.vae, modules.config.vit
    found: dict[str, Any] = {}
    tower = unstacked(encoders.vit) if modules.vit else None
    parts = (("vae", vae, encoders.vae), ("vit", vit, tower))
    for part, config, params in parts:
        if params is None:
            found[part] = None
            continue
        fields = dataclasses.asdict(config)
        # Where the weights lie is no part of what they are; scaling comes after the moments.
        for name in ("weights", "scaling_factor", "shift_factor"):
            fields.pop(name, None)
        sums = json.dumps(fingerprint(params), sort_keys=True)
        fields["weights_checksum"] = hashlib.sha256(sums.encode()).hexdigest()[:16]
        found[part] = json.loads(json.dumps(fields))
    return found


def _native_images(config: MogaoConfig, broken: list[str]) -> Iterator[np.ndarray]:
    """Every image uint8[H, W, 3] of all records, each once, at native resolution.

    Args:
      broken: gets the reasons of the records that cannot be read.
    """
    seen = set()
    for source in _sources(config):
        for index in range(len(source)):
            try:
                items = [i for i in source[index].items if isinstance(i, Image)]
                found = [native_pixels(i, config.images) for i in items]
            except DocumentError as e:  # training names them, and counts them too
                broken.append(str(e))
                continue
            for pixels in found:
                if (k := key(pixels)) not in seen:
                    seen.add(k)
                    yield pixels


def _sources(config: MogaoConfig) -> Iterator[Source]:
    splits: tuple[Split, ...] = ("train", "validation")
    for name, settings in config.data.sources.items():
        for split in splits if settings.weight > 0 else ():
            yield open_source(name, settings, seed=config.seed, split=split, images=config.images)


def _grouped(images: Iterable[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Groups of up to BATCH images of one canvas."""
    waiting: dict[tuple[int, int], list[np.ndarray]] = {}
    for pixels in images:
        canvas = _canvas(pixels)
        waiting.setdefault(canvas, []).append(pixels)
        if len(waiting[canvas]) == BATCH:
            yield waiting.pop(canvas)
    yield from waiting.values()


def _canvas(pixels: np.ndarray) -> tuple[int, int]:
    height, width = (-(-n // CANVAS_STEP) * CANVAS_STEP for n in pixels.shape[:2])
    return height, width


def _encode_group(
    modules: Modules, encoders: EncoderParams, group: list[np.ndarray], writers: dict[str, _Writer]
) -> None:
    height, width = _canvas(group[0])
    pixels = np.zeros((BATCH, height, width, 3), np.uint8)
    size = np.zeros((BATCH, 2), np.int32)
    for i, image in enumerate(group):
        h, w = size[i] = image.shape[:2]
        pixels[i, :h, :w] = image
    moments = np.asarray(_moments(modules, encoders.vae, pixels, size))
    for i, image in enumerate(group):
        h, w = (n // LATENT_STRIDE for n in image.shape[:2])
        writers["vae"].add(key(image), moments[i, :h, :w].reshape(h * w, -1))
    if modules.vit is not None:
        _encode_vit(modules, encoders, group, writers["vit"])


def _encode_vit(
    modules: Modules, encoders: EncoderParams, group: list[np.ndarray], writer: _Writer
) -> None:
    """One row per image: all of a canvas have about as many patches."""
    config = modules.config
    inputs = [vit_input(image, config.images, config.vit) for image in group]
    longest = max(len(seen.patches) for seen in inputs)
    longest = 1 << (longest - 1).bit_length()  # fewer programs to compile
    values = inputs[0].patches.shape[1]
    patches = np.zeros((BATCH, longest, values), np.uint8)
    positions = np.zeros((BATCH, longest, 2), np.int32)
    segment = np.zeros((BATCH, longest), np.int32)
    for i, seen in enumerate(inputs):
        n = len(seen.patches)
        patches[i, :n], positions[i, :n], segment[i, :n] = seen.patches, seen.positions, 1
    features = np.asarray(_features(modules, encoders.vit, patches, positions, segment))
    for i, seen in enumerate(inputs):
        writer.add(key(seen.patches, seen.positions), features[i, : len(seen.patches)])


@jax.jit(static_argnums=0)
def _moments(modules: Modules, params: Any, pixels: Any, size: Any) -> Any:
    return moments_of_images(modules.vae, params, pixels, size, modules.config.vae)


@jax.jit(static_argnums=0)
def _features(modules: Modules, params: Any, patches: Any, positions: Any, segment: Any) -> Any:
    assert modules.vit is not None
    return modules.vit.apply({"params": params}, patches, positions, segment)


class _Writer:
    """Appends values to a file; keys and places are written at the end, sorted."""

    def __init__(self, folder: pathlib.Path, part: str, dtype: str):
        self._folder, self._part, self._dtype = folder, part, np.dtype(dtype)
        self._raw = folder / f"{part}.values.raw"
        self._file = open(self._raw, "wb")  # noqa: SIM115  (closed by finish)
        self._places: dict[tuple[int, int], tuple[int, int]] = {}
        self._rows = self._width = 0

    def __len__(self) -> int:
        return len(self._places)

    def add(self, wanted: tuple[int, int], values: np.ndarray) -> None:
        """Adds float32[rows, width] unless the key is there."""
        if wanted in self._places:
            return
        self._places[wanted] = (self._rows, len(values))
        self._rows += len(values)
        self._width = values.shape[1]
        self._file.write(np.ascontiguousarray(values, self._dtype).data)

    def finish(self) -> int:
        """Writes the three files and returns their bytes."""
        self._file.close()
        order = sorted(self._places)
        places = [self._places[k] for k in order]
        np.save(self._path("keys"), np.array(order, np.uint64).reshape(-1, 2))
        np.save(self._path("places"), np.array(places, np.int64).reshape(-1, 2))
        shape = (self._rows, self._width)
        with open(self._path("values"), "wb") as out:
            header = {"descr": self._dtype.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_2_0(out, header)
            with open(self._raw, "rb") as raw:
                shutil.copyfileobj(raw, out, 1 << 24)
        self._raw.unlink()
        return sum(self._path(n).stat().st_size for n in ("keys", "places", "values"))

    def _path(self, name: str) -> pathlib.Path:
        return self._folder / f"{self._part}.{name}.npy"
