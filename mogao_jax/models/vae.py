"""The autoencoder of FLUX.1 (8x smaller, 16 channels) at any width, on mixed image sizes.

The architecture is that of diffusers' `AutoencoderKL` with FLUX's config (no quantisation
convolutions), and the submodules have its names, so that keys map one to one. Every image on the
canvas is encoded and decoded exactly as if it were alone (masked_layers.py).

Axes: N images, Hc Wc the canvas in pixels, C channels; B rows, I images per row.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from mogao_jax.config.geometry import LATENT_PATCH, LATENT_STRIDE
from mogao_jax.config.schema import VaeConfig
from mogao_jax.models.masked_layers import (
    Conv,
    GroupNorm,
    halve,
    image_mask,
    inside,
    segment_attention,
    upsample,
)

Array = jax.Array


class Posterior(NamedTuple):
    """Diagonal Gaussian over unscaled latents z, float32[N, Hc/8, Wc/8, 16] each."""

    mean: Array
    logvar: Array


class ResnetBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1x1 shortcut if the width changes."""

    features: int
    groups: int

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        h = nn.silu(GroupNorm(self.groups, name="norm1")(x, mask))
        h = Conv(self.features, name="conv1")(h, mask)
        h = nn.silu(GroupNorm(self.groups, name="norm2")(h, mask))
        h = Conv(self.features, name="conv2")(h, mask)
        if x.shape[-1] != self.features:
            x = Conv(self.features, kernel=1, padding=(0, 0), name="conv_shortcut")(x, mask)
        return x + h


class AttentionBlock(nn.Module):
    """Single-head attention over all latents of an image."""

    groups: int

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        n, h, w, c = x.shape
        y = GroupNorm(self.groups, name="group_norm")(x, mask).reshape(n, h * w, c)
        q, k, v = (nn.Dense(c, dtype=x.dtype, name=f"to_{i}")(y)[:, :, None] for i in "qkv")
        segment = mask.reshape(n, h * w).astype(jnp.int32)
        y = segment_attention(q, k, v, segment)[:, :, 0]
        return x + nn.Dense(c, dtype=x.dtype, name="to_out")(y).reshape(n, h, w, c)


class MidBlock(nn.Module):
    features: int
    groups: int

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        x = ResnetBlock(self.features, self.groups, name="resnets_0")(x, mask)
        x = AttentionBlock(self.groups, name="attentions_0")(x, mask)
        return ResnetBlock(self.features, self.groups, name="resnets_1")(x, mask)


class Encoder(nn.Module):
    """Pixels [N, Hc, Wc, 3] -> moments [N, Hc/8, Wc/8, 2 * latent_channels]."""

    config: VaeConfig

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> tuple[Array, Array]:
        channels, groups = self.config.block_channels, self.config.norm_groups
        x = Conv(channels[0], name="conv_in")(x, mask)
        for level, features in enumerate(channels):
            name = f"down_blocks_{level}"
            for i in range(self.config.layers_per_block):
                x = ResnetBlock(features, groups, name=f"{name}_resnets_{i}")(x, mask)
            if level < len(channels) - 1:
                down = Conv(features, stride=2, padding=(0, 1), name=f"{name}_downsamplers_0")
                x, mask = down(x, mask), halve(mask)
        x = MidBlock(channels[-1], groups, name="mid_block")(x, mask)
        x = nn.silu(GroupNorm(groups, name="conv_norm_out")(x, mask))
        return Conv(2 * self.config.latent_channels, name="conv_out")(x, mask), mask


