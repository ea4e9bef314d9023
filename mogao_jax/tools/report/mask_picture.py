"""The attention mask of a row as a picture: one pixel or more per (query, key) pair."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image

from mogao_jax.sequence.masking import PADDING_SEGMENT, TokenMeta, dense_mask

# By the key's kind: text, ViT, clean VAE, noised VAE. Also used by the page's legend.
KIND_NAMES = ("text", "ViT", "clean VAE", "noised VAE")
KIND_COLOURS = ("#33658a", "#2a9d8f", "#e9a23b", "#c8553d")
_BACKGROUND = (243, 244, 246)
_LINE = (120, 126, 134)


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
) -> tuple[bytes, int]:
    """PNG of who (rows) attends to whom (columns), streams in the order given.

    A cell is coloured by the key's kind, grey where there is no attention; thin lines part the
    streams. Each token is a square of whole pixels, so that the picture has `min_side` or more.

    Returns:
      the PNG file's bytes, and the number of tokens on each side.
    """
    meta = TokenMeta(*(np.concatenate(parts) for parts in zip(*streams, strict=True)))
    num = len(meta.segment)
    mask = dense_mask(meta, meta, text_reads_vae=text_reads_vae)
    colours = np.array([_rgb(c) for c in KIND_COLOURS], np.uint8)[meta.kind]  # [num, 3]
    image = np.where(mask[:, :, None], colours[None, :, :], np.array(_BACKGROUND, np.uint8))
    scale = max(1, -(-min_side // max(num, 1)))
    image = image.repeat(scale, 0).repeat(scale, 1)
    for edge in np.cumsum([len(s.segment) for s in streams])[:-1]:
        if 0 < edge < num:
            image[edge * scale - (scale > 2), :] = _LINE
            image[:, edge * scale - (scale > 2)] = _LINE
    buffer = io.BytesIO()
    picture = PIL.Image.fromarray(image.astype(np.uint8))
    picture.quantize(16).save(buffer, "PNG", optimize=True)  # a handful of colours: a small file
    return buffer.getvalue(), num


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
