"""PackedBatch: the one structure that goes from data to model, at three sizes.

The same NamedTuples (numpy on the host, pytrees to jax) hold a laid-out *document* (exact
sizes), a packed *row* (fixed sizes, several documents) and a *batch* (rows stacked: a leading
axis B). Sizes of a row, each with its own budget (config `packing`):

    U  und tokens: text and ViT           I  images
    C  clean VAE tokens                   P  ViT patches (before the merge)
    N  noised VAE tokens                  Hc, Wc  the canvas that every image fits in

Within a row documents are numbered by `segment` from 1 (0 is padding), and each of the streams
und, clean and noised is sorted by (segment, order).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from mogao_jax.config.geometry import LATENT_STRIDE
from mogao_jax.sequence.masking import TokenMeta

# Contexts that a target image may be generated in (docs/method.md section 6).
FULL, IMAGE_ONLY, EMPTY = 0, 1, 2
CONTEXTS = ("full", "image_only", "empty")


class UndStream(NamedTuple):
    """Text and ViT tokens: what the und branch computes."""

    tokens: Any  # int32[U]     vocabulary id; `image_pad` for a ViT token
    targets: Any  # int32[U]     id to predict here (0 where the weight is 0)
    loss_weights: Any  # float32[U]
    meta: TokenMeta  # 3 x int32[U]
    positions: Any  # float32[U, 3] (T, H, W); ViT tokens may have fractional H, W
    vit_index: Any  # int32[U]     row among the merged ViT tokens of this row (0..P/4-1), or -1
    source: Any  # int32[U]     index of the data source


class GenStream(NamedTuple):
    """VAE tokens, clean or noised. L is C or N. A token is one 2x2 patch of latents."""

    image: Any  # int32[L]      row of the image table, or -1 for padding
    patch: Any  # int32[L]      y * (Wc / 16) + x on the canvas grid
    copy: Any  # int32[L]      which of its image's noised copies, from 0; 0 for clean tokens
    meta: TokenMeta  # 3 x int32[L]
    positions: Any  # float32[L, 3]
    loss_weights: Any  # float32[L] flow loss; zero for clean tokens


class ImageTable(NamedTuple):
    """One line per image. An image is encoded once, however many copies stand in the streams.

    `moments` is there where the VAE's output was computed beforehand (data/encoded.py): the mean
    of unscaled latents, and the log-variance behind it if the posterior is sampled. `pixels` is
    then uint8[I, 0, 0, 3].
    """

    pixels: Any  # uint8[I, Hc, Wc, 3] top-left aligned on the canvas, zero elsewhere
    size: Any  # int32[I, 2]    height, width in pixels (multiples of 16); (0, 0) = no image
    uid: Any  # uint32[I]      identity of the image: keys its timestep and its noise
    context: Any  # int32[I]   FULL, IMAGE_ONLY or EMPTY: what its noised copy is conditioned on
    source: Any  # int32[I]
    moments: Any = None  # float32[I, Hc/8, Wc/8, 16 or 32], or None: encode the pixels


class VitPatches(NamedTuple):
    """Patches of the ViT's input images, in its merge order (2x2 blocks; see images.py).

    `features` is there where the ViT's output was computed beforehand; `pixels` is then [P, 0].
    """

    pixels: Any  # uint8[P, 3 * 14 * 14] (C, 14, 14), not normalised
    positions: Any  # int32[P, 2] (h, w) in patches
    segment: Any  # int32[P]   which image of the row, from 1; 0 = padding
    features: Any = None  # float32[P, D] of the vision tower, or None: encode the pixels


class PackedBatch(NamedTuple):
    und: UndStream
    clean: GenStream
    noised: GenStream
    images: ImageTable
    vit: VitPatches


def canvas(images: ImageTable) -> tuple[int, int]:
    """Height and width in pixels of the canvas that every image fits in."""
    if images.moments is not None:
        height, width = images.moments.shape[-3:-1]
        return height * LATENT_STRIDE, width * LATENT_STRIDE
    height, width = images.pixels.shape[-3:-1]
    return height, width


class Sizes(NamedTuple):
    """How much of each budget something takes; also the budgets themselves."""

    und: int
    clean: int
    noised: int
    images: int
    vit_patches: int


def sizes(batch: PackedBatch) -> Sizes:
    """Sizes of an unbatched structure (document or row), counting padding if there is any."""
    return Sizes(
        und=batch.und.tokens.shape[-1],
        clean=batch.clean.image.shape[-1],
        noised=batch.noised.image.shape[-1],
        images=batch.images.uid.shape[-1],
        vit_patches=batch.vit.segment.shape[-1],
    )
