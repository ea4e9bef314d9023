"""What the frozen encoders make of images, computed once and looked up by the images' pixels.

The encoders never change, and an image of a finite data set comes again every epoch: where
encoding it costs more than training on it (a small model, a large autoencoder), it is worth doing
once. `mogao data encode` writes the folder, `config.data.encoded` names it. A batch then carries
the VAE's moments instead of pixels and the ViT's features instead of patches; nothing else
changes, and the losses are the same (up to the rounding of `--dtype`).

    meta.json            format, the encoders' configs and the checksums of their weights
    vae.keys.npy         uint64[n, 2]   of the images, sorted
    vae.places.npy       int64[n, 2]    first row and number of rows in the values
    vae.values.npy       [rows, 16 or 32]  moments of each latent pixel
    vit.keys.npy, ...    the same, a row for each patch
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import numpy as np

from mogao_jax.config.geometry import LATENT_STRIDE
from mogao_jax.errors import DataError
from mogao_jax.paths import expanded
from mogao_jax.sequence.batch import PackedBatch

FORMAT = "mogao_jax encoded pictures 1"
PARTS = ("vae", "vit")


def key(*arrays: np.ndarray) -> tuple[int, int]:
    """128 bits that identify arrays by dtype, shape and content."""
    digest = hashlib.blake2b(digest_size=16)
    for x in arrays:
        digest.update(f"{x.dtype.str}{x.shape}".encode())
        digest.update(np.ascontiguousarray(x).data)
    first, second = np.frombuffer(digest.digest(), np.uint64)
    return int(first), int(second)


class Table:
    """Rows of one encoder's output by key; the values stay on disk until they are asked for."""

    def __init__(self, folder: pathlib.Path, part: str):
        """Raises DataError if a file is missing or not what was written."""
        try:
            keys, self._places, self._values = (
                np.load(folder / f"{part}.{name}.npy", mmap_mode="r", allow_pickle=False)
                for name in ("keys", "places", "values")
            )
            self._index = {(int(a), int(b)): i for i, (a, b) in enumerate(keys)}
        except (OSError, ValueError) as e:
            raise DataError(f"{str(folder)!r}: {part}.*.npy cannot be read ({e}).") from None
        ends = self._places.sum(axis=1)
        if len(keys) != len(ends) or (len(ends) and ends.max() > len(self._values)):
            raise DataError(f"{str(folder)!r}: {part}.*.npy do not belong together.")
        self.width = int(self._values.shape[1])

    def __len__(self) -> int:
        return len(self._index)

    def get(self, wanted: tuple[int, int]) -> np.ndarray | None:
        """float32[rows, width], or None if it is not there."""
        found = self._index.get(wanted)
        if found is None:
            return None
        start, count = self._places[found]
        return np.asarray(self._values[start : start + count], np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedImages:
    """A folder that `mogao data encode` wrote. `vit` is None where the config has no ViT."""

    folder: pathlib.Path
    meta: dict[str, Any]
    vae: Table
    vit: Table | None

    def attach(self, batch: PackedBatch, document: str = "") -> PackedBatch:
        """A laid-out document with moments for pixels, and features for patches.

        Raises:
          DataError: one of its images is not in the folder.
        """
        images, vit = batch.images, batch.vit
        side = images.pixels.shape[1] // LATENT_STRIDE
        moments = np.zeros((len(images.size), side, side, self.vae.width), np.float32)
        for i, (height, width) in enumerate(images.size):
            rows = self._find(self.vae, document, images.pixels[i, :height, :width])
            grid = height // LATENT_STRIDE, width // LATENT_STRIDE
            moments[i, : grid[0], : grid[1]] = rows.reshape(*grid, -1)
        images = images._replace(pixels=images.pixels[:, :0, :0], moments=moments)
        if self.vit is None:
            return batch._replace(images=images)
        features = np.zeros((len(vit.segment), self.vit.width), np.float32)
        for number in range(1, int(vit.segment.max(initial=0)) + 1):
            where = vit.segment == number
            found = self._find(self.vit, document, vit.pixels[where], vit.positions[where])
            features[where] = found
        vit = vit._replace(pixels=vit.pixels[:, :0], features=features)
        return batch._replace(images=images, vit=vit)

    def _find(self, table: Table, document: str, *image: np.ndarray) -> np.ndarray:
        rows = table.get(key(*image))
        if rows is None:
            raise DataError(
                f"an image of document {document!r} is not in {str(self.folder)!r} "
                "(config.data.encoded): the data or the image settings have changed since. Run "
                "'mogao data encode' again, or set data.encoded='' to encode while training."
            )
        return rows


def open_encoded(path: str) -> EncodedImages:
    """Opens a folder of encoded images.

    Raises:
      DataError: nothing of the kind is there, or its files are damaged.
    """
    folder = expanded(path)
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise DataError(
            f"config.data.encoded is {path!r}, where no encoded images are ({e}); write them "
            "with 'mogao data encode'."
        ) from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise DataError(f"{str(folder)!r}: meta.json is not of {FORMAT!r}.")
    vit = Table(folder, "vit") if meta.get("vit") else None
    return EncodedImages(folder, meta, Table(folder, "vae"), vit)
