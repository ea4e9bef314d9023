import numpy as np
import pytest

from mogao_jax.worlds.shapes.placement import random_scene
from mogao_jax.worlds.shapes.render import coverage, render
from mogao_jax.worlds.shapes.scene import BACKGROUNDS, COLORS, NOVEL_SHAPES, SHAPES, Object, Scene


def inside(shape, x, y):
    """Point in shape, box [-1, 1] with y down, by inequalities."""
    if shape == "circle":
        return x**2 + y**2 < 1
    if shape == "ring":
        return (x**2 + y**2 < 1) & (x**2 + y**2 > 0.25)
    if shape == "square":
        return (abs(x) < 1) & (abs(y) < 1)
    if shape == "triangle":
        return (abs(x) < (y + 1) / 2) & (y < 1)
    if shape == "cross":
        return ((abs(x) < 0.36) & (abs(y) < 1)) | ((abs(y) < 0.36) & (abs(x) < 1))
    if shape == "diamond":
        return abs(x) + abs(y) < 1
    if shape == "arrow":
        return np.where(y < 0.1, abs(x) < (y + 1) / 1.1, (abs(x) < 0.36) & (y < 1))
    if shape == "heart":
        return _inside_heart(x, y)
    # The regular five-pointed star, then stretched to fill the box: fold to one half point.
    x = x * np.sin(2 * np.pi / 5)
    y = (y + 1) / 2 * (1 + np.cos(np.pi / 5)) - 1
    angle = np.arctan2(x, -y)
    folded = abs((angle + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    radius = np.hypot(x, y)
    px, py = radius * np.cos(folded), radius * np.sin(folded)
    qx, qy = 0.42 * np.cos(np.pi / 5), 0.42 * np.sin(np.pi / 5)  # inner corner; the tip is (1, 0)
    return (qx - 1) * py - qy * (px - 1) > 0


def _inside_heart(x, y):
    """MathWorld's curve, solved for y: its right half is one upper and one lower height per x."""
    t = np.linspace(0, np.pi, 20001)  # from the notch over the lobe to the tip
    height = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    down = 1 - 2 * (height - height.min()) / (height.max() - height.min())
    upper, lower = t <= np.pi / 2, t >= np.pi / 2
    top = np.interp(abs(x), np.sin(t[upper]) ** 3, down[upper])
    bottom = np.interp(abs(x), (np.sin(t[lower]) ** 3)[::-1], down[lower][::-1])
    return (top < y) & (y < bottom)


def brute_force(shape, diameter, samples=101):
    axis = (np.arange(diameter * samples) + 0.5) / samples / diameter * 2 - 1
    hit = inside(shape, axis[None, :], axis[:, None]).astype(np.float32)
    return hit.reshape(diameter, samples, diameter, samples).mean((1, 3))


@pytest.mark.parametrize("shape", SHAPES + NOVEL_SHAPES)
def test_coverage_is_the_area_inside_each_pixel(shape):
    for diameter in (14, 22):
        got, want = coverage(shape, diameter), brute_force(shape, diameter)
        # 101 x 101 samples are themselves off by up to half a sample where an edge is vertical.
        # The heart is drawn as a polygon of 96 corners.
        assert np.abs(got - want).max() < (3.5 if shape == "heart" else 1.8) / 255
        assert abs(got.mean() - want.mean()) < 2e-3


def test_areas_in_closed_form():
    areas = {"circle": np.pi / 4, "ring": np.pi / 4 * 0.75, "square": 1, "triangle": 0.5}
    areas["cross"] = 2 * 0.36 - 0.36**2
    for shape, area in areas.items():
        assert coverage(shape, 14).mean() == pytest.approx(area, abs=1e-4)


def test_mirror_images():
    for shape in SHAPES + NOVEL_SHAPES:
        np.testing.assert_allclose(coverage(shape, 22), coverage(shape, 22)[:, ::-1], atol=1e-6)


def test_image_is_mixed_by_coverage():
    rng = np.random.default_rng(5)
    for _ in range(20):
        scene = random_scene(rng)
        want = np.empty((scene.height, scene.width, 3))
        want[:] = BACKGROUNDS[scene.background]
        for o in scene.objects:
            a = coverage(o.shape, o.diameter)
            for r in range(o.diameter):
                for c in range(o.diameter):
                    at = o.cy - o.diameter // 2 + r, o.cx - o.diameter // 2 + c
                    want[at] = a[r, c] * np.array(COLORS[o.color]) + (1 - a[r, c]) * want[at]
        got = render(scene)
        assert got.dtype == np.uint8 and got.shape == want.shape
        assert np.abs(got - want).max() <= 0.502  # rounding alone


def test_a_known_image():
    scene = Scene(16, 32, "white", (Object("square", "red", "small", 6, 10, 8),))
    want = np.full((16, 32, 3), 255, np.uint8)
    want[5:11, 7:13] = COLORS["red"]
    np.testing.assert_array_equal(render(scene), want)


def test_objects_over_the_edge_are_cut_and_later_ones_lie_on_top():
    over = Object("square", "blue", "small", 8, 0, 15)
    away = Object("square", "red", "small", 8, 100, 100)
    scene = Scene(16, 16, "mint", (over, away, Object("square", "black", "small", 4, 2, 14)))
    image = render(scene)
    want = np.empty((16, 16, 3), np.uint8)
    want[:] = BACKGROUNDS["mint"]
    want[11:, :4] = COLORS["blue"]
    want[12:16, :4] = COLORS["black"]
    np.testing.assert_array_equal(image, want)


def test_refuses_what_it_cannot_draw():
    for shape, diameter in (("blob", 14), ("circle", 13), ("circle", 0)):
        with pytest.raises(ValueError, match="diameter"):
            coverage(shape, diameter)
