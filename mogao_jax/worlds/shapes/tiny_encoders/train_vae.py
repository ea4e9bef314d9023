"""Trains the tiny VAE on the embedded world's images.

Squared error and a little absolute error in pixels, through the posterior's noise, plus a KL term.
The KL term's weight decides how easy the latents are to generate: a decoder that bears noise of
half the latents' variance forgives a flow its small errors, and whatever an image does not need is
left at the prior. Models are trained on the posterior's mean (`sample_posterior` False).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from mogao_jax.config.geometry import LATENT_STRIDE
from mogao_jax.config.schema import VaeConfig
from mogao_jax.models.encoder_weights import load_vae, save_weights, saved_vae_config
from mogao_jax.models.masked_layers import image_mask
from mogao_jax.models.vae import FluxVae, decode_latents, encode_images
from mogao_jax.worlds.shapes.tiny_encoders import training
from mogao_jax.worlds.shapes.tiny_encoders.images import (
    HELD_OUT,
    LEARNED_WORLDS,
    TRAIN,
    CanvasBatch,
    canvas_groups,
    cut_batch,
    image_batch,
)

TINY = VaeConfig(
    block_channels=(8, 16, 32, 64),
    layers_per_block=1,
    norm_groups=4,
    scaling_factor=1.0,
    shift_factor=0.0,
    sample_posterior=False,
)
# (share of the time, images per batch, canvas): larger images are cut to the canvas. Small
# cuts first, for more and more varied steps in the same time.
PHASES = ((0.6, 16, (32, 32)), (1.0, 8, (64, 64)))
LOGVAR_AT_START = -6.0  # else the posterior's noise is as loud as its mean
KL_WEIGHT = 3e-3  # of the mean KL per latent, against the mean squared error per pixel value
L1_WEIGHT = 0.1


def loss_fn(params, vae: FluxVae, images: CanvasBatch, noise: jax.Array, kl_weight: jax.Array):
    """Scalar loss and its parts, in [-1, 1] pixel values, means over real pixels and latents."""
    x = images.pixels.astype(jnp.float32) / 127.5 - 1.0
    size = images.size
    posterior = vae.apply({"params": params}, x, size, method="encode")
    z = posterior.mean + jnp.exp(0.5 * posterior.logvar) * noise
    y = vae.apply({"params": params}, z, size, method="decode")
    pixel_mask = image_mask(size, *x.shape[1:3])
    latent_mask = image_mask(size, *z.shape[1:3], stride=LATENT_STRIDE)

    def mean_over(values, mask):
        return jnp.where(mask, values, 0).sum() / (mask.sum() * values.shape[-1])

    kl = 0.5 * (posterior.mean**2 + jnp.exp(posterior.logvar) - 1 - posterior.logvar)
    parts = {
        "mse": mean_over((y - x) ** 2, pixel_mask),
        "l1": mean_over(jnp.abs(y - x), pixel_mask),
        "kl": mean_over(kl, latent_mask),
    }
    return parts["mse"] + L1_WEIGHT * parts["l1"] + kl_weight * parts["kl"], parts


def psnr(reference: np.ndarray, other: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of each image, over its own pixels (uint8 values)."""
    out = []
    for a, b, (h, w) in zip(reference, other, size, strict=True):
        error = a[:h, :w].astype(np.float64) - b[:h, :w]
        out.append(10 * math.log10(255.0**2 / max(np.mean(error**2), 1e-9)))
    return np.asarray(out)


def held_out_psnr(params, config: VaeConfig, count: int = 192) -> dict[str, float]:
    """Mean PSNR over held-out images of all worlds, from the mean and through posterior noise.

    Also the mean and deviation of the latents (posterior means), and the share of the sampled
    latents' variance that they are; the rest is posterior noise.
    """
    encode, decode = _compiled(config)
    scores: dict[str, list] = {"psnr_mean": [], "psnr_sampled": []}
    values: dict[str, list] = {"psnr_mean": [], "psnr_sampled": []}
    groups = [group for world in LEARNED_WORLDS for group in canvas_groups(world)]
    for g, (canvas, world) in enumerate(groups):
        images = image_batch(HELD_OUT, g, count // len(groups), world, canvas)
        noise = _noise(images, g)
        mask = np.asarray(image_mask(images.size, *noise.shape[1:3], stride=LATENT_STRIDE))
        for name, given in (("psnr_mean", jnp.zeros_like(noise)), ("psnr_sampled", noise)):
            latents = encode(params, images, given)
            pixels = np.asarray(decode(params, latents, images.size))
            scores[name] += list(psnr(images.pixels, pixels, images.size))
            values[name].append(np.asarray(latents)[mask[..., 0]])
    means, sampled = (np.concatenate(values[k]) for k in ("psnr_mean", "psnr_sampled"))
    return {k: float(np.mean(v)) for k, v in scores.items()} | {
        "psnr_sampled_worst": float(np.min(scores["psnr_sampled"])),
        "latent_mean": float(means.mean()),
        "latent_std": float(means.std()),
        "signal_share": float(means.var() / sampled.var()),
    }


def _noise(images: CanvasBatch, seed: int | jax.Array) -> jax.Array:
    n, height, width, _ = images.pixels.shape
    shape = n, height // LATENT_STRIDE, width // LATENT_STRIDE, TINY.latent_channels
    return jax.random.normal(jax.random.key(seed), shape)


@functools.cache
def _compiled(config: VaeConfig):
    vae = FluxVae(config)
    encode = jax.jit(lambda p, images, n: encode_images(vae, p, images.pixels, images.size, n))
    decode = jax.jit(lambda p, latents, size: decode_latents(vae, p, latents, size))
    return encode, decode


def train(minutes: float, out: pathlib.Path, start: str = "", log=print) -> pathlib.Path:
    """Trains for about `minutes` and returns the weights file `out`/tiny_vae.safetensors.

    The file always holds the best weights so far (by PSNR through posterior noise of the moving
    average of parameters, checked every two minutes), with scaling and shift measured on them.

    Args:
      start: weights to go on from (a safetensors file of the same config), or "".
    """
    out.mkdir(parents=True, exist_ok=True)
    target = out / "tiny_vae.safetensors"
    vae = FluxVae(TINY)
    if start:
        params = load_vae(saved_vae_config(start)).params
    else:
        example = jnp.zeros((1, 16, 16, 3)), jnp.full((1, 2), 16, jnp.int32)
        params = jax.jit(vae.init)(jax.random.key(0), *example)["params"]
        last = params["encoder"]["conv_out"]
        last["bias"] = last["bias"].at[TINY.latent_channels :].set(LOGVAR_AT_START)

    def inputs(index: int, done: float) -> tuple:
        _, size, canvas = next(phase for phase in PHASES if done < phase[0])
        kl_weight = KL_WEIGHT * (1.0 if start else min(1.0, 4 * done))
        return cut_batch(TRAIN, index, size, canvas), index, kl_weight

    def loss(params, images, seed, kl_weight):
        return loss_fn(params, vae, images, _noise(images, seed), kl_weight)

    best = 0.0

    def check(average) -> None:
        nonlocal best
        figures = held_out_psnr(average, TINY)
        log("held out: " + training.shown(figures))
        if figures["psnr_sampled"] > best:
            best = figures["psnr_sampled"]
            scaling, shift = 1 / figures["latent_std"], figures["latent_mean"]
            measured = dataclasses.replace(
                TINY, scaling_factor=round(scaling, 4), shift_factor=round(shift, 4)
            )
            save_weights(target, average, measured)

    training.train(minutes, params, loss, inputs, check, resumed=bool(start), log=log)
    return target