class Decoder(nn.Module):
    """Latents [N, Hc/8, Wc/8, latent_channels] -> pixels [N, Hc, Wc, 3]."""

    config: VaeConfig

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> tuple[Array, Array]:
        channels, groups = self.config.block_channels, self.config.norm_groups
        x = Conv(channels[-1], name="conv_in")(x, mask)
        x = MidBlock(channels[-1], groups, name="mid_block")(x, mask)
        for level, features in enumerate(reversed(channels)):
            name = f"up_blocks_{level}"
            for i in range(self.config.layers_per_block + 1):
                x = ResnetBlock(features, groups, name=f"{name}_resnets_{i}")(x, mask)
            if level < len(channels) - 1:
                mask = upsample(mask)
                x = Conv(features, name=f"{name}_upsamplers_0")(upsample(x), mask)
        x = nn.silu(GroupNorm(groups, name="conv_norm_out")(x, mask))
        return Conv(3, name="conv_out")(x, mask), mask


class FluxVae(nn.Module):
    """FLUX's VAE. Sizes are int32[N, 2] (height, width) in pixels, multiples of 8.

    Pixels are in [-1, 1]; anything outside an image is ignored on input and zero on output; an
    image of size (0, 0) gives zeros. `dtype` is that of the computation (norms in float32).
    """

    config: VaeConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.encoder, self.decoder = Encoder(self.config), Decoder(self.config)

    def __call__(self, pixels: Array, size: Array) -> Array:
        """Reconstruction from the posterior's mean (also what initialises all parameters)."""
        return self.decode(self.encode(pixels, size).mean, size)

    def encode(self, pixels: Array, size: Array) -> Posterior:
        """float[N, Hc, Wc, 3] in [-1, 1], int32[N, 2] -> Posterior of z, float32."""
        mask = image_mask(size, *pixels.shape[1:3])
        moments, mask = self.encoder(pixels.astype(self.dtype), mask)
        mean, logvar = jnp.split(inside(moments.astype(jnp.float32), mask), 2, axis=-1)
        return Posterior(mean, jnp.clip(logvar, -30.0, 20.0))  # bounds of the original

    def decode(self, z: Array, size: Array) -> Array:
        """Unscaled z float[N, Hc/8, Wc/8, 16], int32[N, 2] -> float32[N, Hc, Wc, 3]."""
        mask = image_mask(size, *z.shape[1:3], stride=LATENT_STRIDE)
        pixels, mask = self.decoder(z.astype(self.dtype), mask)
        return inside(pixels.astype(jnp.float32), mask)

    def encode_latents(self, pixels: Array, size: Array, noise: Array | None = None) -> Array:
        """As `encode`, but model-scaled latents: a posterior sample by `noise`, or the mean."""
        moments = jnp.concatenate(self.encode(pixels, size), -1)
        return latents_of_moments(moments, size, self.config, noise)

    def decode_latents(self, latents: Array, size: Array) -> Array:
        """As `decode`, from model-scaled latents."""
        return self.decode(unscale_latents(latents, self.config), size)


def scale_latents(z: Array, config: VaeConfig) -> Array:
    """(z - shift_factor) * scaling_factor: what the flow is trained on, of about unit variance."""
    return (z - config.shift_factor) * config.scaling_factor


def unscale_latents(latents: Array, config: VaeConfig) -> Array:
    """The inverse of `scale_latents`."""
    return latents / config.scaling_factor + config.shift_factor


# ---------------------------------------------------------------- what the training step calls


def encode_images(
    vae: nn.Module,
    params,
    pixels: Array | np.ndarray,
    size: Array | np.ndarray,
    posterior_noise: Array | None = None,
) -> Array:
    """Model-scaled latents of a batch's image table.

    Args:
      vae: FluxVae or Taef1.
      params: its parameters (the tree under "params").
      pixels: uint8[B, I, Hc, Wc, 3], top-left on the canvas (also without B, or with more axes).
      size: int32[B, I, 2] in pixels; (0, 0) = no image.
      posterior_noise: float32[B, I, Hc/8, Wc/8, 16] standard normal, or None for the mean.
    Returns:
      float32[B, I, Hc/8, Wc/8, 16], zeros outside the images.
    """
    lead = pixels.shape[:-3]
    x = pixels.reshape(-1, *pixels.shape[-3:]).astype(jnp.float32) / 127.5 - 1.0
    if posterior_noise is not None:
        posterior_noise = posterior_noise.reshape(-1, *posterior_noise.shape[-3:])
    given = (x, size.reshape(-1, 2), posterior_noise)
    latents = vae.apply({"params": params}, *given, method=type(vae).encode_latents)
    return latents.reshape(*lead, *latents.shape[1:])


