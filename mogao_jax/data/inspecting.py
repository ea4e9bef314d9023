"""`mogao data`: a laid-out document as text; sizes of documents, budgets, fill and speed."""

from __future__ import annotations

import math
import time
from typing import NamedTuple

import numpy as np

from mogao_jax.config.schema import MogaoConfig
from mogao_jax.data.pipeline import RowIterator
from mogao_jax.data.preparing import Preparer, make_preparer
from mogao_jax.errors import DataError, DocumentError
from mogao_jax.sequence.batch import CONTEXTS, GenStream, PackedBatch, Sizes, sizes
from mogao_jax.sequence.masking import VIT
from mogao_jax.sequence.packing import stack_rows
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


# ------------------------------------------------------------------------- sizes, fill and speed

# A little slack for what should not close rows, and the multiple that each size is rounded to.
SLACK = (1.0, 1.0, 1.0, 1.05, 1.05)  # in the order of Sizes
MULTIPLE = Sizes(und=16, clean=4, noised=4, images=1, vit_patches=16)


def measure_sizes(preparer: Preparer, num_documents: int) -> dict[str, np.ndarray]:
    """Sizes of documents drawn from the mixture, over-long ones too: {source: int64[n, 5]}."""
    draws = preparer.draws()
    found: dict[str, list[Sizes]] = {}
    for number in range(num_documents):
        draw = draws[number]
        try:
            laid_out = preparer.lay_out(preparer.document(draw), draw)
        except DocumentError:
            continue
        found.setdefault(preparer.names[draw.source], []).append(sizes(laid_out))
    if not found:
        raise DataError("no document of the mixture could be used; see 'mogao data inspect'.")
    return {name: np.array(rows, np.int64) for name, rows in sorted(found.items())}


def suggest_budgets(found: dict[str, np.ndarray], und_tokens: int) -> Sizes:
    """Budgets in proportion to the mixture, so that all fill up together.

    Args:
      found: from `measure_sizes`.
      und_tokens: wanted size of the und stream; the others follow. Grown, if need be, until the
        largest document fits.
    """
    everything = np.concatenate(list(found.values()))
    mean = np.maximum(everything.mean(axis=0), 1e-9) * np.array(SLACK)
    scale = max(und_tokens / mean[0], *(everything.max(axis=0)[:1] / mean[:1]))
    budgets = []
    for value, largest, multiple in zip(
        mean * scale, everything.max(axis=0), MULTIPLE, strict=True
    ):
        budgets.append(max(1, math.ceil(max(value, largest) / multiple)) * multiple)
    return Sizes(*budgets)


class FillReport(NamedTuple):
    """Figures of a stretch of the pipeline."""

    shares: dict[str, float]  # used share of each budget, and of 'gen'
    rows: int
    documents: int
    seconds: float
    tokens: int  # without padding
    num_broken: int
    num_over_long: int


def measure_fill(config: MogaoConfig, tokenizer: Tokenizer, num_rows: int) -> FillReport:
    """Packs rows and stacks them to batches in this process, and times it after the first batch."""
    rows = RowIterator(make_preparer(config, tokenizer, "train"), 0, 1)
    per_batch = config.train.global_batch_rows
    next(rows)  # fills the pool
    documents = rows.fill.documents
    used = rows.fill.used.copy()
    start, done = time.perf_counter(), 0
    while done < num_rows:
        count = min(per_batch, num_rows - done)
        stack_rows([next(rows).batch for _ in range(count)])
        done += count
    seconds = time.perf_counter() - start
    return FillReport(
        shares=rows.fill.shares(),
        rows=done,
        documents=rows.fill.documents - documents,
        seconds=seconds,
        tokens=int((rows.fill.used - used)[:3].sum()),
        num_broken=rows.broken.num_broken,
        num_over_long=rows.broken.num_over_long,
    )
