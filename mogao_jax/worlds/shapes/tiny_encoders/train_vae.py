"""Trains the tiny VAE on the embedded world's pictures.

Squared error and a little absolute error in pixels, through the posterior's noise, plus a KL
term. Its weight decides how easy the latents are to generate: a decoder that bears noise of half
the latents' variance forgives a flow its small errors, and whatever a picture does not need is
left at the prior. Models are trained on the posterior's mean (`sample_posterior` False).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from mogao_jax.config.geometry import LATENT_STRIDE
from mogao_jax.config.schema import VaeConfig
from mogao_jax.models.encoder_weights import load_vae, save_weights, saved_vae_config
from mogao_jax.models.masked_layers import image_mask
from mogao_jax.models.vae import FluxVae, decode_latents, encode_images
from mogao_jax.worlds.shapes.tiny_encoders.images import (
    HELD_OUT,
    LEARNED_WORLDS,
    TRAIN,
    Pictures,
    canvas_groups,
    cut_batch,
    picture_batch,
)
from mogao_jax.worlds.shapes.tiny_encoders.optimizer import (
    PEAK_LEARNING_RATE,
    average_decay,
    learning_rate,
    muon,
)

TINY = VaeConfig(
    block_channels=(8, 16, 32, 64),
    layers_per_block=1,
    norm_groups=4,
    scaling_factor=1.0,
    shift_factor=0.0,
    sample_posterior=False,
)
# (share of the time, pictures per batch, canvas): larger pictures are cut to the canvas. Small
# cuts first, for more and more varied steps in the same time.
PHASES = ((0.6, 16, (32, 32)), (1.0, 8, (64, 64)))
CHECK_EVERY = 120  # seconds
LOGVAR_AT_START = -6.0  # else the posterior's noise is as loud as its mean
KL_WEIGHT = 3e-3  # of the mean KL per latent, against the mean squared error per pixel value
L1_WEIGHT = 0.1


def loss_fn(params, vae: FluxVae, pictures: Pictures, noise: jax.Array, kl_weight: jax.Array):
    """Scalar loss and its parts, in [-1, 1] pixel values, means over real pixels and latents."""
    x = pictures.pixels.astype(jnp.float32) / 127.5 - 1.0
    size = pictures.size
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
    """Peak signal-to-noise ratio in dB of each picture, over its own pixels (uint8 values)."""
    out = []
    for a, b, (h, w) in zip(reference, other, size, strict=True):
        error = a[:h, :w].astype(np.float64) - b[:h, :w]
        out.append(10 * math.log10(255.0**2 / max(np.mean(error**2), 1e-9)))
    return np.asarray(out)


def held_out_psnr(params, config: VaeConfig, count: int = 192) -> dict[str, float]:
    """Mean PSNR over held-out pictures of all worlds, from the mean and through posterior noise.

    Also the mean and deviation of the latents (posterior means), and the share of the sampled
    latents' variance that they are; the rest is posterior noise.
    """
    encode, decode = _jitted(config)
    scores: dict[str, list] = {"psnr_mean": [], "psnr_sampled": []}
    values: dict[str, list] = {"psnr_mean": [], "psnr_sampled": []}
    groups = [group for world in LEARNED_WORLDS for group in canvas_groups(world)]
    for g, (canvas, world) in enumerate(groups):
        pictures = picture_batch(HELD_OUT, g, count // len(groups), world, canvas)
        shape = (*pictures.pixels.shape[:1], *(side // LATENT_STRIDE for side in canvas), 16)
        noise = jax.random.normal(jax.random.key(g), shape)
        for name, given in (("psnr_mean", jnp.zeros(shape)), ("psnr_sampled", noise)):
            latents = encode(params, pictures, given)
            pixels = np.asarray(decode(params, latents, pictures.size))
            scores[name] += list(psnr(pictures.pixels, pixels, pictures.size))
            mask = image_mask(pictures.size, shape[1], shape[2], stride=LATENT_STRIDE)[..., 0]
            values[name].append(np.asarray(latents)[np.asarray(mask)])
    means, flat = (np.concatenate(values[k]) for k in ("psnr_mean", "psnr_sampled"))
    return {k: float(np.mean(v)) for k, v in scores.items()} | {
        "psnr_sampled_worst": float(np.min(scores["psnr_sampled"])),
        "latent_mean": float(means.mean()),
        "latent_std": float(means.std()),
        "signal_share": float(means.var() / flat.var()),
    }


@functools.cache
def _jitted(config: VaeConfig):
    vae = FluxVae(config)
    encode = jax.jit(lambda p, pics, n: encode_images(vae, p, pics.pixels, pics.size, n))
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
    optimizer = muon()
    state = params, params, optimizer.init(params)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, pictures, seed, rate, kl_weight, decay):
        params, average, moments = state
        n, h, w, _ = pictures.pixels.shape
        noise = jax.random.normal(
            jax.random.key(seed), (n, h // LATENT_STRIDE, w // LATENT_STRIDE, 16)
        )
        (_, parts), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            params, vae, pictures, noise, kl_weight
        )
        updates, moments = optimizer.update(grads, moments, params)
        params = jax.tree.map(lambda p, u: p + rate * u, params, updates)
        average = jax.tree.map(lambda a, p: a + (1 - decay) * (p - a), average, params)
        return (params, average, moments), parts

    state = jax.tree.map(jnp.copy, state)
    best, begin = 0.0, time.monotonic()
    seed_base = int(time.time()) if start else 0  # going on must not repeat the same pictures
    peak = PEAK_LEARNING_RATE / 2 if start else PEAK_LEARNING_RATE
    count, last_check = 0, begin
    while True:
        done = (time.monotonic() - begin) / (60 * minutes)
        if time.monotonic() - last_check > CHECK_EVERY or done >= 1:
            last_check = time.monotonic()
            best = _check_and_save(state[1], best, target, log)
        if done >= 1:
            return target
        _, size, canvas = next(phase for phase in PHASES if done < phase[0])
        pictures = cut_batch(TRAIN, seed_base + count, size, canvas)
        kl_weight = KL_WEIGHT * (1.0 if start else min(1.0, 4 * done))
        rate, decay = learning_rate(done, peak), average_decay(count)
        state, parts = step(state, pictures, seed_base + count, rate, kl_weight, decay)
        count += 1
        if count % 100 == 0:
            shown = ", ".join(f"{k} {float(v):.5f}" for k, v in parts.items())
            log(f"step {count}, {100 * done:.1f}%: {shown}")


def _check_and_save(params, best: float, target: pathlib.Path, log) -> float:
    figures = held_out_psnr(params, TINY)
    log("held out: " + ", ".join(f"{k} {v:.3f}" for k, v in figures.items()))
    if figures["psnr_sampled"] <= best:
        return best
    measured = dataclasses.replace(
        TINY,
        scaling_factor=round(1 / figures["latent_std"], 4),
        shift_factor=round(figures["latent_mean"], 4),
    )
    save_weights(target, params, measured)
    return figures["psnr_sampled"]
