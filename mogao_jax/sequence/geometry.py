"""One picture as the encoders want it, and where its tokens stand: for training and sampling alike.

Sizes are (height, width): of pixels, of the grid of VAE tokens (16 pixels each) or of the grid
of merged ViT tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mogao_jax import images as image_ops
from mogao_jax.config.geometry import VAE_GRID
from mogao_jax.config.schema import ImageConfig, VitConfig
from mogao_jax.sequence.document import Image


class VitInput(NamedTuple):
    """The ViT's patches of one picture, in its merge order."""

    patches: np.ndarray  # uint8[P, 3 * patch^2]
    positions: np.ndarray  # int32[P, 2]
    grid: tuple[int, int]  # of merged tokens


def native_pixels(item: Image, images: ImageConfig) -> np.ndarray:
    """uint8[H, W, 3] at native resolution: the size that the VAE sees (multiples of 16).

    Raises:
      DocumentError: the image cannot be read.
    """
    pixels = image_ops.load_pixels(item)
    height, width = pixels.shape[:2]
    height, width = image_ops.target_size(
        height,
        width,
        max_pixels=images.max_pixels,
        min_pixels=images.min_pixels,
        grid=VAE_GRID,
        max_side=images.max_side,
    )
    return image_ops.resize(pixels, height, width)


def vae_grid(pixels: np.ndarray) -> tuple[int, int]:
    height, width = pixels.shape[:2]
    return height // VAE_GRID, width // VAE_GRID


def vit_input(pixels: np.ndarray, images: ImageConfig, vit: VitConfig) -> VitInput:
    """What the ViT sees of a picture uint8[H, W, 3] of native resolution."""
    height, width = pixels.shape[:2]
    height, width = image_ops.vit_size(
        height, width, mode=images.vit_resize, vit_max_pixels=images.vit_max_pixels
    )
    patches, positions = image_ops.vit_patches(
        image_ops.resize(pixels, height, width),
        patch_size=vit.patch_size,
        merge_size=vit.merge_size,
    )
    block = vit.patch_size * vit.merge_size
    return VitInput(patches, positions, (height // block, width // block))


def text_positions(t_ids: np.ndarray, mode: str) -> np.ndarray:
    """(T, H, W) of text tokens with the given T ids: float32[n, 3].

    Args:
      mode: the config's `layout.text_positions`: 'thw' (H = W = T) or 't' (H = W = 0).
    """
    t = np.asarray(t_ids, np.float32)
    other = t if mode == "thw" else np.zeros_like(t)
    return np.stack([t, other, other], -1)


def vae_positions(t: int, grid: tuple[int, int]) -> np.ndarray:
    """(T, H, W) of a picture's VAE tokens, row-major: float32[rows * columns, 3]."""
    h, w = (a.reshape(-1) for a in np.indices(grid, dtype=np.float32))
    return np.stack([np.full_like(h, t), h, w], -1)


def vit_positions(t: int, vit_grid: tuple[int, int], vae_grid: tuple[int, int]) -> np.ndarray:
    """(T, H, W) of a picture's merged ViT tokens, row-major: float32[rows * columns, 3].

    [choice] The centre of each ViT token in coordinates of the VAE grid, whose token i has its
    centre at i. Where the grids coincide these are whole numbers: both share the position id.
    """
    axes = [(np.arange(n) + 0.5) * (m / n) - 0.5 for n, m in zip(vit_grid, vae_grid, strict=True)]
    h, w = (a.reshape(-1) for a in np.meshgrid(*axes, indexing="ij"))
    return np.stack([np.full_like(h, t), h, w], -1).astype(np.float32)
