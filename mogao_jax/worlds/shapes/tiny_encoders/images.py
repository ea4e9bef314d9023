"""Images of the embedded world for training and checking encoders, with labels from the truth.

Axes: N images, one per row; P patches (in the merge order).
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from mogao_jax import images
from mogao_jax.config.geometry import VAE_GRID, VIT_MERGE, VIT_PATCH
from mogao_jax.sequence.batch import VitPatches
from mogao_jax.worlds.shapes.placement import random_scene
from mogao_jax.worlds.shapes.render import coverage, render
from mogao_jax.worlds.shapes.rng import Rng, pick
from mogao_jax.worlds.shapes.scene import (
    BACKGROUND_NAMES,
    COLOR_NAMES,
    DEFAULT_WORLD,
    REGION_NAMES,
    SHAPES,
    SIZES,
    WORLDS,
    Scene,
    World,
    region,
)

# What the encoders learn from; other worlds show no more than these.
LEARNED_WORLDS = (WORLDS["free"], WORLDS["grid"])

# Seeds of the streams: the first word of every generator's seed. Held-out images come from a
# stream that no training reads.
TRAIN, HELD_OUT, PROBE_FIT, PROBE_TEST = 101, 202, 303, 404

_CELL = VAE_GRID // VIT_MERGE  # VAE-side pixels under one ViT patch
_MIN_COVERED = 6  # of those 64 pixels, for a patch to count as showing an object


class CanvasBatch(NamedTuple):
    """Images on canvases of one size."""

    pixels: np.ndarray  # uint8[N, Hc, Wc, 3], top-left on the canvas, zero elsewhere
    size: np.ndarray  # int32[N, 2]


def canvas_groups(world: World = DEFAULT_WORLD) -> tuple[tuple[tuple[int, int], World], ...]:
    """Square, wide and tall canvases, each with the world restricted to images that fit it.

    One square canvas for all would be mostly empty; one canvas per size would compile often.
    """
    groups: list[list[tuple[int, int]]] = [[], [], []]
    longest = max(min(h, w) for h, w in world.canvases)
    for h, w in world.canvases:
        groups[0 if max(h, w) <= longest else 1 if w > h else 2].append((h, w))
    return tuple(
        (
            (max(h for h, _ in sizes), max(w for _, w in sizes)),
            dataclasses.replace(world, canvases=tuple(sizes)),
        )
        for sizes in groups
        if sizes
    )


def on_canvas(pixels: list[np.ndarray], canvas: tuple[int, int]) -> CanvasBatch:
    """Images uint8[h, w, 3] top-left on canvases of one size."""
    out = np.zeros((len(pixels), *canvas, 3), np.uint8)
    for i, image in enumerate(pixels):
        out[i, : image.shape[0], : image.shape[1]] = image
    return CanvasBatch(out, np.asarray([image.shape[:2] for image in pixels], np.int32))


def any_scene(rng: Rng, count: int | None = None) -> Scene:
    """A random scene (of `count` objects) of one of the worlds, each as likely."""
    return random_scene(rng, pick(rng, LEARNED_WORLDS), count)


def scenes(stream: int, index: int, count: int, world: World = DEFAULT_WORLD) -> list[Scene]:
    """`count` random scenes, determined by (stream, index)."""
    rng = np.random.default_rng((stream, index))
    return [random_scene(rng, world) for _ in range(count)]


def image_batch(
    stream: int, index: int, count: int, world: World, canvas: tuple[int, int]
) -> CanvasBatch:
    """`count` random images on `canvas`, determined by (stream, index)."""
    return on_canvas([render(s) for s in scenes(stream, index, count, world)], canvas)


def cut_batch(stream: int, index: int, count: int, canvas: tuple[int, int]) -> CanvasBatch:
    """As `image_batch`, of all worlds; an image larger than the canvas is cut to it."""
    rng = np.random.default_rng((stream, index))
    cut = []
    for _ in range(count):
        image = render(any_scene(rng))
        h, w = min(image.shape[0], canvas[0]), min(image.shape[1], canvas[1])
        top, left = rng.integers(image.shape[0] - h + 1), rng.integers(image.shape[1] - w + 1)
        cut.append(image[top : top + h, left : left + w])
    return on_canvas(cut, canvas)


# ------------------------------------------------------------------------- for the vision tower


class Labels(NamedTuple):
    """The truth. -1 means that the question does not apply."""

    background: np.ndarray  # int32[N]
    number: np.ndarray  # int32[N]     number of objects - 1
    shape_counts: np.ndarray  # int32[N, 6]   how many circles, squares, ...
    color_counts: np.ndarray  # int32[N, 8]
    place: np.ndarray  # int32[N]      region of a lone object, if the world would name one
    patch_shape: np.ndarray  # int32[N, P]   of the object that a patch shows most; 0: none
    patch_color: np.ndarray  # int32[N, P]   likewise; 0: none
    patch_size: np.ndarray  # int32[N, P]   0 small, 1 large, -1 none
    patch_offset: np.ndarray  # float32[N, P, 2] from the patch to that object's centre, in patches
    patch_center: np.ndarray  # float32[N, P, 2] that centre in the image, each axis in [0, 1]
    patch_place: np.ndarray  # float32[N, P, 4] of the patch itself: in patches / 8, and in [0, 1]


def vit_input(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Patches and positions of one image uint8[H, W, 3], on the VAE's token grid."""
    h, w = images.vit_size(pixels.shape[0], pixels.shape[1], "match_vae_grid", 1 << 30)
    return images.vit_patches(images.resize(pixels, h, w))


