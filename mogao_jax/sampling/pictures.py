"""Pictures in and out: prompts to what the model reads of them, latents to pixels.

A picture is encoded with the same code, and at the same size, as in training; but its latents are
the VAE's posterior mean, not a sample.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mogao_jax.models.mogao import LATENT_PATCH, vit_feature_shape
from mogao_jax.models.system import EncoderParams, System
from mogao_jax.models.vae import (
    decode_latents,
    encode_images,
    patchify_latents,
    unpatchify_latents,
)
from mogao_jax.sampling import buckets
from mogao_jax.sampling.history import Drawn
from mogao_jax.sequence.pictures import VAE_GRID, VitInput, vit_input


class Encoders:
    """The frozen encoders, on lists of pictures of any size, at most `batch_size` at a time."""

    def __init__(
        self, system: System, params: EncoderParams, programs: buckets.Programs, batch_size: int
    ):
        self._system, self._params, self._batch_size = system, params, batch_size
        vae, vit = system.vae, system.vit

        def encode_pictures(params, pixels, size):
            return patchify_latents(encode_images(vae, params, pixels, size))

        def decode_pictures(params, tokens, size):
            n, h, w, channels = tokens.shape
            latents = unpatchify_latents(
                tokens.reshape(n, h * w, channels), h * LATENT_PATCH, w * LATENT_PATCH
            )
            return decode_latents(vae, params, latents, size)

        def see_pictures(params, patches, positions, segment):
            assert vit is not None
            return vit.apply({"params": params}, patches, positions, segment)

        self._encode = programs.jit(encode_pictures)
        self._decode = programs.jit(decode_pictures)
        self._see = programs.jit(see_pictures)

    @property
    def feature_shape(self) -> tuple[int, int]:
        """(features per merged ViT token, channels of a feature)."""
        vit, connector = self._system.config.vit, self._system.config.model.connector
        return vit_feature_shape(vit, connector, vit.merge_size**2)

    def encode(self, pictures: Sequence[np.ndarray]) -> list[Drawn]:
        """Pictures uint8[H, W, 3] of native resolution, as later items read them."""
        latents = [x for group in self._groups(pictures) for x in self._latents(group)]
        return self.read(pictures, latents)

    def read(self, pictures: Sequence[np.ndarray], latents: Sequence[np.ndarray]) -> list[Drawn]:
        """The same where the latents float32[tokens, 64] are known: of drawn pictures."""
        if self._system.vit is None:
            return [Drawn(p.shape[:2], x) for p, x in zip(pictures, latents, strict=True)]
        config = self._system.config
        seen = [vit_input(p, config.images, config.vit) for p in pictures]
        features = [x for group in self._groups(seen) for x in self._features(group)]
        return [
            Drawn(p.shape[:2], x, f, s.grid)
            for p, x, f, s in zip(pictures, latents, features, seen, strict=True)
        ]

    def decode(
        self, latents: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]
    ) -> list[np.ndarray]:
        """Latents float32[tokens, 64] of pictures (height, width) -> uint8[height, width, 3]."""
        pairs = list(zip(latents, sizes, strict=True))
        return [x for group in self._groups(pairs) for x in self._pixels(group)]

    def _groups(self, things: Sequence) -> list[Sequence]:
        n = self._batch_size
        return [things[i : i + n] for i in range(0, len(things), n)]

    def _latents(self, pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
        sizes = [p.shape[:2] for p in pictures]
        canvas, table = self._canvas(sizes, 1, 3, np.uint8)
        for i, p in enumerate(pictures):
            canvas[i, : p.shape[0], : p.shape[1]] = p
        tokens = np.asarray(self._encode(self._params.vae, canvas, table))
        columns = canvas.shape[2] // VAE_GRID
        tokens = tokens.reshape(len(canvas), -1, columns, tokens.shape[-1])
        return [
            tokens[i, : h // VAE_GRID, : w // VAE_GRID].reshape(-1, tokens.shape[-1])
            for i, (h, w) in enumerate(sizes)
        ]

    def _pixels(self, pairs: Sequence[tuple[np.ndarray, tuple[int, int]]]) -> list[np.ndarray]:
        sizes = [size for _, size in pairs]
        channels = pairs[0][0].shape[-1]
        canvas, table = self._canvas(sizes, VAE_GRID, channels, np.float32)
        for i, (tokens, (height, width)) in enumerate(pairs):
            h, w = height // VAE_GRID, width // VAE_GRID
            canvas[i, :h, :w] = tokens.reshape(h, w, channels)
        pixels = np.asarray(self._decode(self._params.vae, canvas, table))
        return [pixels[i, :h, :w].copy() for i, (h, w) in enumerate(sizes)]

    def _canvas(
        self, sizes: Sequence[tuple[int, int]], stride: int, channels: int, dtype
    ) -> tuple[np.ndarray, np.ndarray]:
        """A padded array for pictures of these sizes, and the table of sizes int32[n, 2]."""
        n = buckets.fine(len(sizes))
        h, w = (buckets.fine(max(s[i] for s in sizes) // VAE_GRID) * VAE_GRID for i in (0, 1))
        table = np.zeros((n, 2), np.int32)
        table[: len(sizes)] = sizes
        return np.zeros((n, h // stride, w // stride, channels), dtype), table

    def _features(self, seen: Sequence[VitInput]) -> list[np.ndarray]:
        per_token = self._system.config.vit.merge_size**2
        tokens = buckets.fine(max(len(s.patches) for s in seen) // per_token)
        shape = (buckets.fine(len(seen)), tokens * per_token)
        patches = np.zeros((*shape, seen[0].patches.shape[1]), np.uint8)
        positions, segment = np.zeros((*shape, 2), np.int32), np.zeros(shape, np.int32)
        for i, s in enumerate(seen):
            n = len(s.patches)
            patches[i, :n], positions[i, :n], segment[i, :n] = s.patches, s.positions, 1
        features = np.asarray(self._see(self._params.vit, patches, positions, segment))
        per_patch = features.shape[1] / shape[1]  # 1, or 1/4 after the tower's own merger
        return [features[i, : round(len(s.patches) * per_patch)] for i, s in enumerate(seen)]
