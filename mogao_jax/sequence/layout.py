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

from mogao_jax import images as image_ops
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
from mogao_jax.sequence.forms import Form, draw_contexts, make_forms
from mogao_jax.sequence.masking import TEXT, VAE_CLEAN, VAE_NOISED, VIT, TokenMeta
from mogao_jax.sequence.render import Picture, Token, TokenizerLike, render

VAE_GRID = 16  # pixels per VAE token: 8x downsampling, then 2x2 patches


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
      rng: draws the guidance context of each target image; nothing else is random.
      source: index of the data source, for metrics.
      ntp_weight, flow_weight: weights of the source's text and noised tokens.
      context: FULL, IMAGE_ONLY or EMPTY puts every target image into that context.
      require_loss: refuse documents in which nothing is learned.
    Returns:
      A PackedBatch of exact sizes: segments, images and ViT images numbered within the document.
    Raises:
      DocumentError: an image cannot be read, or nothing is learned.
    """
    elements = render(document, tokenizer, end_after_image=layout.end_after_image)
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
        return TokenMeta(*(self.get(n, np.int32) for n in ("segment", "time", "kind")))


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
        order = 0  # attention's time: like T, but counting each ViT token if they are causal
        run: list[tuple[int, int, float, int, int]] = []  # token, target, weight, order, T
        elements = form.elements
        for position, (element, time) in enumerate(zip(elements, form.times, strict=True)):
            if isinstance(element, Token):
                following = elements[position + 1] if position + 1 < len(elements) else None
                is_target = isinstance(following, Token) and following.trained
                target = following.id if isinstance(following, Token) and is_target else 0
                run.append((element.id, target, float(is_target), order, time))
                order += 1
                continue
            self._add_text(run, segment)
            run = []
            order += self._add_picture(element, form, segment, order, time, items)
        self._add_text(run, segment)

    def _add_text(self, run, segment: int) -> None:
        if not run:
            return
        tokens, targets, weights, orders, times = zip(*run, strict=True)
        n = len(run)
        t = np.array(times, np.float32)
        zero = t if self._layout.text_positions == "thw" else np.zeros_like(t)
        self._und.add(
            tokens=tokens,
            targets=targets,
            loss_weights=weights,
            segment=np.full(n, segment),
            time=orders,
            kind=np.full(n, TEXT),
            positions=np.stack([t, zero, zero], -1),
            vit_index=np.full(n, -1),
        )

    def _add_picture(
        self, picture: Picture, form: Form, segment: int, order: int, time: int, items
    ) -> int:
        """Adds the copies that this form has of the picture; returns how far `order` advances."""
        index = picture.index
        first = order  # noised copies come first, each at an attention time of its own
        if index in form.noised:
            copies = self._layout.noised_copies
            for copy in range(copies):
                time_of_copy = order + copy
                self._add_vae(
                    self._noised, index, VAE_NOISED, segment, time_of_copy, time, items, copy
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
                time=first + np.arange(n) if is_causal else np.full(n, first),
                kind=np.full(n, VIT),
                positions=_vit_positions(
                    time, (rows, columns), self._vae_grid(index, items[index])
                ),
                vit_index=self._vit_first[index] + np.arange(n),
            )
        if index in form.clean:  # after its own ViT tokens, so it reads all of them
            self._add_vae(self._clean, index, VAE_CLEAN, segment, first + span - 1, time, items)
        return first + span - order

    def _add_vae(self, stream: _Stream, index, kind, segment, order, time, items, copy=0) -> None:
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
            time=np.full(n, order),
            kind=np.full(n, kind),
            positions=np.stack([np.full(n, time), y, x], -1),
            loss_weights=np.full(n, weight),
        )

    def _load(self, index: int, item: Image) -> np.ndarray:
        if index not in self._pixels:
            pixels, config = image_ops.load_pixels(item), self._images
            height, width = pixels.shape[:2]
            height, width = image_ops.target_size(
                height,
                width,
                max_pixels=config.max_pixels,
                min_pixels=config.min_pixels,
                grid=VAE_GRID,
                max_side=config.max_side,
            )
            self._pixels[index] = image_ops.resize(pixels, height, width)
        return self._pixels[index]

    def _vae_grid(self, index: int, item: Image) -> tuple[int, int]:
        height, width = self._load(index, item).shape[:2]
        return height // VAE_GRID, width // VAE_GRID

    def _load_vit(self, index: int, item: Image) -> None:
        if index in self._vit_first:
            return
        pixels, config, vit = self._load(index, item), self._images, self._vit_config
        height, width = pixels.shape[:2]
        height, width = image_ops.vit_size(
            height, width, mode=config.vit_resize, vit_max_pixels=config.vit_max_pixels
        )
        patches, positions = image_ops.vit_patches(
            image_ops.resize(pixels, height, width),
            patch_size=vit.patch_size,
            merge_size=vit.merge_size,
        )
        block = vit.patch_size * vit.merge_size
        self._vit_grid[index] = (height // block, width // block)
        self._vit_first[index] = self._num_vit_tokens
        self._num_vit_tokens += len(patches) // vit.merge_size**2
        segment = np.full(len(patches), len(self._vit_first))
        self._vit.add(pixels=patches, positions=positions, segment=segment)

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


def _vit_positions(time: int, vit_grid: tuple[int, int], vae_grid: tuple[int, int]) -> np.ndarray:
    """(T, H, W) of an image's merged ViT tokens, row-major: float32[rows * columns, 3].

    [choice] The centre of each ViT token in coordinates of the VAE grid, whose token i has its
    centre at i. Where the grids coincide these are whole numbers: both share the position id.
    """
    axes = [(np.arange(n) + 0.5) * (m / n) - 0.5 for n, m in zip(vit_grid, vae_grid, strict=True)]
    h, w = (a.reshape(-1) for a in np.meshgrid(*axes, indexing="ij"))
    return np.stack([np.full_like(h, time), h, w], -1).astype(np.float32)


def image_uid(document_id: str, index: int) -> int:
    """Identity of a document's image, uint32: its noise is the same wherever it is packed."""
    return zlib.crc32(f"{document_id}\0{index}".encode())
