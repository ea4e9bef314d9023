"""Packing: laid-out documents into rows of fixed sizes, with a budget for each kind of thing.

Vector bin packing: a row has five budgets (und tokens, clean and noised tokens, images, ViT
patches), a document takes some of each. `Packer` keeps a pool of documents; each row starts with
the oldest of them, so nothing waits for ever, and then takes again and again the document whose
sizes point most in the direction of what is left (the dot product of both, in shares of the
budgets), until nothing fits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mogao_jax.config.geometry import LATENT_STRIDE, VIT_MERGE, VIT_PATCH
from mogao_jax.config.schema import PackingConfig
from mogao_jax.sequence.batch import (
    GenStream,
    ImageTable,
    PackedBatch,
    Sizes,
    UndStream,
    VitPatches,
    canvas,
    sizes,
)
from mogao_jax.sequence.masking import TEXT, VAE_CLEAN, VAE_NOISED, TokenMeta

# Field of `Sizes` -> field of the config section `packing`.
FIELDS = {
    "und": "und_tokens",
    "clean": "clean_tokens",
    "noised": "noised_tokens",
    "images": "images",
    "vit_patches": "vit_patches",
}
_WORDS = {
    "und": "und tokens (text and ViT)",
    "clean": "clean VAE tokens",
    "noised": "noised VAE tokens",
    "images": "images",
    "vit_patches": "ViT patches",
}


def budgets(config: PackingConfig) -> Sizes:
    """The sizes of one row."""
    return Sizes(**{name: getattr(config, field) for name, field in FIELDS.items()})


def exceeds(needed: Sizes, limits: Sizes) -> str | None:
    """Which budgets a document is over, as a message with the fields to raise; None if it fits."""
    over = [
        f"{n} {_WORDS[name]} (packing.{FIELDS[name]}={limit})"
        for name, n, limit in zip(Sizes._fields, needed, limits, strict=True)
        if n > limit
    ]
    return f"needs {', '.join(over)}" if over else None


# -------------------------------------------------------------------------------------- one row


def pack_row(
    documents: Sequence[PackedBatch],
    limits: Sizes,
    canvas_side: int,
    *,
    merge_size: int = VIT_MERGE,
) -> PackedBatch:
    """Puts documents one after the other into a row of fixed sizes.

    Segments, image numbers and ViT indices are renumbered; what is left is padding: segment 0,
    image -1, vit_index -1, weights 0. Each stream stays sorted by (segment, order), padding last.

    Args:
      documents: exact-size structures from `lay_out`; their sizes together fit `limits`.
      limits: the row's sizes.
      canvas_side: side of the image table's canvas, as in layout (config images.max_side).
      merge_size: ViT patches per side of a ViT token.
    Returns:
      A row: PackedBatch without a batch axis, arrays newly allocated.
    """
    row = empty_row(limits, canvas_side) if not documents else empty_like(documents[0], limits)
    und = clean = noised = images = patches = segments = vit_images = 0
    for doc in documents:
        n = sizes(doc)
        segment = slice(und, und + n.und)
        _copy(row.und, doc.und, segment)
        row.und.meta.segment[segment] += segments
        _shift(row.und.vit_index[segment], patches // merge_size**2)
        for into, part, start in ((row.clean, doc.clean, clean), (row.noised, doc.noised, noised)):
            where = slice(start, start + len(part.image))
            _copy(into, part, where)
            into.meta.segment[where] += segments
            _shift(into.image[where], images)
        _copy_images(row.images, doc.images, images)
        where = slice(patches, patches + n.vit_patches)
        _copy(row.vit, doc.vit, where)
        _shift(row.vit.segment[where], vit_images, above=0)
        segments += max((int(m.max()) for m in _segments(doc) if m.size), default=0)
        vit_images += int(doc.vit.segment.max(initial=0))
        und, clean, noised = und + n.und, clean + n.clean, noised + n.noised
        images, patches = images + n.images, patches + n.vit_patches
    return row


def _segments(doc: PackedBatch) -> tuple[np.ndarray, ...]:
    return doc.und.meta.segment, doc.clean.meta.segment, doc.noised.meta.segment


def _shift(values: np.ndarray, offset: int, above: int = -1) -> None:
    values += np.int32(offset) * (values > above)


def _copy(into: Any, part: Any, where: slice) -> None:
    """Copies every array of a NamedTuple, nested ones too."""
    for a, b in zip(into, part, strict=True):
        if isinstance(a, np.ndarray):
            a[where] = b
        elif a is not None:
            _copy(a, b, where)


def _copy_images(into: ImageTable, part: ImageTable, start: int) -> None:
    for i, (height, width) in enumerate(part.size):  # not the canvas: it is mostly empty
        if part.moments is None:
            into.pixels[start + i, :height, :width] = part.pixels[i, :height, :width]
        else:
            h, w = height // LATENT_STRIDE, width // LATENT_STRIDE
            into.moments[start + i, :h, :w] = part.moments[i, :h, :w]
    where = slice(start, start + len(part.size))
    for name in ("size", "uid", "context", "source"):
        getattr(into, name)[where] = getattr(part, name)


def empty_row(limits: Sizes, canvas_side: int, patch_values: int = 3 * VIT_PATCH**2) -> PackedBatch:
    """A row of nothing but padding, with room for `limits`.

    Args:
      canvas_side: side in pixels of the canvas of every image.
      patch_values: values of a ViT patch.
    """

    def zeros(dtype, *shape: int) -> np.ndarray:
        return np.zeros(shape, dtype)

    def meta(n: int, kind: int) -> TokenMeta:
        return TokenMeta(zeros(np.int32, n), zeros(np.int32, n), np.full(n, kind, np.int32))

    def gen(n: int, kind: int) -> GenStream:
        return GenStream(
            image=np.full(n, -1, np.int32),
            patch=zeros(np.int32, n),
            copy=zeros(np.int32, n),
            meta=meta(n, kind),
            positions=zeros(np.float32, n, 3),
            loss_weights=zeros(np.float32, n),
        )

    n, i, p = limits.und, limits.images, limits.vit_patches
    return PackedBatch(
        und=UndStream(
            tokens=zeros(np.int32, n),
            targets=zeros(np.int32, n),
            loss_weights=zeros(np.float32, n),
            meta=meta(n, TEXT),
            positions=zeros(np.float32, n, 3),
            vit_index=np.full(n, -1, np.int32),
            source=zeros(np.int32, n),
        ),
        clean=gen(limits.clean, VAE_CLEAN),
        noised=gen(limits.noised, VAE_NOISED),
        images=ImageTable(
            pixels=zeros(np.uint8, i, canvas_side, canvas_side, 3),
            size=zeros(np.int32, i, 2),
            uid=zeros(np.uint32, i),
            context=zeros(np.int32, i),
            source=zeros(np.int32, i),
        ),
        vit=VitPatches(
            pixels=zeros(np.uint8, p, patch_values),
            positions=zeros(np.int32, p, 2),
            segment=zeros(np.int32, p),
        ),
    )


def empty_like(part: PackedBatch, limits: Sizes) -> PackedBatch:
    """`empty_row` with the canvas and the encoded images (or none) of a document or a row."""
    images, vit = part.images, part.vit
    row = empty_row(limits, canvas(images)[0], vit.pixels.shape[-1])
    if images.moments is not None:
        moments = np.zeros((limits.images, *images.moments.shape[1:]), images.moments.dtype)
        none = row.images.pixels[:, :0, :0]
        row = row._replace(images=row.images._replace(pixels=none, moments=moments))
    if vit.features is not None:
        features = np.zeros((limits.vit_patches, vit.features.shape[-1]), vit.features.dtype)
        row = row._replace(vit=row.vit._replace(features=features))
    return row


def stack_rows(rows: Sequence[Any]) -> Any:
    """Stacks structures of equal sizes along a new first axis (rows to a batch, and so on)."""
    first = rows[0]
    if first is None:
        return None
    if isinstance(first, np.ndarray):
        return np.stack(rows)
    return type(first)(*(stack_rows(parts) for parts in zip(*rows, strict=True)))


# --------------------------------------------------------------------------------- choosing


def fill_shares(batch: PackedBatch) -> dict[str, float]:
    """Used share of the und tokens and of the gen tokens of a batch of any leading axes."""
    und = np.asarray(batch.und.meta.segment) > 0
    clean, noised = (np.asarray(s.meta.segment) > 0 for s in (batch.clean, batch.noised))
    gen = (clean.sum() + noised.sum()) / max(1, clean.size + noised.size)
    return {"und": float(und.mean()), "gen": float(gen)}


@dataclasses.dataclass
class FillStatistics:
    """How full rows were, from the start of a run: sums over rows, so they can be added up."""

    limits: Sizes
    rows: int = 0
    documents: int = 0
    used: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(5, np.int64))

    def add(self, documents: Sequence[Sizes]) -> None:
        self.rows += 1
        self.documents += len(documents)
        self.used += np.sum(np.array(documents, np.int64), axis=0)

    def shares(self) -> dict[str, float]:
        """Used share of each budget, and of the gen stream (clean and noised together)."""
        rows = max(self.rows, 1)
        limits = np.array(self.limits, np.float64)
        shares = dict(zip(Sizes._fields, (self.used / limits / rows).tolist(), strict=True))
        shares["gen"] = float(self.used[1:3].sum() / limits[1:3].sum() / rows)
        return shares


class Packer:
    """Chooses which documents share a row. Holds anything; only the sizes matter.

    Use: `add` documents while `wanted` is positive, then `take_row`. Equal calls give equal rows.
    """

    def __init__(self, limits: Sizes, pool: int):
        """`limits`: the row's sizes. `pool`: how many documents are held to choose from."""
        self.fill = FillStatistics(limits)
        self._limits = np.array(limits, np.float64)
        self._capacity = pool
        self._held: list[Any] = []  # oldest first
        self._sizes = np.zeros((0, 5), np.float64)
        self._new: list[Sizes] = []  # sizes of the last of `_held`, not in `_sizes` yet

    @property
    def held(self) -> list[Any]:
        """What waits in the pool, oldest first."""
        return list(self._held)

    @property
    def wanted(self) -> int:
        """How many documents the pool has room for."""
        return self._capacity - len(self._held)

    def add(self, item: Any, size: Sizes) -> None:
        """Adds a document that fits a row alone (see `exceeds`)."""
        problem = exceeds(size, self.fill.limits)
        if problem:
            raise ValueError(f"A document {problem}; check with exceeds() before adding.")
        self._held.append(item)
        self._new.append(size)

    def take_row(self) -> list[Any]:
        """Removes and returns the documents of one row, the oldest first; [] from an empty pool."""
        if not self._held:
            return []
        if self._new:
            self._sizes = np.concatenate([self._sizes, np.array(self._new, np.float64)])
            self._new = []
        shares = self._sizes / self._limits
        left = self._limits - self._sizes[0]
        chosen = [0]
        free = np.ones(len(self._held), bool)
        free[0] = False
        while True:  # at most as many turns as documents; each is vectorised over the pool
            fits = free & (self._sizes <= left).all(axis=1)
            if not fits.any():
                break
            # The document that fills what is left most evenly: picking the largest instead would
            # use up one budget and strand the others.
            score = shares @ (left / self._limits)
            best = int(np.argmax(np.where(fits, score, -1.0)))  # the oldest of equals
            chosen.append(best)
            free[best] = False
            left = left - self._sizes[best]
        self.fill.add([Sizes(*map(int, self._sizes[i])) for i in chosen])
        row = [self._held[i] for i in chosen]
        self._held = [item for item, keep in zip(self._held, free, strict=True) if keep]
        self._sizes = self._sizes[free]
        return row
