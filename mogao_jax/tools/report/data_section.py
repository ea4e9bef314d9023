"""The page's part on data: the packed row's documents, its fill and its attention mask."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageColor

from mogao_jax.sequence.masking import PADDING_SEGMENT, TokenMeta, dense_mask
from mogao_jax.tools.report.charts import data_url
from mogao_jax.tools.report.data_sample import token_meta
from mogao_jax.tools.report.run_folder import Run

_MAX_DOCUMENTS = 24
_MAX_TOKENS = 600  # of one document's text
_MAX_MASK_TOKENS = 1400

# By the key's kind: text, ViT, clean VAE, noised VAE. Also used by the page's legend.
KIND_NAMES = ("text", "ViT", "clean VAE", "noised VAE")
KIND_COLOURS = ("#33658a", "#2a9d8f", "#e9a23b", "#c8553d")
_BACKGROUND = (243, 244, 246)
_LINE = (120, 126, 134)

_CONTEXT_WORDS = {
    "full": "full context",
    "image_only": "image-only context (text dropped)",
    "empty": "empty context (everything dropped)",
}
_COPY_WORDS = {
    "ViT": "ViT: read by what follows",
    "clean": "clean: read by later images",
    "noised": "noised: learned",
}


def data_section(run: Run) -> dict[str, Any] | None:
    """The packed row: documents, how full it is, its mask, and the mask of one document."""
    if run.sample is None:
        return None
    record, arrays = run.sample
    documents = record["documents"]
    streams, vae = token_meta(arrays), bool(record["text_reads_vae"])

    def mask(title: str, text: str, chosen: list[TokenMeta]) -> dict[str, str]:
        image = data_url(mask_png(chosen, text_reads_vae=vae), "image/png")
        return {"title": title, "text": f"{_length(chosen):,} tokens{text}", "image": image}

    row = select(streams, None, _MAX_MASK_TOKENS)
    fill = record["fill"]
    whole = sum(part["used"] for name, part in fill.items() if name.endswith(" tokens"))
    title = "The whole row" if _length(row) == whole else "The first documents"
    text = ". Each block on the diagonals is a document; packed documents never see each other."
    masks = [mask(title, text, row)]
    if (one := _richest(documents)) is not None:
        chosen = select(streams, [one["segment"]], 0)
        text = ": the one with the most kinds of tokens."
        masks.append(mask(f"Document {one['segment']} alone", text, chosen))
    return {
        "documents": [_document(d, arrays) for d in documents[:_MAX_DOCUMENTS]],
        "num_hidden": max(0, len(documents) - _MAX_DOCUMENTS),
        "fill": [
            {"name": name, **part, "share": part["used"] / max(part["budget"], 1)}
            for name, part in fill.items()
        ],
        "masks": masks,
        "legend": list(zip(KIND_NAMES, KIND_COLOURS, strict=True)),
    }


def _richest(documents: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The document with the most kinds of tokens; of equals, the smallest."""

    def rank(d):
        num = d["num_und"] + d["num_clean"] + d["num_noised"]
        kinds = {kind for item in d["items"] for kind in item.get("copies", {})}
        return len(kinds) + any(i["type"] == "text" for i in d["items"]), -num

    return max(documents, key=rank, default=None)


def _document(document: Mapping[str, Any], arrays: Mapping[str, Any]) -> dict[str, Any]:
    items, tokens_left = [], _MAX_TOKENS
    for item in document["items"]:
        if item["type"] == "image":
            items.append(_image(item, arrays.get(f"image_{item['image']}")))
            continue
        if tokens := item["tokens"][:tokens_left]:
            tokens_left -= len(tokens)
            items.append({**item, "tokens": tokens})
    words = _CONTEXT_WORDS.get(document["context"], document["context"])
    return {**document, "items": items, "cut": tokens_left <= 0, "context_words": words}


def _image(item: Mapping[str, Any], pixels: np.ndarray | None) -> dict[str, Any]:
    copies = [
        {"kind": kind, "count": item["copies"][kind], "words": words}
        for kind, words in _COPY_WORDS.items()
        if kind in item["copies"]
    ]
    if pixels is None:
        return {**item, "image": None, "size": "", "copies": copies}
    size = f"{pixels.shape[1]} x {pixels.shape[0]}"
    return {**item, "image": small_png(pixels), "size": size, "copies": copies}


def small_png(pixels: np.ndarray) -> str:
    """An image uint8[H, W, 3] as the data: URL of a PNG, its sides at most 256."""
    image = PIL.Image.fromarray(pixels)
    image.thumbnail((256, 256))
    return data_url(_png(image), "image/png")


def _png(image: PIL.Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


# --------------------------------------------------------------------------- attention masks


def select(
    streams: dict[str, TokenMeta], segments: list[int] | None, max_tokens: int
) -> list[TokenMeta]:
    """The tokens to draw, per stream in the row's order, without padding.

    Args:
      streams: und, clean and noised metadata, int32[L] each.
      segments: which segments; None takes segments from the first one on, as long as all tokens
        together are at most `max_tokens` (at least one segment).
    """
    metas = list(streams.values())
    if segments is None:
        segments, total = [], 0
        for segment in range(1, 1 + max(int(np.max(m.segment, initial=0)) for m in metas)):
            total += sum(int(np.count_nonzero(m.segment == segment)) for m in metas)
            if segments and total > max_tokens:
                break
            segments.append(segment)
    return [m.take(np.isin(m.segment, segments) & (m.segment != PADDING_SEGMENT)) for m in metas]


def mask_png(
    streams: list[TokenMeta], *, text_reads_vae: bool = False, min_side: int = 480
) -> bytes:
    """PNG of who (rows) attends to whom (columns), streams in the order given.

    A cell is coloured by the key's kind, grey where there is no attention; thin lines part the
    streams. Each token is a square of whole pixels, so that the image has `min_side` or more.
    """
    meta = TokenMeta(*(np.concatenate(parts) for parts in zip(*streams, strict=True)))
    num = len(meta.segment)
    mask = dense_mask(meta, meta, text_reads_vae=text_reads_vae)
    colours = np.array([PIL.ImageColor.getrgb(c) for c in KIND_COLOURS], np.uint8)[meta.kind]
    image = np.where(mask[:, :, None], colours[None, :, :], np.array(_BACKGROUND, np.uint8))
    scale = max(1, -(-min_side // max(num, 1)))
    image = image.repeat(scale, 0).repeat(scale, 1)
    for edge in np.cumsum([len(s.segment) for s in streams])[:-1]:
        if 0 < edge < num:
            image[edge * scale - (scale > 2), :] = _LINE
            image[:, edge * scale - (scale > 2)] = _LINE
    # A handful of colours: a small file.
    return _png(PIL.Image.fromarray(image.astype(np.uint8)).quantize(16))


def _length(streams: list[TokenMeta]) -> int:
    return sum(len(s.segment) for s in streams)
