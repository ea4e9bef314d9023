"""TAEF1: a tiny autoencoder for FLUX.1's latent space (github madebyollin/taesd, MIT).

A chain of 64-channel residual blocks without norms. Its latents are already model-scaled (no
scaling or shift on top), the encoder is deterministic, and the decoder softly clamps its latents
to (-3, 3). As in `vae.py`, images of different sizes share a canvas without affecting each other.

Axes: N images, Hc Wc the canvas in pixels, C channels.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from mogao_jax.config.geometry import LATENT_STRIDE
from mogao_jax.config.schema import VaeConfig
from mogao_jax.key_tables import CONV, Rule
from mogao_jax.models.masked_layers import Conv, halve, image_mask, inside, upsample

Array = jax.Array

WIDTH = 64
FILES = {"encoder": "taef1_encoder.safetensors", "decoder": "taef1_decoder.safetensors"}

# The layer at each index of the original's two sequential chains (indices without weights, such as
# activations and upsamplings, are left out). "in" and "out" have biases, "down" and "up"
# are the 3x3 convolutions, without bias, that change the resolution.
ENCODER_CHAIN = (
    (0, "in"),
    (1, "block"),
    *((2, "down"), (3, "block"), (4, "block"), (5, "block")),
    *((6, "down"), (7, "block"), (8, "block"), (9, "block")),
    *((10, "down"), (11, "block"), (12, "block"), (13, "block")),
    (14, "out"),
)
DECODER_CHAIN = (
    (1, "in"),
    *((3, "block"), (4, "block"), (5, "block"), (7, "up")),
    *((8, "block"), (9, "block"), (10, "block"), (12, "up")),
    *((13, "block"), (14, "block"), (15, "block"), (17, "up")),
    (18, "block"),
    (19, "out"),
)


class Block(nn.Module):
    """relu(conv relu conv relu conv (x) + x)."""

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        h = nn.relu(Conv(WIDTH, name="conv_0")(x, mask))
        h = nn.relu(Conv(WIDTH, name="conv_2")(h, mask))
        h = Conv(WIDTH, name="conv_4")(h, mask)
        return nn.relu(h + x)


class Chain(nn.Module):
    """One of the two chains; layer k of the original is the submodule `layers_k`."""

    chain: tuple[tuple[int, str], ...]
    out_channels: int
    relu_after_input: bool

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> tuple[Array, Array]:
        for index, kind in self.chain:
            name = f"layers_{index}"
            if kind == "block":
                x = Block(name=name)(x, mask)
            elif kind == "down":
                x = Conv(WIDTH, stride=2, use_bias=False, name=name)(x, mask)
                mask = halve(mask)
            elif kind == "up":
                mask = upsample(mask)
                x = Conv(WIDTH, use_bias=False, name=name)(upsample(x), mask)
            elif kind == "in":
                x = Conv(WIDTH, name=name)(x, mask)
                x = nn.relu(x) if self.relu_after_input else x
            else:
                x = Conv(self.out_channels, name=name)(x, mask)
        return x, mask


class Taef1(nn.Module):
    """The interface of `vae.FluxVae`, with latents instead of a posterior.

    Pixels are in [-1, 1], sizes int32[N, 2] in pixels, multiples of 8; zero outside the images.
    """

    config: VaeConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.encoder = Chain(ENCODER_CHAIN, self.config.latent_channels, relu_after_input=False)
        self.decoder = Chain(DECODER_CHAIN, 3, relu_after_input=True)

    def __call__(self, pixels: Array, size: Array) -> Array:
        return self.decode(self.encode(pixels, size), size)

    def encode(self, pixels: Array, size: Array) -> Array:
        """float[N, Hc, Wc, 3], int32[N, 2] -> model-scaled latents float32[N, Hc/8, Wc/8, 16]."""
        mask = image_mask(size, *pixels.shape[1:3])
        x = (pixels.astype(self.dtype) + 1) / 2  # the original sees [0, 1]
        x, mask = self.encoder(x, mask)
        return inside(x.astype(jnp.float32), mask)

    def decode(self, latents: Array, size: Array) -> Array:
        """float[N, Hc/8, Wc/8, 16], int32[N, 2] -> float32[N, Hc, Wc, 3] (not clipped)."""
        mask = image_mask(size, *latents.shape[1:3], stride=LATENT_STRIDE)
        x = 3 * jnp.tanh(latents.astype(self.dtype) / 3)
        x, mask = self.decoder(x, mask)
        return inside(2 * x.astype(jnp.float32) - 1, mask)

    def encode_latents(self, pixels: Array, size: Array, noise: Array | None = None) -> Array:
        """`encode`; there is no posterior for `noise` to sample."""
        del noise
        return self.encode(pixels, size)

    def decode_latents(self, latents: Array, size: Array) -> Array:
        return self.decode(latents, size)


def key_table() -> tuple[Rule, ...]:
    """The original files' keys, with "encoder." or "decoder." in front, and our parameters."""
    rules = []
    for half, chain in (("encoder", ENCODER_CHAIN), ("decoder", DECODER_CHAIN)):
        for index, kind in chain:
            if kind == "block":
                convs = {f"layers_{index}.conv_{i}": f"{index}.conv.{i}" for i in (0, 2, 4)}
            else:
                convs = {f"layers_{index}": str(index)}
            for ours, theirs in convs.items():
                rules.append(Rule(f"{half}.{theirs}.weight", f"{half}.{ours}.kernel", CONV))
                if kind not in ("down", "up"):
                    rules.append(Rule(f"{half}.{theirs}.bias", f"{half}.{ours}.bias"))
    return tuple(rules)