def rows(scenes: list[Scene], patches: int) -> VitPatches:
    """One image per row of `patches` patches, padded."""
    out = VitPatches(
        np.zeros((len(scenes), patches, 3 * VIT_PATCH**2), np.uint8),
        np.zeros((len(scenes), patches, 2), np.int32),
        np.zeros((len(scenes), patches), np.int32),
    )
    for i, scene in enumerate(scenes):
        pixels, positions = vit_input(render(scene))
        n = len(pixels)
        out.pixels[i, :n], out.positions[i, :n], out.segment[i, :n] = pixels, positions, 1
    return out


def labels(scenes: list[Scene], given: VitPatches) -> Labels:
    """The labels of scenes laid out by `rows`."""
    n, p = given.segment.shape
    out = Labels(
        background=np.asarray([BACKGROUND_NAMES.index(s.background) for s in scenes], np.int32),
        number=np.asarray([len(s.objects) - 1 for s in scenes], np.int32),
        shape_counts=np.zeros((n, len(SHAPES)), np.int32),
        color_counts=np.zeros((n, len(COLOR_NAMES)), np.int32),
        place=np.full(n, -1, np.int32),
        patch_shape=np.zeros((n, p), np.int32),
        patch_color=np.zeros((n, p), np.int32),
        patch_size=np.full((n, p), -1, np.int32),
        patch_offset=np.zeros((n, p, 2), np.float32),
        patch_center=np.zeros((n, p, 2), np.float32),
        patch_place=np.zeros((n, p, 4), np.float32),
    )
    for i, scene in enumerate(scenes):
        for o in scene.objects:
            out.shape_counts[i, SHAPES.index(o.shape)] += 1
            out.color_counts[i, COLOR_NAMES.index(o.color)] += 1
        if len(scene.objects) == 1 and (name := region(scene.objects[0], scene)):
            out.place[i] = REGION_NAMES.index(name)
        shown = objects_by_cell(scene)
        real = given.segment[i] > 0
        y, x = given.positions[i, real].T
        own = np.stack([y, x], -1) + 0.5
        size = np.asarray([scene.height, scene.width])
        out.patch_place[i, real] = np.concatenate([own / _CELL, own * _CELL / size], -1)
        index = shown[y, x]
        for k, o in enumerate(scene.objects):
            where = np.flatnonzero(index == k)
            out.patch_shape[i, where] = 1 + SHAPES.index(o.shape)
            out.patch_color[i, where] = 1 + COLOR_NAMES.index(o.color)
            out.patch_size[i, where] = SIZES.index(o.size)
            out.patch_offset[i, where, 0] = o.cy / _CELL - y[where] - 0.5
            out.patch_offset[i, where, 1] = o.cx / _CELL - x[where] - 0.5
            out.patch_center[i, where] = np.asarray([o.cy, o.cx]) / size
    return out


def objects_by_cell(scene: Scene) -> np.ndarray:
    """int[H / 8, W / 8]: the object that covers most of each 8x8 cell, or -1 for none."""
    h, w = scene.height // _CELL, scene.width // _CELL
    most = np.full((h, w), _MIN_COVERED - 0.5)
    shown = np.full((h, w), -1)
    for k, o in enumerate(scene.objects):
        canvas = np.zeros((scene.height, scene.width), np.float32)
        top, left = o.cy - o.diameter // 2, o.cx - o.diameter // 2
        canvas[top : top + o.diameter, left : left + o.diameter] = coverage(o.shape, o.diameter)
        covered = canvas.reshape(h, _CELL, w, _CELL).sum((1, 3))
        shown = np.where(covered > most, k, shown)
        most = np.maximum(most, covered)
    return shown
