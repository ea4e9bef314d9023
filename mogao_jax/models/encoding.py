"""Runs the frozen encoders on a packed batch, and gathers its tokens from their outputs.

Axes: B rows, I images of a row, L tokens.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mogao_jax.models.modules import EncoderParams, Modules
from mogao_jax.models.vae import encode_images, latents_of_moments, patchify_latents
from mogao_jax.models.vit import whole
from mogao_jax.sequence.batch import GenStream, ImageTable, PackedBatch
from mogao_jax.sharding.ambient import BATCH_AXES, SPARE_AXES, per_shard, sharded_axes
from mogao_jax.sharding.rules import constrain


def encode_batch(
    modules: Modules, encoders: EncoderParams, batch: PackedBatch, posterior: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Encodes each image once, however many copies of it the row has.

    Returns:
      VAE tokens float32[B, I * tokens of a canvas, 64], and ViT features (see
      `MogaoInputs.vit_features`).
    """
    tokens = patchify_latents(_latents(modules, encoders.vae, batch.images, posterior))
    tokens = constrain(tokens, "act_batch", *(None,) * 3)
    tokens = tokens.reshape(tokens.shape[0], -1, tokens.shape[-1])
    if modules.vit is None:
        rows, num_patches = batch.vit.segment.shape
        shape = (rows, num_patches, modules.config.vit.embed_dim)
        return jax.lax.stop_gradient(tokens), jnp.zeros(shape, jnp.float32)
    features = batch.vit.features
    if features is None:
        features = modules.vit.apply({"params": whole(encoders.vit)}, *batch.vit[:3])
    return jax.lax.stop_gradient((tokens, features))


def _latents(modules: Modules, params: Any, images: ImageTable, posterior: jax.Array) -> jax.Array:
    """Model-scaled latents float32[B, I, Hc/8, Wc/8, 16], from stored moments if there are any."""
    config = modules.config.vae
    if images.moments is not None:
        noise = posterior if config.sample_posterior else None
        return latents_of_moments(images.moments, images.size, config, noise)
    given = [images.pixels, images.size]
    if config.sample_posterior:
        given.append(posterior)
    # Each device encodes its own images; sharded weights are all-gathered here.
    rows = sharded_axes(BATCH_AXES, images.pixels.shape[0])
    spare = sharded_axes(SPARE_AXES, images.pixels.shape[1])
    spec = PartitionSpec(rows or None, spare or None)
    encode = per_shard(
        functools.partial(encode_images, modules.vae),
        (PartitionSpec(), *(spec for _ in given)),
        spec,
    )
    return encode(params, *given)


def take_tokens(canvas_tokens: jax.Array, stream: GenStream, num_images: int) -> jax.Array:
    """Tokens of a gen stream, [B, L, 64], by their addresses on the canvases; zeros at padding."""
    per_image = canvas_tokens.shape[1] // num_images
    is_token = stream.image >= 0
    address = jnp.where(is_token, stream.image * per_image + stream.patch, 0)
    taken = jnp.take_along_axis(canvas_tokens, address[..., None], 1)
    taken = jnp.where(is_token[..., None], taken, 0.0)
    return constrain(taken, "act_batch", "act_len", None)
