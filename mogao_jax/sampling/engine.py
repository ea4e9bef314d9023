"""The sampler's programs for one model: compiled on first use, kept for all batches.

Those of the transformer, and those of the frozen encoders. A prompt's image is encoded with the
same code, and at the same size, as in training; but its latents are the VAE's posterior mean, not
a sample.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from mogao_jax.config.geometry import LATENT_PATCH, VAE_GRID
from mogao_jax.config.schema import MogaoConfig
from mogao_jax.images import VitInput, vae_grid, vit_input
from mogao_jax.models.modules import EncoderParams, Modules
from mogao_jax.models.mogao import head_table, vit_feature_shape
from mogao_jax.models.vae import decode_latents, encode_images, patchify_latents, unpatchify_latents
from mogao_jax.sampling.decode import allowed_tokens, decode
from mogao_jax.sampling.guided_flow import integrate_flow
from mogao_jax.sampling.history import EncodedImage
from mogao_jax.sampling.prefill import prefill
from mogao_jax.sampling.programs import Probe, Programs, round_up_bucket
from mogao_jax.tokenizer import Tokenizer


class Engine:
    """The programs of a model.

    Attributes:
      params: on the device.
      programs: counts what was compiled.
      prefill, decode, integrate_flow: the functions of these names, jitted.
      encoders: the frozen encoders.
      allowed: bool[V] which tokens may be written.
      channels: of a VAE token (64).
    """

    def __init__(
        self,
        modules: Modules,
        params: Any,
        encoder_params: EncoderParams,
        tokenizer: Tokenizer,
        *,
        text_chunk: int,
        step_chunk: int,
        probe: Probe | None,
    ):
        self.modules, self.params = modules, jax.device_put(params)
        self.text_chunk, self.step_chunk = text_chunk, step_chunk
        self.channels = modules.config.vae.latent_channels * LATENT_PATCH**2
        self.allowed = allowed_tokens(tokenizer, head_table(params).shape[0])
        self.programs = programs = Programs()
        self.encoders = Encoders(modules, jax.device_put(encoder_params), programs)
        bind = functools.partial
        self.prefill = programs.jit(bind(prefill, modules), donate_argnums=1)
        decoding = bind(decode, modules, tokenizer=tokenizer, chunk=text_chunk, probe=probe)
        self.decode = programs.jit(decoding, donate_argnums=1)
        integrating = bind(integrate_flow, modules, probe=probe)
        self.integrate_flow = programs.jit(integrating, static_argnames="settings")

    @property
    def config(self) -> MogaoConfig:
        return self.modules.config


class Encoders:
    """The frozen encoders' programs. Images go one by one: a program per size, no padding to the
    largest image of a batch."""

    def __init__(self, modules: Modules, params: EncoderParams, programs: Programs):
        self._modules, self._params = modules, params
        vae, vit = modules.vae, modules.vit

        def encode_image(params, pixels, size):
            tokens = patchify_latents(encode_images(vae, params, pixels, size))
            n, h, w, _ = pixels.shape
            return tokens.reshape(n, h // VAE_GRID, w // VAE_GRID, tokens.shape[-1])

        def decode_image(params, tokens, size):
            n, h, w, channels = tokens.shape
            latents = unpatchify_latents(
                tokens.reshape(n, h * w, channels), h * LATENT_PATCH, w * LATENT_PATCH
            )
            return decode_latents(vae, params, latents, size)

        def see_image(params, patches, positions, segment):
            assert vit is not None
            return vit.apply({"params": params}, patches, positions, segment)

        self._encode = programs.jit(encode_image)
        self._decode = programs.jit(decode_image)
        self._see = programs.jit(see_image)

    @property
    def feature_shape(self) -> tuple[int, int]:
        """(features per merged ViT token, channels of a feature)."""
        vit, connector = self._modules.config.vit, self._modules.config.model.connector
        return vit_feature_shape(vit, connector, vit.merge_size**2)

    def encode(self, images: Sequence[np.ndarray]) -> list[EncodedImage]:
        """Images uint8[H, W, 3] of native resolution, as later tokens read them."""
        # All are dispatched before the first is waited for.
        latents = [self._latents(p) for p in images]
        return self.read(images, [_inside(x, vae_grid(p)) for x, p in _zip(latents, images)])

    def read(
        self, images: Sequence[np.ndarray], latents: Sequence[np.ndarray]
    ) -> list[EncodedImage]:
        """The same where the latents float32[tokens, 64] are known: of generated images."""
        if self._modules.vit is None:
            return [EncodedImage(_size(p), x) for p, x in _zip(images, latents)]
        config = self._modules.config
        seen = [vit_input(p, config.images, config.vit) for p in images]
        features = [self._features(s) for s in seen]
        per_token, _ = self.feature_shape
        return [
            EncodedImage(_size(p), x, np.asarray(f)[0, : s.grid[0] * s.grid[1] * per_token], s.grid)
            for p, x, f, s in _zip(images, latents, features, seen)
        ]

    def decode(
        self, latents: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]
    ) -> list[np.ndarray]:
        """Latents float32[tokens, 64] of images (height, width) -> uint8[height, width, 3]."""
        pixels = [self._pixels(x, size) for x, size in _zip(latents, sizes)]
        return [np.asarray(p)[0, :h, :w].copy() for p, (h, w) in _zip(pixels, sizes)]

    def _latents(self, pixels: np.ndarray) -> jax.Array:
        canvas, size = _canvas(_size(pixels), VAE_GRID, (3,), np.uint8)
        canvas[0, : pixels.shape[0], : pixels.shape[1]] = pixels
        return self._encode(self._params.vae, canvas, size)

    def _pixels(self, tokens: np.ndarray, size: tuple[int, int]) -> jax.Array:
        h, w = size[0] // VAE_GRID, size[1] // VAE_GRID
        canvas, table = _canvas(size, 1, tokens.shape[1:], np.float32)
        canvas[0, :h, :w] = tokens.reshape(h, w, -1)
        return self._decode(self._params.vae, canvas, table)

    def _features(self, seen: VitInput) -> jax.Array:
        per_token = self._modules.config.vit.merge_size**2
        n = len(seen.patches)
        length = round_up_bucket(n // per_token) * per_token
        patches = np.zeros((1, length, seen.patches.shape[1]), np.uint8)
        positions, segment = np.zeros((1, length, 2), np.int32), np.zeros((1, length), np.int32)
        patches[0, :n], positions[0, :n], segment[0, :n] = seen.patches, seen.positions, 1
        return self._see(self._params.vit, patches, positions, segment)


def _zip(*columns: Iterable[Any]) -> Iterable[Any]:
    return zip(*columns, strict=True)


def _size(pixels: np.ndarray) -> tuple[int, int]:
    return pixels.shape[0], pixels.shape[1]


def _inside(tokens: jax.Array, grid: tuple[int, int]) -> np.ndarray:
    """The tokens [1, rows, columns, 64] that are in an image's grid: float32[tokens, 64]."""
    inside = np.asarray(tokens)[0, : grid[0], : grid[1]]
    return inside.reshape(-1, inside.shape[-1])


def _canvas(
    size: tuple[int, int], cell: int, trailing: tuple[int, ...], dtype: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Zeros [1, H, W, ...] that an image (height, width) fits in, and its size int32[1, 2].

    A VAE token has `cell` entries of the canvas along a side.
    """
    h, w = (round_up_bucket(side // VAE_GRID) * cell for side in size)
    return np.zeros((1, h, w, *trailing), dtype), np.array([size], np.int32)
