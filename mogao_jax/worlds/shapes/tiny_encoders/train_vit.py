"""Trains the tiny vision tower, supervised by the embedded world's truth.

Linear heads, thrown away afterwards, read from its features: from each patch what object it
shows, where that object's centre lies, and where the patch itself is in its picture (a language
model compares places; rotary positions alone leave them to its own attention); from the mean
over patches how many objects of each colour and shape there are, the background, and where a lone
object stands.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mogao_jax.config.schema import VitConfig
from mogao_jax.models.encoder_weights import load_vit, save_weights
from mogao_jax.models.vit import VisionTower
from mogao_jax.sequence.batch import VitPatches
from mogao_jax.worlds.shapes.tiny_encoders.images import HELD_OUT, TRAIN, any_scene
from mogao_jax.worlds.shapes.tiny_encoders.optimizer import (
    PEAK_LEARNING_RATE,
    average_decay,
    learning_rate,
    muon,
)
from mogao_jax.worlds.shapes.tiny_encoders.vit_images import (
    BACKGROUND_NAMES,
    COLOR_NAMES,
    REGION_NAMES,
    SHAPE_NAMES,
    Labels,
    labels,
    rows,
)

TINY = VitConfig(depth=4, embed_dim=96, num_heads=4, mlp_dim=384)
BATCH = 48
PATCHES = 64  # of the largest picture, 4096 pixels
CHECK_EVERY = 120  # seconds
LONE_SHARE = 0.25  # of the pictures show one object, to learn places
# Of losses other than 1: counting is the hardest to read, and errors of places are small numbers.
WEIGHTS = {"number": 3.0, "patch_place": 8.0, "patch_center": 8.0}
MAX_COUNT = 5

# What is read from each patch and from a picture, and how many numbers that takes.
PATCH_HEADS = {
    "shape": len(SHAPE_NAMES) + 1,
    "color": len(COLOR_NAMES) + 1,
    "size": 2,
    "offset": 2,
    "center": 2,
    "place": 4,
}
PICTURE_HEADS = {
    "background": len(BACKGROUND_NAMES),
    "number": MAX_COUNT,
    "shape_counts": len(SHAPE_NAMES) * (MAX_COUNT + 1),
    "color_counts": len(COLOR_NAMES) * (MAX_COUNT + 1),
    "place": len(REGION_NAMES),
}


def batch(stream: int, index: int, count: int = BATCH) -> tuple[VitPatches, Labels]:
    """Pictures and their truth, determined by (stream, index)."""
    rng = np.random.default_rng((stream, index, 7))
    scenes = [any_scene(rng, count=1 if rng.random() < LONE_SHARE else None) for _ in range(count)]
    given = rows(scenes, PATCHES)
    return given, labels(scenes, given)


def init_heads(dim: int) -> dict:
    def one(size):
        return {"kernel": jnp.zeros((dim, size)), "bias": jnp.zeros(size)}

    return {
        "patch": {k: one(n) for k, n in PATCH_HEADS.items()},
        "picture": {k: one(n) for k, n in PICTURE_HEADS.items()},
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

    def hidden(target):  # -1 at padding
        return jnp.where(given.segment > 0, target, -1)

    many = MAX_COUNT + 1
    out = {}
    for name, target in (("shape", truth.patch_shape), ("color", truth.patch_color)):
        out[f"patch_{name}"] = _cross_entropy(read("patch", name, features), hidden(target))
    out["patch_size"] = _cross_entropy(read("patch", "size", features), truth.patch_size)
    real = given.segment > 0
    shows = (truth.patch_shape > 0) & real
    for name, target, where in (
        ("offset", truth.patch_offset, shows),
        ("center", truth.patch_center, shows),
        ("place", truth.patch_place, real),
    ):
        error = jnp.abs(read("patch", name, features) - target).mean(-1)
        out[f"patch_{name}"] = jnp.where(where, error, 0).sum() / jnp.maximum(where.sum(), 1)
    for name in ("background", "number", "place"):
        out[name] = _cross_entropy(read("picture", name, pooled), getattr(truth, name))
    for name in ("shape_counts", "color_counts"):
        logits = read("picture", name, pooled).reshape(len(pooled), -1, many)
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
    optimizer = muon()

    def total(params, given, truth):
        parts = losses(params, tower, given, truth)
        return sum(WEIGHTS.get(k, 1.0) * v for k, v in parts.items()), parts

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, given, truth, rate, decay):
        params, average, moments = state
        (_, parts), grads = jax.value_and_grad(total, has_aux=True)(params, given, truth)
        updates, moments = optimizer.update(grads, moments, params)
        params = jax.tree.map(lambda p, u: p + rate * u, params, updates)
        average = jax.tree.map(lambda a, p: a + (1 - decay) * (p - a), average, params)
        return (params, average, moments), parts

    evaluate = jax.jit(lambda params, given, truth: total(params, given, truth)[1])
    state = jax.tree.map(jnp.copy, (params, params, optimizer.init(params)))
    seed_base = int(time.time()) if start else 0
    peak = PEAK_LEARNING_RATE / 2 if start else PEAK_LEARNING_RATE
    best, begin = float("inf"), time.monotonic()
    count, last_check = 0, begin
    with concurrent.futures.ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(batch, TRAIN, seed_base)
        while True:
            done = (time.monotonic() - begin) / (60 * minutes)
            if time.monotonic() - last_check > CHECK_EVERY or done >= 1:
                last_check = time.monotonic()
                held_out = evaluate(state[1], *batch(HELD_OUT, 1, 192))
                log("held out: " + _shown(held_out))
                if (loss := float(sum(held_out.values()))) < best:
                    best = loss
                    save_weights(target, state[1]["tower"], TINY)
            if done >= 1:
                return target
            given, truth = coming.result()
            coming = ahead.submit(batch, TRAIN, seed_base + count + 1)
            rate, decay = learning_rate(done, peak), average_decay(count)
            state, parts = step(state, given, truth, rate, decay)
            count += 1
            if count % 100 == 0:
                log(f"step {count}, {100 * done:.1f}%: {_shown(parts)}")


def _shown(parts: dict) -> str:
    return ", ".join(f"{k} {float(v):.4f}" for k, v in parts.items())
