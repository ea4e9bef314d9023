"""The page's part on data: the packed row's documents, its fill and its attention mask."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import PIL.Image

from mogao_jax.tools.report import mask_picture
from mogao_jax.tools.report.curves import data_address
from mogao_jax.tools.report.data_view import token_meta
from mogao_jax.tools.report.run_folder import Run

_MAX_DOCUMENTS = 24
_MAX_TOKENS = 600  # of one document's text
_MAX_MASK_TOKENS = 1400


def data_section(run: Run) -> dict[str, Any] | None:
    """The packed row: documents, how full it is, its mask, and the mask of one document."""
    if run.sample is None:
        return None
    record, arrays = run.sample
    documents = record["documents"]
    shown = [_document(d, arrays) for d in documents[:_MAX_DOCUMENTS]]
    streams, vae = token_meta(arrays), bool(record["text_reads_vae"])
    row, num_row = mask_picture.mask_png(
        mask_picture.select(streams, None, _MAX_MASK_TOKENS), text_reads_vae=vae
    )
    masks = [
        {
            "title": "The whole row" if num_row == _total(record) else "The first documents",
            "text": f"{num_row:,} tokens. Each block on the diagonals is a document; "
            "packed documents never see each other.",
            "image": data_address(row, "image/png"),
        }
    ]
    one = _richest(documents)
    if one is not None:
        png, num = mask_picture.mask_png(
            mask_picture.select(streams, [one["segment"]], 0), text_reads_vae=vae
        )
        masks.append(
            {
                "title": f"Document {one['segment']} alone",
                "text": f"{num:,} tokens: the one with the most kinds of tokens.",
                "image": data_address(png, "image/png"),
            }
        )
    return {
        "documents": shown,
        "num_hidden": len(documents) - len(shown),
        "fill": [
            {"name": name, **part, "share": part["used"] / max(part["budget"], 1)}
            for name, part in record["fill"].items()
        ],
        "masks": masks,
        "legend": list(zip(mask_picture.KIND_NAMES, mask_picture.KIND_COLOURS, strict=True)),
    }


def _total(record: Mapping[str, Any]) -> int:
    return sum(part["used"] for name, part in record["fill"].items() if name.endswith(" tokens"))


def _richest(documents: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The document with the most kinds of tokens; of equals, the smallest."""

    def rank(d):
        num = d["num_und"] + d["num_clean"] + d["num_noised"]
        kinds = {kind for item in d["items"] for kind in item.get("copies", {})}
        return len(kinds) + any(i["type"] == "text" for i in d["items"]), -num

    return max(documents, key=rank, default=None)


_CONTEXT_WORDS = {
    "full": "full context",
    "image_only": "image-only context (text dropped)",
    "empty": "empty context (everything dropped)",
}
_COPY_WORDS = {
    "ViT": "ViT: read by what follows",
    "clean": "clean: read by later pictures",
    "noised": "noised: learned",
}


def _document(document: Mapping[str, Any], arrays: Mapping[str, Any]) -> dict[str, Any]:
    items, tokens_left = [], _MAX_TOKENS
    for item in document["items"]:
        if item["type"] == "text":
            tokens = item["tokens"][: max(tokens_left, 0)]
            tokens_left -= len(tokens)
            if tokens:
                items.append({**item, "tokens": tokens})
            continue
        pixels = arrays.get(f"image_{item['picture']}")
        picture = None if pixels is None else data_address(small_png(pixels), "image/png")
        size = "" if pixels is None else f"{pixels.shape[1]} x {pixels.shape[0]}"
        copies = [
            {"kind": kind, "count": n, "words": _COPY_WORDS[kind]}
            for kind, n in sorted(
                item["copies"].items(), key=lambda kn: list(_COPY_WORDS).index(kn[0])
            )
        ]
        items.append({**item, "picture": picture, "size": size, "copies": copies})
    return {
        **document,
        "items": items,
        "cut": tokens_left <= 0,
        "context_words": _CONTEXT_WORDS.get(document["context"], document["context"]),
    }


def small_png(pixels) -> bytes:
    """A picture uint8[H, W, 3] as PNG, its sides made 256 at most."""
    buffer = io.BytesIO()
    image = PIL.Image.fromarray(pixels)
    image.thumbnail((256, 256))
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
