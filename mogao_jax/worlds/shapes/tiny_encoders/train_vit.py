"""Trains the tiny vision tower, supervised by the embedded world's truth.

Linear heads, thrown away afterwards, read from its features: from each patch what object it
shows, where that object's centre lies, and where the patch itself is in its image (a language
model compares places; rotary positions alone leave them to its own attention); from the mean over
patches how many objects of each colour and shape there are, the background, and where a lone object
stands.
"""

from __future__ import annotations

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mogao_jax.config.schema import VitConfig
from mogao_jax.models.encoder_weights import load_vit, save_weights
from mogao_jax.models.vit import VisionTower
from mogao_jax.sequence.batch import VitPatches
from mogao_jax.worlds.shapes.scene import BACKGROUND_NAMES, COLOR_NAMES, REGION_NAMES, SHAPES
from mogao_jax.worlds.shapes.tiny_encoders import training
from mogao_jax.worlds.shapes.tiny_encoders.images import (
    HELD_OUT,
    TRAIN,
    Labels,
    any_scene,
    labels,
    rows,
)

TINY = VitConfig(depth=4, embed_dim=96, num_heads=4, mlp_dim=384)
BATCH = 48
PATCHES = 64  # of the largest image, 4096 pixels
LONE_SHARE = 0.25  # of the images show one object, to learn places
# Of losses other than 1: counting is the hardest to read, and errors of places are small numbers.
WEIGHTS = {"number": 3.0, "patch_place": 8.0, "patch_center": 8.0}
MAX_COUNT = 5

# What is read from each patch and from an image, and how many numbers that takes.
PATCH_HEADS = {
    "shape": len(SHAPES) + 1,
    "color": len(COLOR_NAMES) + 1,
    "size": 2,
    "offset": 2,
    "center": 2,
    "place": 4,
}
IMAGE_HEADS = {
    "background": len(BACKGROUND_NAMES),
    "number": MAX_COUNT,
    "shape_counts": len(SHAPES) * (MAX_COUNT + 1),
    "color_counts": len(COLOR_NAMES) * (MAX_COUNT + 1),
    "place": len(REGION_NAMES),
}


def batch(stream: int, index: int, count: int = BATCH) -> tuple[VitPatches, Labels]:
    """Images and their truth, determined by (stream, index)."""
    rng = np.random.default_rng((stream, index, 7))
    scenes = [any_scene(rng, count=1 if rng.random() < LONE_SHARE else None) for _ in range(count)]
    given = rows(scenes, PATCHES)
    return given, labels(scenes, given)


def init_heads(dim: int) -> dict:
    def one(size):
        return {"kernel": jnp.zeros((dim, size)), "bias": jnp.zeros(size)}

    return {
        "patch": {k: one(n) for k, n in PATCH_HEADS.items()},
        "image": {k: one(n) for k, n in IMAGE_HEADS.items()},
    }


def pool(features: jax.Array, segment: jax.Array) -> jax.Array:
    """Mean over the real patches: float[N, P, D] -> float[N, D]."""
    return features.sum(1) / jnp.maximum((segment > 0).sum(1), 1)[:, None]


def _cross_entropy(logits: jax.Array, target: jax.Array | np.ndarray) -> jax.Array:
    """Mean over targets that are not -1."""
    known = target >= 0
    values = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(target, 0))
    return jnp.where(known, values, 0).sum() / jnp.maximum(known.sum(), 1)


def losses(params: dict, tower: VisionTower, given: VitPatches, truth: Labels) -> dict:
    """The loss of every head, by name."""
    features = tower.apply({"params": params["tower"]}, *given[:3])
    pooled = pool(features, given.segment)

    def read(kind, name, x):
        head = params["heads"][kind][name]
        return x @ head["kernel"] + head["bias"]

    real = given.segment > 0
    shows = (truth.patch_shape > 0) & real
    out = {}
    for name in ("shape", "color"):
        target = jnp.where(real, getattr(truth, f"patch_{name}"), -1)
        out[f"patch_{name}"] = _cross_entropy(read("patch", name, features), target)
    out["patch_size"] = _cross_entropy(read("patch", "size", features), truth.patch_size)
    for name, where in (("offset", shows), ("center", shows), ("place", real)):
        target = getattr(truth, f"patch_{name}")
        error = jnp.abs(read("patch", name, features) - target).mean(-1)
        out[f"patch_{name}"] = jnp.where(where, error, 0).sum() / jnp.maximum(where.sum(), 1)
    for name in ("background", "number", "place"):
        out[name] = _cross_entropy(read("image", name, pooled), getattr(truth, name))
    for name in ("shape_counts", "color_counts"):
        logits = read("image", name, pooled).reshape(len(pooled), -1, MAX_COUNT + 1)
        out[name] = _cross_entropy(logits, getattr(truth, name))
    return out


def train(minutes: float, out: pathlib.Path, start: str = "", log=print) -> pathlib.Path:
    """Trains for about `minutes` and returns the weights file `out`/tiny_vit.safetensors.

    As `train_vae.train`; the best weights are those with the least held-out loss.
    """
    out.mkdir(parents=True, exist_ok=True)
    target = out / "tiny_vit.safetensors"
    tower = VisionTower(TINY)
    if start:
        params = load_vit(dataclasses.replace(TINY, weights=start)).params
    else:
        params = jax.jit(tower.init)(jax.random.key(0), *batch(HELD_OUT, 0, 1)[0])["params"]
    params = {"tower": params, "heads": init_heads(TINY.embed_dim)}

    def total(params, given, truth):
        parts = losses(params, tower, given, truth)
        return sum(WEIGHTS.get(k, 1.0) * v for k, v in parts.items()), parts

    evaluate = jax.jit(lambda params, given, truth: total(params, given, truth)[1])
    best = float("inf")

    def check(average) -> None:
        nonlocal best
        held_out = evaluate(average, *batch(HELD_OUT, 1, 192))
        log("held out: " + training.shown(held_out))
        loss = float(sum(held_out.values()))
        if loss < best:
            best = loss
            save_weights(target, average["tower"], TINY)

    training.train(
        minutes,
        params,
        total,
        lambda index, done: batch(TRAIN, index),
        check,
        resumed=bool(start),
        log=log,
    )
    return target
