"""Sizes that the encoders, the layout and the checks share. All are along one side of an image.

An image of H x W pixels has H/8 x W/8 latents of the VAE. A VAE token is a patch of 2 x 2 latents,
so it covers 16 x 16 pixels. A ViT token is a block of 2 x 2 patches of 14 x 14 pixels.
"""

from __future__ import annotations

LATENT_STRIDE = 8  # pixels per latent
LATENT_PATCH = 2  # latents per VAE token
VAE_GRID = LATENT_STRIDE * LATENT_PATCH  # pixels per VAE token
PIXELS_PER_TOKEN = VAE_GRID**2  # area, not side
VIT_PATCH = 14  # pixels per ViT patch, by default (config vit.patch_size)
VIT_MERGE = 2  # ViT patches per ViT token, by default (config vit.merge_size)
