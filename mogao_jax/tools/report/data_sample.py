"""The data as the model sees it: one packed row, taken apart into documents again.

`save_data_sample` is called once, with a batch of the run; the report shows what it wrote:

    data_sample.json   documents with their items, budgets and how full they are
    data_sample.npz    images, and the three integers of every token (for the mask)

A document that is trained in several guidance contexts stands in the row as several segments;
each is shown by itself, because that is what the model sees.
"""

from __future__ import annotations

import json
import os
import pathlib
import zipfile
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import numpy as np

from mogao_jax.errors import DataError
from mogao_jax.sequence.batch import CONTEXTS, FULL, PackedBatch
from mogao_jax.sequence.masking import TEXT, VIT, TokenMeta

JSON_NAME, NPZ_NAME = "data_sample.json", "data_sample.npz"
_STREAMS = ("und", "clean", "noised")
_OLD_NAMES = {"time": "t", "picture": "image"}  # fields of items, as older runs call them
_UNDECODED = "\ufffd"


class _Decoder(Protocol):
    def decode(self, ids, *, keep_special: bool = False) -> str: ...


def save_data_sample(
    batch: PackedBatch,
    tokenizer: _Decoder,
    path: str | os.PathLike,
    *,
    sources: Sequence[str] = (),
    text_reads_vae: bool = False,
    row: int = 0,
) -> None:
    """Writes one row of a batch into the run folder `path` for the report.

    Args:
      batch: numpy arrays; a row, or rows along a leading axis (then `row` is taken), or more
        leading axes before that (then the first of each).
      tokenizer: has `decode(ids, keep_special=True)`.
      sources: names of the data sources, in the order that the batch numbers them.
      text_reads_vae: the attention rule of VAE-only understanding.
    """
    while (axes := np.ndim(batch.und.tokens)) > 1:
        batch = jax.tree.map(lambda x, i=row if axes == 2 else 0: np.asarray(x)[i], batch)
    folder = pathlib.Path(path)
    images = _Images(batch)
    documents = [
        _document(batch, segment, tokenizer, images, sources)
        for segment in range(1, 1 + int(np.max(batch.und.meta.segment, initial=0)))
    ]
    record = {"documents": documents, "fill": fill(batch), "text_reads_vae": text_reads_vae}
    (folder / JSON_NAME).write_text(json.dumps(record), encoding="utf-8")
    arrays: dict[str, Any] = {f"image_{i}": pixels for i, pixels in enumerate(images.pixels)}
    for name in _STREAMS:
        meta = getattr(batch, name).meta
        arrays[f"meta_{name}"] = np.stack([np.asarray(m, np.int32) for m in meta])
    np.savez_compressed(folder / NPZ_NAME, **arrays)


