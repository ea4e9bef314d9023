"""The reader of images, against the renderer and against images that are not of the world."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mogao_jax.worlds.shapes.evals.scorers import reader, templates
from mogao_jax.worlds.shapes.evals.scorers.reader import pieces, read_image
from mogao_jax.worlds.shapes.placement import random_scene
from mogao_jax.worlds.shapes.render import coverage, render
from mogao_jax.worlds.shapes.scene import (
    BACKGROUNDS,
    COLORS,
    DEFAULT_WORLD,
    SHAPES,
    WORLDS,
    Object,
    Scene,
)

WHITE = np.asarray(BACKGROUNDS["white"], float)
RED = np.asarray(COLORS["red"], float)


def known(scene):
    return sorted((o.cy, o.cx, o.shape, o.color, o.size) for o in scene.objects)


def test_true_scenes_are_read_exactly():
    rng = np.random.default_rng(0)
    for _ in range(40):
        scene = random_scene(rng)
        reading = read_image(render(scene))
        assert reading.clear and known(reading.scene) == known(scene)
        assert reading.scene.background == scene.background
        assert min(reading.fits) > 0.999


def test_every_kind_of_object_on_every_background():
    for i, background in enumerate(BACKGROUNDS):
        for j, color in enumerate(COLORS):
            shape, size = SHAPES[(i + j) % 6], ("small", "large")[(i + j // 6) % 2]
            diameter = DEFAULT_WORLD.diameter(size)
            scene = Scene(48, 64, background, (Object(shape, color, size, diameter, 21, 25),))
            reading = read_image(render(scene))
            assert reading.clear and reading.scene == scene


def test_shapes_of_another_world():
    rng = np.random.default_rng(1)
    for _ in range(20):
        scene = random_scene(rng, WORLDS["novel"])
        reading = read_image(render(scene), WORLDS["novel"])
        assert reading.clear and known(reading.scene) == known(scene)
        assert not read_image(render(scene), WORLDS["grid"]).clear


def test_a_larger_world():
    world = DEFAULT_WORLD.scaled(2)
    scene = random_scene(np.random.default_rng(3), world)
    reading = read_image(render(scene), world)
    assert reading.clear and known(reading.scene) == known(scene)


def painted(mask, color=RED, ground=WHITE):
    """An image of a soft mask [H, W]."""
    return np.rint(mask[..., None] * color + (1 - mask[..., None]) * ground).astype(np.uint8)


def drawn(inside, size=64, fine=8):
    """A mask of a region of the plane: inside(x, y), in pixels from the middle."""
    at = (np.arange(size * fine) + 0.5) / fine - size / 2
    region = inside(at[None, :], at[:, None])
    return region.astype(float).reshape(size, fine, size, fine).mean((1, 3))


R = 11
NOT_OF_THE_WORLD = {
    "diamond": lambda x, y: np.abs(x) + np.abs(y) < R,
    "half disk": lambda x, y: (x * x + y * y < R * R) & (y < 0),
    "L": lambda x, y: (np.abs(x) < R) & (np.abs(y) < R) & ~((x > 0) & (y < 0)),
    "wide rectangle": lambda x, y: (np.abs(x) < 1.35 * R) & (np.abs(y) < R),
    "tall ellipse": lambda x, y: x * x + (y / 1.4) ** 2 < R * R,
    "crescent": lambda x, y: (x * x + y * y < R * R) & ((x - 6) ** 2 + y * y > 64),
    "triangle upside down": lambda x, y: (np.abs(y) < R) & (2 * np.abs(x) < R - y),
    "two disks grown together": lambda x, y: (np.abs(x) - 9) ** 2 + y * y < R * R,
    "a giant disk": lambda x, y: x * x + y * y < 20 * 20,
    "a blot": lambda x, y: (np.abs(x) < 4) & (np.abs(y) < 4),
    "a frame": lambda x, y: (np.abs(x) > 26) | (np.abs(y) > 26),
}


@pytest.mark.parametrize("name", NOT_OF_THE_WORLD)
def test_other_shapes_are_no_objects(name):
    assert not read_image(painted(drawn(NOT_OF_THE_WORLD[name]))).clear


def test_the_shapes_above_would_be_read_if_they_were_right():
    disk = painted(drawn(lambda x, y: x * x + y * y < R * R))
    assert [o.shape for o in read_image(disk).scene.objects] == ["circle"]


@pytest.mark.parametrize("by", [0.8, 1.2])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_little_too_small_or_large_is_the_same_shape(shape, by):
    diameter = 2 * round(by * 14 / 2)
    mask = np.zeros((48, 48))
    mask[20 : 20 + diameter, 10 : 10 + diameter] = coverage(shape, diameter)
    reading = read_image(painted(mask))
    assert reading.clear and [o.shape for o in reading.scene.objects] == [shape]


def test_touching_objects_of_one_color_do_not_count_as_one():
    mask = np.zeros((48, 64))
    mask[10:24, 10:24] = mask[10:24, 24:38] = coverage("square", 14)
    reading = read_image(painted(mask))
    assert not reading.clear and reading.scene.objects == ()


def test_touching_objects_of_two_colors_are_two():
    image = painted(np.zeros((48, 64)))
    image[10:24, 10:24], image[10:24, 24:38] = RED, COLORS["blue"]
    reading = read_image(image)
    assert reading.clear
    assert [(o.shape, o.color, o.cx) for o in reading.scene.objects] == [
        ("square", "red", 17),
        ("square", "blue", 31),
    ]


def test_an_object_of_two_colors_is_none():
    image = painted(np.zeros((48, 64)))
    image[10:24, 10:17], image[10:24, 17:24] = RED, COLORS["blue"]
    assert not read_image(image).clear


@pytest.mark.parametrize("color", [(139, 69, 19), (255, 0, 255), (255, 200, 200), (128, 255, 0)])
def test_colors_that_the_world_does_not_have(color):
    mask = np.zeros((48, 48))
    mask[10:32, 10:32] = coverage("circle", 22)
    assert not read_image(painted(mask, np.asarray(color, float))).clear


def test_backgrounds():
    image = np.empty((48, 48, 3), np.uint8)
    image[:] = (150, 220, 255)
    assert read_image(image).problems == ("a background of no known color",)
    image[:] = BACKGROUNDS["white"]
    assert read_image(image).clear and not read_image(image).scene.objects
    image[:, :20] = BACKGROUNDS["lavender"]
    assert not read_image(image).clear
    image[:] = COLORS["red"]
    assert "no background" in read_image(image).problems


def test_specks_are_ignored_and_smears_are_not():
    scene = Scene(48, 48, "white", (Object("ring", "green", "large", 22, 20, 20),))
    image = render(scene)
    image[40:42, 40:42] = RED
    assert read_image(image).clear
    smeared = image.copy()
    smeared[34:46, 34:46] = 0.75 * WHITE + 0.25 * RED
    assert read_image(smeared).problems == ("something besides the objects",)


def test_noise_and_random_images_are_unclear_and_bearable():
    rng = np.random.default_rng(1)
    for image in (
        rng.integers(0, 256, (64, 64, 3), np.uint8),
        np.clip(rng.normal(128, 40, (64, 64, 3)), 0, 255).astype(np.uint8),
        np.full((16, 16, 3), 128, np.uint8),
    ):
        assert not read_image(image).clear


def test_pieces_against_a_flood_fill():
    rng = np.random.default_rng(2)
    mask = rng.random((15, 19)) < 0.55
    left, found = mask.copy(), []
    while left.any():
        stack, piece = [tuple(np.argwhere(left)[0])], np.zeros_like(mask)
        while stack:
            y, x = stack.pop()
            if 0 <= y < 15 and 0 <= x < 19 and left[y, x]:
                left[y, x], piece[y, x] = False, True
                stack += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
        found.append(piece)
    ours = {p.tobytes() for p in pieces(mask)}
    assert ours == {p.tobytes() for p in found} and len(found) > 5


def test_the_fit_is_one_minus_the_relative_squared_error():
    rng = np.random.default_rng(5)
    mask = np.zeros((40, 40), np.float32)
    mask[13:27, 12:26] = coverage("star", 14) * 0.9
    mask[10:30, 10:30] += 0.05 * rng.random((20, 20), np.float32)
    best = templates.fit(mask, 14, 19, 20, DEFAULT_WORLD)[0]
    assert (best.shape, best.diameter, best.cx, best.cy) == ("star", 14, 19.0, 20.0)
    scores = []
    for sigma in templates.BLURS:
        whole = np.zeros((40, 40), np.float32)
        whole[13:27, 12:26] = coverage("star", 14)
        template = templates.blurred(whole, sigma)
        window = mask[9:31, 8:30]  # of diameter + 8 pixels
        part = template[9:31, 8:30]
        scores.append(1 - ((window - part) ** 2).sum() / ((window**2).sum() + (part**2).sum()))
    assert best.score == pytest.approx(max(scores), rel=1e-4)


def test_limits_are_where_the_docstring_says():
    areas = [coverage(s, 14).sum() / 14**2 for s in SHAPES]
    assert min(areas) == pytest.approx(reader.SMALLEST_AREA, abs=0.01)
    colors = np.asarray(list(COLORS.values()), float)
    gaps = [np.linalg.norm(a - b) for i, a in enumerate(colors) for b in colors[:i]]
    assert min(gaps) / 2 == pytest.approx(52, abs=1)
    grounds = np.asarray(list(BACKGROUNDS.values()), float)
    gaps = [np.linalg.norm(a - b) for i, a in enumerate(grounds) for b in grounds[:i]]
    assert reader.LEFT_OVER_DISTANCE < min(gaps) == pytest.approx(46, abs=1)


def test_objects_are_listed_from_top_to_bottom():
    scene = random_scene(np.random.default_rng(8), count=4)
    rows = [o.cy for o in read_image(render(scene)).scene.objects]
    assert rows == sorted(rows)
    shifted = dataclasses.replace(scene, objects=scene.objects[::-1])
    assert read_image(render(shifted)).scene == read_image(render(scene)).scene
