"""A laid-out document as text: every token of it, as the model gets it."""

from __future__ import annotations

import numpy as np

from mogao_jax.sequence.batch import CONTEXTS, GenStream, PackedBatch, sizes
from mogao_jax.sequence.masking import VIT
from mogao_jax.tokenizer import Tokenizer


def describe(document: PackedBatch, tokenizer: Tokenizer) -> str:
    """One line per text token and per image copy; a line of sizes first.

    Args:
      document: as from `lay_out` (exact sizes); a packed row works as well.
    """
    needs = ", ".join(f"{n} {name}" for name, n in sizes(document)._asdict().items())
    lines = [f"sizes: {needs}"]
    segments = sorted({int(s) for s in document.und.meta.segment} - {0})
    for segment in segments:
        lines.append(f"segment {segment}")
        lines.append("  stream  order  position (T, H, W)    token -> target")
        entries = _und_lines(document, segment, tokenizer)
        entries += _gen_lines(document, document.clean, "clean", segment)
        entries += _gen_lines(document, document.noised, "noised", segment)
        lines += [f"  {text}" for _, text in sorted(entries, key=lambda entry: entry[0])]
    return "\n".join(lines)


def _position(positions: np.ndarray) -> str:
    """The range of (T, H, W) that tokens cover."""
    low, high = positions.min(axis=0), positions.max(axis=0)
    parts = [f"{a:g}" if a == b else f"{a:g}..{b:g}" for a, b in zip(low, high, strict=True)]
    return f"({', '.join(parts)})"


def _line(stream: str, order: int, positions: np.ndarray, text: str) -> str:
    return f"{stream:<7} {order:>5}  {_position(positions):<20}  {text}"


def _show(token: int, tokenizer: Tokenizer) -> str:
    if token in tokenizer.special_ids:
        return tokenizer.decode([token], keep_special=True)
    text = tokenizer.decode([token])
    return repr(text) if "\ufffd" not in text else f"<{token}>"


def _und_lines(document: PackedBatch, segment: int, tokenizer: Tokenizer) -> list:
    und = document.und
    index = np.flatnonzero(und.meta.segment == segment)
    entries, i = [], 0
    while i < len(index):
        here = index[i]
        order = int(und.meta.order[here])
        if und.meta.kind[here] == VIT:
            image = _vit_image(document, int(und.vit_index[here]))
            end = i
            while (
                end < len(index)
                and und.meta.kind[index[end]] == VIT
                and _vit_image(document, int(und.vit_index[index[end]])) == image
            ):
                end += 1
            tokens = index[i:end]
            text = f"{len(tokens)} ViT tokens of ViT image {image}"
            entries.append(((order, 0, i), _line("vit", order, und.positions[tokens], text)))
            i = end
            continue
        text = _show(int(und.tokens[here]), tokenizer)
        weight = float(und.loss_weights[here])
        if weight:
            text += f" -> {_show(int(und.targets[here]), tokenizer)}  weight {weight:g}"
        entries.append(((order, 0, i), _line("text", order, und.positions[here][None], text)))
        i += 1
    return entries


def _vit_image(document: PackedBatch, vit_index: int) -> int:
    """The number of the ViT image that a merged token belongs to."""
    total = max(1, int((document.vit.segment > 0).sum()))
    tokens = max(1, int(document.und.vit_index.max()) + 1)
    return int(document.vit.segment[vit_index * max(1, total // tokens)])


def _gen_lines(document: PackedBatch, stream: GenStream, name: str, segment: int) -> list:
    entries = []
    mine = stream.meta.segment == segment
    for image in sorted({int(i) for i in stream.image[mine]}):
        tokens = np.flatnonzero(mine & (stream.image == image))
        order = int(stream.meta.order[tokens[0]])
        height, width = (int(n) for n in document.images.size[image])
        text = f"{len(tokens)} tokens of image {image} ({height} x {width} pixels)"
        if name == "noised":
            context = CONTEXTS[int(document.images.context[image])]
            weight = float(stream.loss_weights[tokens].sum())
            text += f", {context} context, weight {weight:g} in all"
        copy = 1 if name == "clean" else 2
        entries.append(((order, copy, image), _line(name, order, stream.positions[tokens], text)))
    return entries
