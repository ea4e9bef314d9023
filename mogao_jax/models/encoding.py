"""Running the frozen encoders on a packed batch, and taking its tokens from what they return."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mogao_jax.models.system import EncoderParams, System
from mogao_jax.models.vae import encode_images, patchify_latents
from mogao_jax.sequence.batch import GenStream, PackedBatch


def encode_batch(
    system: System, encoders: EncoderParams, batch: PackedBatch, posterior: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Runs the frozen encoders: each image once, however many copies it has.

    Returns:
      tokens of latents float32[B, I * tokens of the canvas, 64] and ViT features (see
      `MogaoInputs.vit_features`).
    """
    images = batch.images
    noise = posterior if system.config.vae.sample_posterior else None
    latents = encode_images(system.vae, encoders.vae, images.pixels, images.size, noise)
    tokens = patchify_latents(latents)
    tokens = tokens.reshape(tokens.shape[0], -1, tokens.shape[-1])
    if system.vit is None:
        rows, num_patches = batch.vit.segment.shape
        shape = (rows, num_patches, system.config.vit.embed_dim)
        return jax.lax.stop_gradient(tokens), jnp.zeros(shape, jnp.float32)
    features = system.vit.apply({"params": encoders.vit}, *batch.vit)
    return jax.lax.stop_gradient((tokens, features))


def take_tokens(canvas_tokens: jax.Array, stream: GenStream, num_images: int) -> jax.Array:
    """Tokens of a gen stream [B, L, 64] by their addresses on the canvases; zeros at padding."""
    per_image = canvas_tokens.shape[1] // num_images
    is_token = stream.image >= 0
    address = jnp.where(is_token, stream.image * per_image + stream.patch, 0)
    taken = jnp.take_along_axis(canvas_tokens, address[..., None], 1)
    return jnp.where(is_token[..., None], taken, 0.0)