def load_data_sample(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What `save_data_sample` wrote: (the JSON record, arrays by name).

    Raises:
      FileNotFoundError: no sample was saved.
      DataError: a file is damaged (a run killed while it wrote).
    """
    folder = pathlib.Path(path)
    try:
        record = json.loads((folder / JSON_NAME).read_text(encoding="utf-8"))
        with np.load(folder / NPZ_NAME, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        _ = record["fill"], record["text_reads_vae"], arrays["meta_und"]
        for document in record["documents"]:
            document["items"] = [
                {_OLD_NAMES.get(k, k): v for k, v in item.items()} for item in document["items"]
            ]
    except FileNotFoundError:
        raise
    except (ValueError, KeyError, TypeError, EOFError, OSError, zipfile.BadZipFile) as e:
        raise DataError(f"the data sample in {str(folder)!r} is damaged: {e}.") from e
    return record, arrays


def token_meta(arrays: dict[str, np.ndarray]) -> dict[str, TokenMeta]:
    """The saved streams' metadata: {'und': TokenMeta of int32[U], 'clean': ..., 'noised': ...}."""
    return {name: TokenMeta(*arrays[f"meta_{name}"]) for name in _STREAMS}


def fill(batch: PackedBatch) -> dict[str, dict[str, int]]:
    """How much of each budget of a row is used: {'und tokens': {'used': ..., 'budget': ...}}."""
    counts = {f"{name} tokens": getattr(batch, name).meta.segment for name in _STREAMS}
    counts |= {"images": batch.images.size[..., 0], "ViT patches": batch.vit.segment}
    return {
        name: {"used": int(np.count_nonzero(values)), "budget": int(np.size(values))}
        for name, values in counts.items()
    }


class _Images:
    """Images of a row, each once, with a number for the report."""

    def __init__(self, batch: PackedBatch):
        self._batch = batch
        self._numbers: dict[tuple[str, int], int] = {}
        self.pixels: list[np.ndarray] = []

    def of_table(self, row: int) -> int:
        """A row of the image table, cut out of its canvas."""
        height, width = (int(n) for n in self._batch.images.size[row])
        return self._number(("table", row), self._batch.images.pixels[row, :height, :width])

    def of_vit(self, number: int) -> int:
        """An image of which only ViT patches are there, put together again."""
        vit = self._batch.vit
        patches = np.asarray(vit.pixels)[vit.segment == number]
        rows, columns = (vit.positions[vit.segment == number].max(0) + 1).tolist()
        side = round((patches.shape[1] / 3) ** 0.5)
        pixels = np.zeros((rows, columns, side, side, 3), np.uint8)
        h, w = vit.positions[vit.segment == number].T
        pixels[h, w] = patches.reshape(-1, 3, side, side).transpose(0, 2, 3, 1)
        whole = pixels.transpose(0, 2, 1, 3, 4).reshape(rows * side, columns * side, 3)
        return self._number(("vit", number), whole)

    def _number(self, key: tuple[str, int], pixels: np.ndarray) -> int:
        if key not in self._numbers:
            self._numbers[key] = len(self.pixels)
            self.pixels.append(np.ascontiguousarray(pixels))
        return self._numbers[key]


def _document(
    batch: PackedBatch, segment: int, tokenizer, images: _Images, sources: Sequence[str]
) -> dict[str, Any]:
    """One segment as items in reading order: runs of text and images, by their T position."""
    und = batch.und
    mine = und.meta.segment == segment
    items = [
        *_texts(batch, np.flatnonzero(mine & (und.meta.kind == TEXT)), tokenizer),
        *_images(batch, segment, images),
    ]
    items.sort(key=lambda item: item["t"])
    contexts = {item["context"] for item in items if item["type"] == "image" and item["context"]}
    source = int(und.source[mine][0]) if mine.any() else -1
    return {
        "segment": segment,
        "source": sources[source] if 0 <= source < len(sources) else "",
        "context": contexts.pop() if len(contexts) == 1 else CONTEXTS[FULL],
        "num_und": int(mine.sum()),
        "num_clean": int((batch.clean.meta.segment == segment).sum()),
        "num_noised": int((batch.noised.meta.segment == segment).sum()),
        "items": items,
    }


def _texts(batch: PackedBatch, where: np.ndarray, tokenizer) -> list[dict[str, Any]]:
    """Text tokens at the und indices `where`: runs that are alike (trained or not, unbroken T).

    A token is trained if the token just before it, in the stream and of the same T run, has it
    as its target.
    """
    und = batch.und
    before, t = np.maximum(where - 1, 0), und.positions[where, 0]
    trained = (
        (where > 0)
        & (und.meta.segment[before] == und.meta.segment[where])
        & (und.loss_weights[before] > 0)
        & (und.targets[before] == und.tokens[where])
    )
    breaks = 1 + np.flatnonzero((np.diff(t) != 1) | (trained[1:] != trained[:-1]))
    return [
        {
            "type": "text",
            "t": float(t[run[0]]),
            "trained": bool(trained[run[0]]),
            "tokens": split_tokens(und.tokens[where[run]].tolist(), tokenizer),
        }
        for run in np.split(np.arange(len(where)), breaks)
        if len(run)
    ]


def split_tokens(ids: Sequence[int], tokenizer: _Decoder) -> list[str]:
    """The text of each token; tokens that only together make a character are put together."""
    texts: list[str] = []
    held: list[int] = []
    for token in ids:
        held.append(token)
        text = tokenizer.decode(held, keep_special=True)
        if _UNDECODED not in text or len(held) == 4:  # a UTF-8 character has at most 4 bytes
            texts.append(text)
            held = []
    return texts + ([tokenizer.decode(held, keep_special=True)] if held else [])


def _images(batch: PackedBatch, segment: int, images: _Images) -> list[dict[str, Any]]:
    """The segment's images by T, with the copies that stand in the streams."""
    und = batch.und
    is_vit = (und.meta.segment == segment) & (und.meta.kind == VIT)
    found: dict[float, dict[str, Any]] = {}

    def at(t: float) -> dict[str, Any]:
        empty = {"type": "image", "t": t, "copies": {}, "context": "", "image": None}
        return found.setdefault(t, empty)

    for name, stream in (("clean", batch.clean), ("noised", batch.noised)):
        mine, t_ids = stream.meta.segment == segment, stream.positions[:, 0]
        for t in np.unique(t_ids[mine]).tolist():
            rows = np.flatnonzero(mine & (t_ids == t))
            image = at(t)
            image["copies"][name] = len(rows)
            table_row = int(stream.image[rows[0]])
            image["image"] = images.of_table(table_row)
            if name == "noised":
                image["context"] = CONTEXTS[int(batch.images.context[table_row])]
    # ViT patches merged into one ViT token (4 for Qwen2-VL), counted in the row; an image's tokens
    # may stand in several segments.
    tokens = int(np.count_nonzero(np.unique(und.vit_index) >= 0))
    merge = max(1, int(np.count_nonzero(batch.vit.segment)) // max(tokens, 1))
    for t in np.unique(und.positions[is_vit, 0]).tolist():
        rows = np.flatnonzero(is_vit & (und.positions[:, 0] == t))
        image = at(t)
        image["copies"]["ViT"] = len(rows)
        if image["image"] is None:
            number = int(batch.vit.segment[int(und.vit_index[rows[0]]) * merge])
            image["image"] = images.of_vit(number)
    return list(found.values())
