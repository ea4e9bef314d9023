"""Pictures of the embedded world as fixed-shape batches, for training and checking encoders."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from mogao_jax.worlds.shapes.placement import random_scene
from mogao_jax.worlds.shapes.render import render
from mogao_jax.worlds.shapes.rng import pick
from mogao_jax.worlds.shapes.scene import DEFAULT_WORLD, WORLDS, Scene, World

# What the encoders learn from; other worlds show no more than these.
LEARNED_WORLDS = (WORLDS["free"], WORLDS["grid"])

# Seeds of the streams: the first word of every generator's seed. Held-out pictures come from
# a stream that no training reads.
TRAIN, HELD_OUT, PROBE_FIT, PROBE_TEST = 101, 202, 303, 404


class Pictures(NamedTuple):
    pixels: np.ndarray  # uint8[N, Hc, Wc, 3], top-left on the canvas, zero elsewhere
    size: np.ndarray  # int32[N, 2]


def canvas_groups(world: World = DEFAULT_WORLD) -> tuple[tuple[tuple[int, int], World], ...]:
    """Square, wide and tall canvases, each with the world restricted to pictures that fit it.

    One square canvas for all would be mostly empty; one canvas per size would compile often.
    """
    groups: list[list[tuple[int, int]]] = [[], [], []]
    longest = max(min(h, w) for h, w in world.canvases)
    for h, w in world.canvases:
        groups[0 if max(h, w) <= longest else 1 if w > h else 2].append((h, w))
    out = []
    for sizes in groups:
        if sizes:
            canvas = max(h for h, _ in sizes), max(w for _, w in sizes)
            out.append((canvas, _restricted(world, tuple(sizes))))
    return tuple(out)


def _restricted(world: World, canvases: tuple[tuple[int, int], ...]) -> World:
    return dataclasses.replace(world, canvases=canvases)


def on_canvas(images: list[np.ndarray], canvas: tuple[int, int]) -> Pictures:
    """Images uint8[h, w, 3] top-left on canvases of one size."""
    pixels = np.zeros((len(images), *canvas, 3), np.uint8)
    for i, image in enumerate(images):
        pixels[i, : image.shape[0], : image.shape[1]] = image
    return Pictures(pixels, np.asarray([im.shape[:2] for im in images], np.int32))


def any_scene(rng: np.random.Generator, count: int | None = None) -> Scene:
    """A random scene (of `count` objects) of one of the worlds, each as likely."""
    return random_scene(rng, pick(rng, LEARNED_WORLDS), count)


def scenes(stream: int, index: int, count: int, world: World = DEFAULT_WORLD) -> list[Scene]:
    """`count` random scenes, determined by (stream, index)."""
    rng = np.random.default_rng((stream, index))
    return [random_scene(rng, world) for _ in range(count)]


def picture_batch(
    stream: int, index: int, count: int, world: World, canvas: tuple[int, int]
) -> Pictures:
    """`count` random pictures on `canvas`, determined by (stream, index)."""
    return on_canvas([render(s) for s in scenes(stream, index, count, world)], canvas)


def cut_batch(stream: int, index: int, count: int, canvas: tuple[int, int]) -> Pictures:
    """As `picture_batch`, of all worlds; a picture larger than the canvas is cut to it."""
    rng = np.random.default_rng((stream, index))
    images = []
    for _ in range(count):
        image = render(any_scene(rng))
        h, w = min(image.shape[0], canvas[0]), min(image.shape[1], canvas[1])
        top, left = rng.integers(image.shape[0] - h + 1), rng.integers(image.shape[1] - w + 1)
        images.append(image[top : top + h, left : left + w])
    return on_canvas(images, canvas)
