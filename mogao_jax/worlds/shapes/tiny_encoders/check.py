"""The figures of a pair of tiny encoders: size, fidelity, what can be read, and speed."""

from __future__ import annotations

import dataclasses
import pathlib
import time

import jax
import numpy as np

from mogao_jax.models.encoder_weights import (
    EMBEDDED,
    load_vae,
    load_vit,
    saved_vae_config,
    saved_vit_config,
    weights_file,
)
from mogao_jax.models.vae import encode_images
from mogao_jax.worlds.shapes.render import render
from mogao_jax.worlds.shapes.tiny_encoders.images import HELD_OUT, rows, scenes
from mogao_jax.worlds.shapes.tiny_encoders.probes import PATCHES, SQUARE, probe_accuracies
from mogao_jax.worlds.shapes.tiny_encoders.train_vae import held_out_psnr


def figures(vae_weights: str = "", vit_weights: str = "") -> dict[str, dict]:
    """All figures; "" stands for the embedded weights.

    PSNR in dB over held-out images, milliseconds per 64x64 image (compiled, batches of 16,
    on whatever this machine has), sizes in bytes and parameters.
    """
    return {"vae": _vae_figures(vae_weights), "vit": _vit_figures(vit_weights)}


def _vae_figures(weights: str) -> dict:
    config = saved_vae_config(weights or EMBEDDED)
    vae, params = load_vae(config)
    pixels = np.stack([render(s) for s in scenes(HELD_OUT, 7, 16, SQUARE)])
    size = np.full((16, 2), 64, np.int32)
    encode = jax.jit(lambda p, x: encode_images(vae, p, x, size))
    # Measured on unscaled latents, so that mean and deviation are those that the config undoes.
    unscaled = dataclasses.replace(config, scaling_factor=1.0, shift_factor=0.0)
    return {
        **_size(weights_file("vae", config.weights), params),
        **held_out_psnr(params, unscaled),
        "scaling_factor": config.scaling_factor,
        "shift_factor": config.shift_factor,
        "encode_ms_per_image": _milliseconds(encode, params, pixels),
    }


def _vit_figures(weights: str) -> dict:
    config = saved_vit_config(weights or EMBEDDED)
    tower, params = load_vit(config)
    given = rows(scenes(HELD_OUT, 7, 16, SQUARE), PATCHES)
    encode = jax.jit(lambda p, x: tower.apply({"params": p}, *x[:3]))
    return {
        **_size(weights_file("vit", config.weights), params),
        "probe_accuracy": probe_accuracies(tower, params),
        "encode_ms_per_image": _milliseconds(encode, params, given),
    }


def _size(path: pathlib.Path, params) -> dict:
    return {
        "bytes": path.stat().st_size,
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
    }


def _milliseconds(function, *inputs, images: int = 16, repeats: int = 10) -> float:
    """The best of some runs, per image."""
    jax.block_until_ready(function(*inputs))
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(function(*inputs))
        best = min(best, time.perf_counter() - begin)
    return round(1e3 * best / images, 3)
