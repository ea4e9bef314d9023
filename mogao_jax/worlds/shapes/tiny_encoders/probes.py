"""What can be read from frozen features by a linear probe, on held-out images.

Five probes, each a multinomial logistic regression on standardised features (before the merger)
of images that neither the encoder's training nor the other half of the probe has seen:

- color, shape: of the object in an image of one object; from the mean over patches;
- count: one to five objects, each as often; from the mean over patches;
- place: which of the nine regions of a 64x64 image its one object is in, where the world would
  name one; from the tokens' features side by side (the mean over a token's four patches);
- own_place: which of the sixteen tokens of a 64x64 image a token is; from its features alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mogao_jax.models.vit import VisionTower
from mogao_jax.sequence.batch import VitPatches
from mogao_jax.worlds.shapes.placement import random_scene
from mogao_jax.worlds.shapes.rng import Rng
from mogao_jax.worlds.shapes.scene import (
    COLOR_NAMES,
    DEFAULT_WORLD,
    REGION_NAMES,
    SHAPES,
    Scene,
    World,
    region,
)
from mogao_jax.worlds.shapes.tiny_encoders.images import PROBE_FIT, PROBE_TEST, any_scene, rows

PATCHES = 64
SQUARE = dataclasses.replace(DEFAULT_WORLD, canvases=((64, 64),))

Draw = Callable[[Rng], tuple[Scene, int]]


def _lone(rng: Rng, name: str, known: tuple[str, ...]) -> tuple[Scene, int]:
    scene = any_scene(rng, count=1)
    return scene, known.index(getattr(scene.objects[0], name))


def _count(rng: Rng) -> tuple[Scene, int]:
    scene = any_scene(rng)
    return scene, len(scene.objects) - 1


def _place(rng: Rng, world: World = SQUARE) -> tuple[Scene, int]:
    while True:
        scene = random_scene(rng, world, count=1)
        name = region(scene.objects[0], scene)
        if name is not None:
            return scene, REGION_NAMES.index(name)


def _own_place(rng: Rng) -> tuple[Scene, int]:
    return random_scene(rng, SQUARE), int(rng.integers(PATCHES // 4))


PROBES: dict[str, tuple[Draw, int]] = {
    "color": (lambda rng: _lone(rng, "color", COLOR_NAMES), len(COLOR_NAMES)),
    "shape": (lambda rng: _lone(rng, "shape", SHAPES), len(SHAPES)),
    "count": (_count, DEFAULT_WORLD.max_count),
    "place": (_place, len(REGION_NAMES)),
    "own_place": (_own_place, PATCHES // 4),
}


def probe_accuracies(
    tower: VisionTower,
    params,
    *,
    fit: int = 3000,
    test: int = 1000,
    batch: int = 100,
    names: Collection[str] = tuple(PROBES),
) -> dict[str, float]:
    """Accuracy of each probe (or of those named) on `test` images, after `fit` others."""
    apply = jax.jit(lambda *given: tower.apply({"params": params}, *given[:3]))
    out = {}
    for index, (name, (draw, classes)) in enumerate(PROBES.items()):
        if name not in names:
            continue
        read = functools.partial(_features, apply, draw, _READ.get(name, _mean), batch)
        x, y = read((PROBE_FIT, index), fit)
        x_test, y_test = read((PROBE_TEST, index), test)
        mean, std = x.mean(0), x.std(0) + 1e-6
        weights = fit_logistic((x - mean) / std, y, classes)
        guess = ((x_test - mean) / std) @ weights["kernel"] + weights["bias"]
        out[name] = float((np.asarray(guess).argmax(-1) == y_test).mean())
    return out


def _mean(features: np.ndarray, given: VitPatches, classes: np.ndarray) -> np.ndarray:
    return features.sum(1) / (given.segment > 0).sum(1, keepdims=True)


def _tokens(features: np.ndarray) -> np.ndarray:
    return features.reshape(len(features), PATCHES // 4, 4, -1).mean(2)


def _side_by_side(features: np.ndarray, given: VitPatches, classes: np.ndarray) -> np.ndarray:
    return _tokens(features).reshape(len(features), -1)


def _one_token(features: np.ndarray, given: VitPatches, classes: np.ndarray) -> np.ndarray:
    return _tokens(features)[np.arange(len(features)), classes]


_READ = {"place": _side_by_side, "own_place": _one_token}  # others: the mean over patches


def _features(apply, draw: Draw, read: Callable, batch: int, seed, count: int):
    """What `read` takes from the features, float32[count, F], and classes int[count]."""
    rng = np.random.default_rng(seed)
    pooled, classes = [], []
    for start in range(0, count, batch):
        drawn = [draw(rng) for _ in range(min(batch, count - start))]
        given = rows([scene for scene, _ in drawn], PATCHES)
        truth = np.asarray([label for _, label in drawn])
        pooled.append(read(np.asarray(apply(*given)), given, truth))
        classes.append(truth)
    return np.concatenate(pooled), np.concatenate(classes)


def fit_logistic(x: np.ndarray, y: np.ndarray, classes: int, l2: float = 1e-4) -> dict:
    """Multinomial logistic regression by full-batch Adam; deterministic.

    Args:
      x: float32[N, F], standardised.
      y: int[N] in [0, classes).
    Returns:
      {"kernel": float32[F, classes], "bias": float32[classes]}.
    """
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, _FIT_STEPS))

    def loss(weights):
        logits = x @ weights["kernel"] + weights["bias"]
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        return nll + l2 * jnp.square(weights["kernel"]).sum()

    def step(carry, _):
        weights, state = carry
        updates, state = optimizer.update(jax.grad(loss)(weights), state)
        return (optax.apply_updates(weights, updates), state), None

    weights = {"kernel": jnp.zeros((x.shape[1], classes)), "bias": jnp.zeros(classes)}
    run = jax.jit(lambda w: jax.lax.scan(step, (w, optimizer.init(w)), None, _FIT_STEPS)[0][0])
    return run(weights)


_FIT_STEPS = 400
