"""Layout: a document becomes tokens in two streams, with everything the model must know of them.

What each image contributes (docs/method.md section 4, "ECTF"):

- a *target* image gets noised VAE tokens, which carry the flow loss: one copy, or several
  (`noised_copies`), each noised by itself and unseen by the others;
- any image gets its ViT tokens where anything follows it;
- any image gets its clean VAE tokens where a later image is generated. Text never reads them, so
  a document that is only understood carries none.

What nothing reads is not laid out; `lay_out_everything` lays it out all the same, which changes
cost and nothing else.

A document is laid out in one or more *forms* (forms.py), one for each context that its images
are generated in. Each form is a segment.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from mogao_jax.config.geometry import VAE_GRID
from mogao_jax.config.schema import ImageConfig, LayoutConfig, VitConfig
from mogao_jax.errors import DocumentError
from mogao_jax.sequence.batch import (
    GenStream,
    ImageTable,
    PackedBatch,
    UndStream,
    VitPatches,
)
from mogao_jax.sequence.document import Document, Image
from mogao_jax.sequence.elements import ImageRef, Token, TokenizerLike, render
from mogao_jax.sequence.forms import Form, draw_contexts, make_forms
from mogao_jax.sequence.geometry import (
    native_pixels,
    text_positions,
    vae_grid,
    vae_positions,
    vit_input,
    vit_positions,
)
from mogao_jax.sequence.masking import TEXT, VAE_CLEAN, VAE_NOISED, VIT, TokenMeta


def lay_out(
    document: Document,
    *,
    tokenizer: TokenizerLike,
    images: ImageConfig,
    layout: LayoutConfig,
    vit: VitConfig,
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
      images, layout, vit: the config's sections.
      rng: draws whether a single picture's end is trained (`layout.end_after_image`) and the
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
    elements = render(document, tokenizer, end_after_image=layout.end_after_image, rng=rng)
    items = [item for item in document.items if isinstance(item, Image)]
    contexts = draw_contexts(items, layout, rng, context)
    forms = make_forms(elements, contexts, layout)
    if require_loss:
        forms = [form for form in forms if form.is_trained]
        if not forms:
            raise DocumentError(
                f"document {document.id!r}: nothing to learn; set loss to true on some item."
            )
    builder = _Builder(images, layout, vit, tokenizer.image_pad)
    for segment, form in enumerate(forms, start=1):
        builder.add(form, segment, items)
    return builder.finish(document, contexts, source, ntp_weight, flow_weight)


# ------------------------------------------------------------------------------------ streams


class _Stream:
    """Columns of one stream under construction."""

    def __init__(self):
        self.columns: dict[str, list[np.ndarray]] = {}

    def add(self, **columns) -> None:
        for name, values in columns.items():
            self.columns.setdefault(name, []).append(np.asarray(values))

    def get(self, name: str, dtype, trailing: tuple[int, ...] = ()) -> np.ndarray:
        parts = self.columns.get(name)
        if not parts:
            return np.zeros((0, *trailing), dtype)
        return np.concatenate(parts).astype(dtype)

    def meta(self) -> TokenMeta:
        return TokenMeta(*(self.get(n, np.int32) for n in ("segment", "order", "kind")))


class _Builder:
    """Emits forms into streams; loads each image once, however many copies it has."""

    def __init__(self, images: ImageConfig, layout: LayoutConfig, vit: VitConfig, image_pad: int):
        self._images, self._layout, self._vit_config = images, layout, vit
        self._image_pad = image_pad
        self._und, self._clean, self._noised = _Stream(), _Stream(), _Stream()
        self._vit = _Stream()
        self._pixels: dict[int, np.ndarray] = {}  # picture -> pixels on the VAE grid
        self._table: dict[int, int] = {}  # picture -> row of the image table
        self._vit_first: dict[int, int] = {}  # picture -> its first merged ViT token
        self._vit_grid: dict[int, tuple[int, int]] = {}
        self._num_vit_tokens = 0

    def add(self, form: Form, segment: int, items: Sequence[Image]) -> None:
        order = 0  # like T, but counting each ViT token if they are causal
        run: list[tuple[int, int, float, int, int]] = []  # token, target, weight, order, T
        elements = form.elements
        for position, (element, t) in enumerate(zip(elements, form.t_ids, strict=True)):
            if isinstance(element, Token):
                following = elements[position + 1] if position + 1 < len(elements) else None
                is_target = isinstance(following, Token) and following.trained
                target = following.id if isinstance(following, Token) and is_target else 0
                run.append((element.id, target, float(is_target), order, t))
                order += 1
                continue
            self._add_text(run, segment)
            run = []
            order += self._add_picture(element, form, segment, order, t, items)
        self._add_text(run, segment)

    def _add_text(self, run, segment: int) -> None:
        if not run:
            return
        tokens, targets, weights, orders, t_ids = zip(*run, strict=True)
        n = len(run)
        self._und.add(
            tokens=tokens,
            targets=targets,
            loss_weights=weights,
            segment=np.full(n, segment),
            order=orders,
            kind=np.full(n, TEXT),
            positions=text_positions(np.array(t_ids), self._layout.text_positions),
            vit_index=np.full(n, -1),
        )

    def _add_picture(
        self, picture: ImageRef, form: Form, segment: int, order: int, t: int, items
    ) -> int:
        """Adds the copies that this form has of the picture; returns how far `order` advances."""
        index = picture.index
        first = order  # noised copies come first, each at an order of its own
        if index in form.noised:
            copies = self._layout.noised_copies
            for copy in range(copies):
                order_of_copy = order + copy
                self._add_vae(
                    self._noised, index, VAE_NOISED, segment, order_of_copy, t, items, copy
                )
            first += copies - 1
        span = 1
        if index in form.vit:
            self._load_vit(index, items[index])
            rows, columns = self._vit_grid[index]
            n = rows * columns
            is_causal = self._layout.vit_attention == "causal"
            span = n if is_causal else 1
            self._und.add(
                tokens=np.full(n, self._image_pad),
                targets=np.zeros(n),
                loss_weights=np.zeros(n),
                segment=np.full(n, segment),
                order=first + np.arange(n) if is_causal else np.full(n, first),
                kind=np.full(n, VIT),
                positions=vit_positions(t, (rows, columns), self._vae_grid(index, items[index])),
                vit_index=self._vit_first[index] + np.arange(n),
            )
        if index in form.clean:  # after its own ViT tokens, so it reads all of them
            self._add_vae(self._clean, index, VAE_CLEAN, segment, first + span - 1, t, items)
        return first + span - order

    def _add_vae(self, stream: _Stream, index, kind, segment, order, t, items, copy=0) -> None:
        rows, columns = self._vae_grid(index, items[index])
        n = rows * columns
        table_row = self._table.setdefault(index, len(self._table))
        y, x = (a.reshape(-1) for a in np.mgrid[:rows, :columns])
        per_image = self._layout.flow_weight_per == "image"
        weight = 0.0 if kind == VAE_CLEAN else 1.0 / n if per_image else 1.0
        stream.add(
            image=np.full(n, table_row),
            patch=y * (self._images.max_side // VAE_GRID) + x,
            copy=np.full(n, copy),
            segment=np.full(n, segment),
            order=np.full(n, order),
            kind=np.full(n, kind),
            positions=vae_positions(t, (rows, columns)),
            loss_weights=np.full(n, weight),
        )

    def _load(self, index: int, item: Image) -> np.ndarray:
        if index not in self._pixels:
            self._pixels[index] = native_pixels(item, self._images)
        return self._pixels[index]

    def _vae_grid(self, index: int, item: Image) -> tuple[int, int]:
        return vae_grid(self._load(index, item))

    def _load_vit(self, index: int, item: Image) -> None:
        if index in self._vit_first:
            return
        seen = vit_input(self._load(index, item), self._images, self._vit_config)
        self._vit_grid[index] = seen.grid
        self._vit_first[index] = self._num_vit_tokens
        self._num_vit_tokens += len(seen.patches) // self._vit_config.merge_size**2
        segment = np.full(len(seen.patches), len(self._vit_first))
        self._vit.add(pixels=seen.patches, positions=seen.positions, segment=segment)

    def finish(
        self,
        document: Document,
        contexts: list[int],
        source: int,
        ntp_weight: float,
        flow_weight: float,
    ) -> PackedBatch:
        side = self._images.max_side
        canvas = np.zeros((len(self._table), side, side, 3), np.uint8)
        size = np.zeros((len(self._table), 2), np.int32)
        for index, row in self._table.items():
            pixels = self._pixels[index]
            height, width = size[row] = pixels.shape[:2]
            canvas[row, :height, :width] = pixels
        pictures = list(self._table)
        und = self._und
        num_und = len(und.get("tokens", np.int32))
        vit = self._vit_config
        return PackedBatch(
            und=UndStream(
                tokens=und.get("tokens", np.int32),
                targets=und.get("targets", np.int32),
                loss_weights=und.get("loss_weights", np.float32) * np.float32(ntp_weight),
                meta=und.meta(),
                positions=und.get("positions", np.float32, (3,)),
                vit_index=und.get("vit_index", np.int32),
                source=np.full(num_und, source, np.int32),
            ),
            clean=_gen_stream(self._clean, 0.0),
            noised=_gen_stream(self._noised, flow_weight),
            images=ImageTable(
                pixels=canvas,
                size=size,
                uid=np.array([image_uid(document.id, i) for i in pictures], np.uint32),
                context=np.array([contexts[i] for i in pictures], np.int32),
                source=np.full(len(pictures), source, np.int32),
            ),
            vit=VitPatches(
                pixels=self._vit.get("pixels", np.uint8, (3 * vit.patch_size**2,)),
                positions=self._vit.get("positions", np.int32, (2,)),
                segment=self._vit.get("segment", np.int32),
            ),
        )


def _gen_stream(stream: _Stream, flow_weight: float) -> GenStream:
    return GenStream(
        image=stream.get("image", np.int32),
        patch=stream.get("patch", np.int32),
        copy=stream.get("copy", np.int32),
        meta=stream.meta(),
        positions=stream.get("positions", np.float32, (3,)),
        loss_weights=stream.get("loss_weights", np.float32) * np.float32(flow_weight),
    )


def image_uid(document_id: str, index: int) -> int:
    """Identity of a document's image, uint32: its noise is the same wherever it is packed."""
    return zlib.crc32(f"{document_id}\0{index}".encode())
