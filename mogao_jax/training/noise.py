"""Everything random about a training step: timesteps, noise, the VAE's posterior sample.

Each image's draws are keyed by (step key, image uid) alone, so that a document has the same
loss wherever, and with whomever, it is packed.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mogao_jax import flow
from mogao_jax.config.geometry import LATENT_PATCH, LATENT_STRIDE, PIXELS_PER_TOKEN
from mogao_jax.config.schema import ObjectiveConfig
from mogao_jax.sequence.batch import ImageTable, canvas


class NoiseDraw(NamedTuple):
    """What is drawn for each image of the table; K noised copies of each."""

    timesteps: jax.Array  # float32[B, I, K]
    noise: jax.Array  # float32[B, I, K, tokens of the canvas, 64]
    posterior: jax.Array  # float32[B, I, Hc/8, Wc/8, 16] standard normal


def num_tokens(images: ImageTable) -> jax.Array:
    """VAE tokens of each image, int32[B, I]."""
    return images.size[..., 0] * images.size[..., 1] // PIXELS_PER_TOKEN


def draw(
    key: jax.Array,
    images: ImageTable,
    objective: ObjectiveConfig,
    *,
    latent_channels: int,
    copies: int = 1,
    uniforms: jax.Array | None = None,
) -> NoiseDraw:
    """Draws for every image of a batch.

    Args:
      key: the step's key.
      images: the batch's image table [B, I].
      objective: distribution of the timesteps.
      latent_channels: of the VAE (16).
      copies: K noised copies of each image. Their timesteps are evenly spread over the
        distribution, from one uniform number: each alone is a draw from it, and together they
        cover it.
      uniforms: float32[B, I] in (0, 1) to take instead of random ones; validation gives an
        evenly spread set, which makes its flow loss a low-variance one.
    """
    height, width = (side // LATENT_STRIDE for side in canvas(images))
    latents = (height, width, latent_channels)
    tokens = ((height // LATENT_PATCH) * (width // LATENT_PATCH), latent_channels * LATENT_PATCH**2)

    def draw_one(uid):
        u_key, noise_key, posterior_key = jax.random.split(jax.random.fold_in(key, uid), 3)
        u = jax.random.uniform(u_key, minval=1e-6, maxval=1.0)
        noise = jax.random.normal(noise_key, (copies, *tokens))
        return u, noise, jax.random.normal(posterior_key, latents)

    u, noise, posterior = jax.vmap(jax.vmap(draw_one))(images.uid)
    u = u if uniforms is None else uniforms
    u = jnp.mod(u[..., None] + jnp.arange(copies) / copies, 1.0)
    timesteps = flow.timesteps_from_uniforms(u, objective, num_tokens(images)[..., None])
    return NoiseDraw(timesteps, noise, posterior)
