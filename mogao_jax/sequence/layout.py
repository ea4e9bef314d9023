"""Layout: a document becomes tokens in two streams, with everything the model must know of them.

What each image contributes (docs/method.md section 4, "ECTF"):

- a *target* image gets noised VAE tokens, which carry the flow loss: one copy, or several
  (`noised_copies`), each noised by itself and unseen by the others;
- any image gets its ViT tokens where anything follows it;
- any image gets its clean VAE tokens where a later image is generated. Text never reads them, so
  a document that is only understood carries none.

What nothing reads is not laid out; `lay_out_everything` lays it out all the same, which changes
cost and nothing else. Where tokens stand (order, T/H/W) is the cursor's to say (cursor.py).

A document is laid out in one or more *forms* (forms.py), one for each context that its images
are generated in. Each form is a segment.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from mogao_jax.config.geometry import VAE_GRID
from mogao_jax.config.schema import MogaoConfig
from mogao_jax.errors import DocumentError
from mogao_jax.images import native_pixels, vae_grid, vit_input
from mogao_jax.sequence.batch import (
    GenStream,
    ImageTable,
    PackedBatch,
    Sizes,
    UndStream,
    VitPatches,
)
from mogao_jax.sequence.cursor import Cursor, Placed
from mogao_jax.sequence.document import Document, Image
from mogao_jax.sequence.elements import (
    Element,
    ImageRef,
    Token,
    TokenizerLike,
    apply_chat_template,
)
from mogao_jax.sequence.forms import Form, draw_contexts, make_forms
from mogao_jax.sequence.masking import TEXT, VAE_CLEAN, VAE_NOISED, VIT, TokenMeta
from mogao_jax.sequence.packing import empty_row


def lay_out(
    document: Document,
    *,
    tokenizer: TokenizerLike,
    config: MogaoConfig,
    rng: np.random.Generator,
    source: int = 0,
    ntp_weight: float = 1.0,
    flow_weight: float = 1.0,
    context: int | None = None,
    require_loss: bool = True,
) -> PackedBatch:
    """Lays out one document.

    Args:
      document: the document; its images are loaded here, at native resolution.
      tokenizer: see TokenizerLike.
      config: its sections images, layout and vit are read.
      rng: draws whether a single image's end is trained (`layout.end_after_image`) and the
        guidance context of each target image; nothing else is random.
      source: index of the data source, for metrics.
      ntp_weight, flow_weight: weights of the source's text and noised tokens.
      context: FULL, IMAGE_ONLY or EMPTY puts every target image into that context.
      require_loss: refuse documents in which nothing is learned.
    Returns:
      A PackedBatch of exact sizes: segments, images and ViT images numbered within the document.
    Raises:
      DocumentError: an image cannot be read, or nothing is learned.
    """
    layout = config.layout
    elements = apply_chat_template(
        document, tokenizer, end_after_image=layout.end_after_image, rng=rng
    )
    items = [item for item in document.items if isinstance(item, Image)]
    contexts = draw_contexts(items, layout, rng, context)
    forms = make_forms(elements, contexts, layout)
    if require_loss:
        forms = [form for form in forms if form.is_trained]
        if not forms:
            raise DocumentError(
                f"document {document.id!r}: nothing to learn; set loss to true on some item."
            )
    builder = _Builder(config, items, tokenizer.image_pad, source)
    for segment, form in enumerate(forms, start=1):
        builder.add(form, segment)
    batch = builder.finish(document.id, contexts)
    return batch._replace(
        und=_weighted(batch.und, ntp_weight), noised=_weighted(batch.noised, flow_weight)
    )


class _Builder:
    """Emits forms into streams; loads each image once, however many copies it has."""

    def __init__(self, config: MogaoConfig, items: Sequence[Image], image_pad: int, source: int):
        self._config, self._items = config, items
        self._image_pad, self._source = image_pad, source
        self._und: list[UndStream] = []
        self._clean: list[GenStream] = []
        self._noised: list[GenStream] = []
        self._vit: list[VitPatches] = []
        self._pixels: dict[int, np.ndarray] = {}  # image -> pixels on the VAE grid
        self._table: dict[int, int] = {}  # image -> row of the image table
        self._vit_first: dict[int, int] = {}  # image -> its first merged ViT token
        self._vit_grid: dict[int, tuple[int, int]] = {}
        self._num_vit_tokens = 0

    def add(self, form: Form, segment: int) -> None:
        layout, cursor = self._config.layout, Cursor()
        following = [*form.elements[1:], None]
        pairs = zip(form.elements, following, strict=True)
        for kind, run in itertools.groupby(pairs, key=lambda pair: type(pair[0])):
            if kind is Token:
                cursor = self._add_text(list(run), segment, cursor)
                continue
            for element, _ in run:
                if isinstance(element, ImageRef):
                    cursor = self._add_image(element.index, form, segment, cursor)
                else:
                    cursor = cursor.skip(layout)

    def _add_text(
        self, run: list[tuple[Any, Element | None]], segment: int, cursor: Cursor
    ) -> Cursor:
        """Adds tokens, each given with the element after it, which is its target if trained."""
        n = len(run)
        targets = [b.id if isinstance(b, Token) and b.trained else None for _, b in run]
        placed, after = cursor.text(n, self._config.layout)
        self._und.append(
            UndStream(
                tokens=np.array([token.id for token, _ in run]),
                targets=np.array([target or 0 for target in targets]),
                loss_weights=np.array([float(target is not None) for target in targets]),
                meta=_meta(segment, placed, TEXT),
                positions=placed.positions,
                vit_index=np.full(n, -1),
                source=np.full(n, self._source),
            )
        )
        return after

    def _add_image(self, index: int, form: Form, segment: int, cursor: Cursor) -> Cursor:
        """Adds the copies that this form has of the image."""
        layout = self._config.layout
        if index not in self._pixels:
            self._pixels[index] = native_pixels(self._items[index], self._config.images)
        grid = vae_grid(self._pixels[index])
        placed, after = cursor.image(
            grid,
            self._load_vit(index) if index in form.vit else None,
            layout,
            num_copies=layout.noised_copies if index in form.noised else 0,
        )
        for copy, where in enumerate(placed.noised):
            part = self._gen_stream(index, _meta(segment, where, VAE_NOISED), where, copy)
            self._noised.append(part)
        if placed.vit is not None:
            n = len(placed.vit)
            self._und.append(
                UndStream(
                    tokens=np.full(n, self._image_pad),
                    targets=np.zeros(n),
                    loss_weights=np.zeros(n),
                    meta=_meta(segment, placed.vit, VIT),
                    positions=placed.vit.positions,
                    vit_index=self._vit_first[index] + np.arange(n),
                    source=np.full(n, self._source),
                )
            )
        if index in form.clean:
            meta = _meta(segment, placed.clean, VAE_CLEAN)
            part = self._gen_stream(index, meta, placed.clean)
            self._clean.append(part._replace(loss_weights=np.zeros(len(placed.clean))))
        return after

    def _gen_stream(self, index: int, meta: TokenMeta, placed: Placed, copy: int = 0) -> GenStream:
        n = len(placed)
        row = self._table.setdefault(index, len(self._table))
        y, x = (a.reshape(-1) for a in np.indices(vae_grid(self._pixels[index])))
        per_image = self._config.layout.flow_weight_per == "image"
        return GenStream(
            image=np.full(n, row),
            patch=y * (self._config.images.max_side // VAE_GRID) + x,
            copy=np.full(n, copy),
            meta=meta,
            positions=placed.positions,
            loss_weights=np.full(n, 1.0 / n if per_image else 1.0),
        )

    def _load_vit(self, index: int) -> tuple[int, int]:
        """The image's grid of ViT tokens, its patches added if they are not there yet."""
        if index not in self._vit_first:
            config = self._config
            seen = vit_input(self._pixels[index], config.images, config.vit)
            self._vit_grid[index] = seen.grid
            self._vit_first[index] = self._num_vit_tokens
            self._num_vit_tokens += len(seen.patches) // config.vit.merge_size**2
            segment = np.full(len(seen.patches), len(self._vit_first))
            self._vit.append(VitPatches(seen.patches, seen.positions, segment))
        return self._vit_grid[index]

    def finish(self, document_id: str, contexts: list[int]) -> PackedBatch:
        side, images = self._config.images.max_side, list(self._table)
        canvas = np.zeros((len(images), side, side, 3), np.uint8)
        size = np.zeros((len(images), 2), np.int32)
        for row, index in enumerate(images):
            pixels = self._pixels[index]
            height, width = size[row] = pixels.shape[:2]
            canvas[row, :height, :width] = pixels
        # Its arrays are empty and have the right dtypes and trailing axes.
        nothing = empty_row(Sizes(0, 0, 0, 0, 0), side, 3 * self._config.vit.patch_size**2)
        return PackedBatch(
            und=_joined([nothing.und, *self._und]),
            clean=_joined([nothing.clean, *self._clean]),
            noised=_joined([nothing.noised, *self._noised]),
            images=ImageTable(
                pixels=canvas,
                size=size,
                uid=np.array([image_uid(document_id, i) for i in images], np.uint32),
                context=np.array([contexts[i] for i in images], np.int32),
                source=np.full(len(images), self._source, np.int32),
            ),
            vit=_joined([nothing.vit, *self._vit]),
        )


def _meta(segment: int, placed: Placed, kind: int) -> TokenMeta:
    n = len(placed)
    return TokenMeta(np.full(n, segment), placed.order, np.full(n, kind))


def _joined(parts: Sequence[Any]) -> Any:
    """Structures joined along their first axis, with the dtypes of the first one."""
    first = parts[0]
    if first is None:
        return None
    if isinstance(first, np.ndarray):
        return np.concatenate(parts).astype(first.dtype)
    return type(first)(*(_joined(column) for column in zip(*parts, strict=True)))


def _weighted(stream: Any, weight: float) -> Any:
    return stream._replace(loss_weights=stream.loss_weights * np.float32(weight))


def image_uid(document_id: str, index: int) -> int:
    """Identity of a document's image, uint32: its noise is the same wherever it is packed."""
    return zlib.crc32(f"{document_id}\0{index}".encode())