def moments_of_images(
    vae: nn.Module, params, pixels: Array | np.ndarray, size: Array | np.ndarray, config: VaeConfig
) -> Array:
    """The inputs of `latents_of_moments`, computed once for images that are used again.

    Args:
      pixels: uint8[N, Hc, Wc, 3], top-left on the canvas.
      size: int32[N, 2] in pixels.
    Returns:
      float32[N, Hc/8, Wc/8, C]: the posterior's mean, unscaled, and after it the log-variance if
      the config samples it (C is 16 or 32). TAEF1: its latents.
    """
    x = pixels.astype(jnp.float32) / 127.5 - 1.0
    found = vae.apply({"params": params}, x, size, method=type(vae).encode)
    if not isinstance(found, Posterior):
        return found
    return jnp.concatenate(found, -1) if config.sample_posterior else found.mean


def latents_of_moments(
    moments: Array, size: Array, config: VaeConfig, posterior_noise: Array | None = None
) -> Array:
    """Model-scaled latents [..., Hc/8, Wc/8, 16], as `encode_images` gives them of the pixels.

    Args:
      moments: float32[..., Hc/8, Wc/8, C] of `moments_of_images`.
      size: int32[..., 2] in pixels; (0, 0) = no image.
      posterior_noise: as for `encode_images`.
    """
    if config.kind == "taef1":
        return moments
    mean, *logvar = jnp.split(moments, moments.shape[-1] // config.latent_channels, -1)
    z = mean
    if logvar and posterior_noise is not None:
        z = mean + jnp.exp(0.5 * logvar[0]) * posterior_noise
    flat = z.reshape(-1, *z.shape[-3:])
    mask = image_mask(size.reshape(-1, 2), *flat.shape[1:3], stride=LATENT_STRIDE)
    return inside(scale_latents(flat, config), mask).reshape(z.shape)


def decode_latents(vae: nn.Module, params, latents: Array, size: Array | np.ndarray) -> Array:
    """The inverse: float[..., h, w, 16], int32[..., 2] -> uint8[..., 8h, 8w, 3], zero outside."""
    lead = latents.shape[:-3]
    sizes = size.reshape(-1, 2)
    flat = latents.reshape(-1, *latents.shape[-3:])
    pixels = vae.apply({"params": params}, flat, sizes, method=type(vae).decode_latents)
    pixels = jnp.round(jnp.clip((pixels + 1.0) * 127.5, 0.0, 255.0))
    pixels = inside(pixels, image_mask(sizes, *pixels.shape[1:3])).astype(jnp.uint8)
    return pixels.reshape(*lead, *pixels.shape[1:])


def patchify_latents(latents: Array) -> Array:
    """[..., h, w, c] -> tokens [..., (h/2) (w/2), 4c]; in a token the order is (row, column, c)."""
    return rearrange(
        latents, "... (h ph) (w pw) c -> ... (h w) (ph pw c)", ph=LATENT_PATCH, pw=LATENT_PATCH
    )


def unpatchify_latents(tokens: Array, height: int, width: int) -> Array:
    """The inverse of `patchify_latents`; height and width are those of the latents."""
    h, w, patch = height // LATENT_PATCH, width // LATENT_PATCH, LATENT_PATCH
    shape = "... (h w) (ph pw c) -> ... (h ph) (w pw) c"
    return rearrange(tokens, shape, h=h, w=w, ph=patch, pw=patch)
