"""Images and labels of the encoders' training, against the scenes' truth."""

from __future__ import annotations

import numpy as np

from mogao_jax.worlds.shapes.render import coverage, render
from mogao_jax.worlds.shapes.scene import (
    COLOR_NAMES,
    DEFAULT_WORLD,
    REGION_NAMES,
    SHAPES,
    Object,
    Scene,
)
from mogao_jax.worlds.shapes.tiny_encoders import images

SCENE = Scene(
    32,
    48,
    "white",
    (Object("square", "red", "large", 22, 14, 14), Object("circle", "blue", "small", 14, 38, 20)),
)


def test_groups_hold_every_canvas_once():
    groups = images.canvas_groups()
    held = [size for (height, width), world in groups for size in world.canvases]
    assert sorted(held) == sorted(DEFAULT_WORLD.canvases)
    for (height, width), world in groups:
        assert all(h <= height and w <= width for h, w in world.canvases)


def test_batches_are_determined_by_stream_and_index():
    a, b, c, d = (
        images.cut_batch(stream, index, 4, (32, 32))
        for stream, index in ((1, 0), (1, 0), (1, 1), (2, 0))
    )
    np.testing.assert_array_equal(a.pixels, b.pixels)
    assert (a.pixels != c.pixels).any() and (a.pixels != d.pixels).any()
    assert (a.size == 32).all() and a.pixels.shape == (4, 32, 32, 3)


def test_objects_by_cell_counts_pixels():
    shown = images.objects_by_cell(SCENE)
    wanted = np.full((4, 6), -1)
    for y in range(4):
        for x in range(6):
            covered = []
            for o in SCENE.objects:
                alpha = coverage(o.shape, o.diameter)
                total = 0.0
                for py in range(8 * y, 8 * y + 8):
                    for px in range(8 * x, 8 * x + 8):
                        ay, ax = py - o.cy + o.diameter // 2, px - o.cx + o.diameter // 2
                        if 0 <= ay < o.diameter and 0 <= ax < o.diameter:
                            total += alpha[ay, ax]
                covered.append(total)
            if max(covered) > 5.5:
                wanted[y, x] = int(np.argmax(covered))
    np.testing.assert_array_equal(shown, wanted)
    assert {-1, 0, 1} == set(shown.ravel())


def test_rows_and_labels():
    lone = Scene(16, 16, "mint", (Object("ring", "cyan", "small", 10, 8, 8),))
    given = images.rows([SCENE, lone], 32)
    assert given.segment.sum(1).tolist() == [24, 4]  # (32 / 8) * (48 / 8), (16 / 8)**2
    truth = images.labels([SCENE, lone], given)
    assert truth.number.tolist() == [1, 0]
    assert truth.place.tolist() == [-1, REGION_NAMES.index("center")]
    assert truth.color_counts[0, COLOR_NAMES.index("red")] == 1
    assert truth.shape_counts.sum(1).tolist() == [2, 1]
    # Patch by patch: what the labels say lies there is the colour of most of its pixels.
    image = render(SCENE)
    for p in range(24):
        y, x = given.positions[0, p]
        cell = image[8 * y : 8 * y + 8, 8 * x : 8 * x + 8].astype(int)
        own = [(y + 0.5) / 8, (x + 0.5) / 8, (8 * y + 4) / SCENE.height, (8 * x + 4) / SCENE.width]
        np.testing.assert_allclose(truth.patch_place[0, p], own, rtol=1e-6)
        if truth.patch_color[0, p] and (cell == cell[0, 0]).all():
            name = COLOR_NAMES[truth.patch_color[0, p] - 1]
            assert (name == "red") == (cell[0, 0, 0] > cell[0, 0, 2])
        k = truth.patch_shape[0, p]
        if k:
            o = SCENE.objects[0 if SHAPES[k - 1] == "square" else 1]
            centre = (np.asarray([y, x]) + 0.5 + truth.patch_offset[0, p]) * 8
            np.testing.assert_allclose(centre, [o.cy, o.cx])
            in_image = truth.patch_center[0, p] * [SCENE.height, SCENE.width]
            np.testing.assert_allclose(in_image, [o.cy, o.cx], rtol=1e-6)
            assert truth.patch_size[0, p] == (o.size == "large")
    assert (truth.patch_shape[1, 4:] == 0).all()
