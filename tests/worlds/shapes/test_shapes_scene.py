import itertools
import math
import re

import numpy as np
import pytest

from mogao_jax.errors import ConfigError, DataError
from mogao_jax.sequence.document import Text
from mogao_jax.worlds.shapes.language import NOUNS
from mogao_jax.worlds.shapes.placement import arrange, coordinate, distinct_kinds, random_scene
from mogao_jax.worlds.shapes.render import render
from mogao_jax.worlds.shapes.scene import (
    BACKGROUNDS,
    COLORS,
    DEFAULT_WORLD,
    OPPOSITE,
    REGION_NAMES,
    SHAPES,
    WORLDS,
    Kind,
    Object,
    Scene,
    World,
    region,
    region_bounds,
    relation,
    relations,
)
from mogao_jax.worlds.shapes.tasks import TASK_CATEGORIES, TASKS
from mogao_jax.worlds.shapes.world import ShapesSource


def box(o):
    r = o.diameter // 2
    return o.cx - r, o.cx + r, o.cy - r, o.cy + r


def check_scene(scene, world):
    assert (scene.height, scene.width) in world.canvases
    assert scene.background in world.backgrounds
    assert 0 < len(scene.objects) <= world.max_count
    for o in scene.objects:
        assert o.shape in world.shapes and o.color in world.colors
        assert o.diameter == {"small": world.small, "large": world.large}[o.size]
        x0, x1, y0, y1 = box(o)
        assert min(x0, y0, scene.width - x1, scene.height - y1) >= world.margin
        if world.pitch > 1:
            assert o.cx % world.pitch == o.cy % world.pitch == world.pitch // 2
    for a, b in itertools.combinations(scene.objects, 2):
        p, q = box(a), box(b)
        gaps = q[0] - p[1], p[0] - q[1], q[2] - p[3], p[2] - q[3]
        assert max(gaps) >= world.gap


def test_default_world_keeps_its_promises():
    for h, w in DEFAULT_WORLD.canvases:
        assert h % 16 == w % 16 == 0 and h * w <= 4096 and max(h, w) <= 96
    assert len({h / w for h, w in DEFAULT_WORLD.canvases}) >= 7
    named = [*COLORS.values(), *BACKGROUNDS.values()]
    for a, b in itertools.combinations(named, 2):
        limit = 100 if a in COLORS.values() and b in COLORS.values() else 45
        assert math.dist(a, b) > limit


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("task", [t for t in TASKS if t != "text"])
def test_no_overlaps_in_any_image_and_images_show_the_truth(task, world):
    world = WORLDS[world]
    source = ShapesSource(task, seed=3, world=world)
    for index in range(150):
        document, truth = source.with_truth(index)
        images = [item.pixels for item in document.items if hasattr(item, "pixels")]
        assert len(images) == len(truth.scenes) > 0
        for image, scene in zip(images, truth.scenes, strict=True):
            check_scene(scene, world)
            np.testing.assert_array_equal(image, render(scene))


def test_random_scenes_show_everything():
    rng = np.random.default_rng(0)
    scenes = [random_scene(rng) for _ in range(400)]
    for scene in scenes:
        check_scene(scene, DEFAULT_WORLD)
    assert {(s.height, s.width) for s in scenes} == set(DEFAULT_WORLD.canvases)
    assert {s.background for s in scenes} == set(BACKGROUNDS)
    assert {len(s.objects) for s in scenes} == {1, 2, 3, 4, 5}
    objects = [o for s in scenes for o in s.objects]
    assert {(o.shape, o.color) for o in objects} == set(itertools.product(SHAPES, COLORS))
    assert len(random_scene(rng, count=4).objects) == 4


def test_larger_worlds():
    world = DEFAULT_WORLD.scaled(4)
    assert world.max_pixels == 256 * 256 and (384, 128) in world.canvases
    rng = np.random.default_rng(1)
    for _ in range(20):
        check_scene(random_scene(rng, world), world)
    for task in TASKS:
        truth = ShapesSource(task, world=world).truth(0)
        for scene in truth.scenes:
            check_scene(scene, world)


def test_objects_of_the_grid_lie_in_one_vae_token_each():
    world = WORLDS["grid"]
    rng = np.random.default_rng(4)
    places = set()
    for _ in range(900):
        scene = random_scene(rng, world)
        for o in scene.objects:
            x0, x1, y0, y1 = box(o)
            assert x0 // 16 == (x1 - 1) // 16 and y0 // 16 == (y1 - 1) // 16
            places.add((scene.height, scene.width, o.cy // 16, o.cx // 16))
    assert len(places) == sum(h * w // 256 for h, w in world.canvases)  # all cells are used
    # A grid leaves the clips their two speeds and every direction.
    motions = {ShapesSource("clip", world=world).truth(i).motion for i in range(200)}
    assert {(m.direction, m.speed) for m in motions} == set(
        itertools.product(("left", "right", "up", "down"), ("slow", "fast"))
    )


def test_the_primer_shows_and_says_few_words():
    world = WORLDS["primer"]
    assert set(world.shapes) < set(SHAPES) and set(world.colors) < set(COLORS)
    rng = np.random.default_rng(5)
    objects = [o for _ in range(200) for o in random_scene(rng, world).objects]
    known = set(itertools.product(world.shapes, world.colors))
    assert {(o.shape, o.color) for o in objects} == known
    absent = {*SHAPES, *COLORS, *BACKGROUNDS} - {*world.shapes, *world.colors, *world.backgrounds}
    for task in TASKS:
        for category in ("", *TASK_CATEGORIES.get(task, ())):
            source = ShapesSource(task, world=world, category=category)
            said = [i.text for n in range(60) for i in source[n].items if isinstance(i, Text)]
            words = set(re.findall("[a-z]+", " ".join(said)))
            assert not words & absent, (task, category)
    # Other names of absent shapes ("plus sign") as well.
    others = {word for shape in absent & set(SHAPES) for word in NOUNS[shape]}
    told = " ".join(i.text for n in range(300) for i in ShapesSource("text", world=world)[n].items)
    assert not [word for word in others if re.search(rf"\b{word}\b", told)]


@pytest.mark.parametrize(
    ("field", "value", "least"),
    [
        ("shapes", ("circle", "square"), "3 or more"),
        ("shapes", ("circle", "square", "blob"), "3 or more"),
        ("colors", ("red", "green", "green", "blue"), "3 or more"),
        ("backgrounds", ("white",), "2 or more"),
    ],
)
def test_a_world_needs_some_words_that_it_knows(field, value, least):
    with pytest.raises(
        ConfigError, match=f"{field} must be {least} different ones of .*{value[0]}"
    ):
        World(**{field: value})


def test_coordinates_of_a_grid_are_those_a_search_finds():
    for pitch in (1, 2, 16, 24):
        for low in range(0, 40, 3):
            for high in range(low - 2, low + 50, 7):
                allowed = {c for c in range(low, high + 1) if c % pitch == pitch // 2}
                rng = np.random.default_rng(0)
                found = {coordinate(rng, low, high, pitch) for _ in range(12 * len(allowed) + 1)}
                assert found == (allowed or {None})


def test_distinct_kinds():
    rng = np.random.default_rng(2)
    for _ in range(50):
        kinds = distinct_kinds(rng, 5)
        assert len({(k.shape, k.color) for k in kinds}) == 5


def test_no_room_is_said():
    world = World(canvases=((16, 16),), small=14, large=16, margin=1)
    with pytest.raises(DataError, match="no room for 2 objects"):
        arrange(np.random.default_rng(0), [Kind("circle", "red")] * 2, world)


def test_worlds_off_the_grid_are_refused():
    with pytest.raises(ConfigError, match="multiples of 16"):
        World(canvases=((40, 64),))
    with pytest.raises(ConfigError, match="even"):
        World(small=13)
    with pytest.raises(ConfigError, match="pitch"):
        World(pitch=16)


def at(x, y, diameter=14):
    return Object("circle", "red", "small", diameter, x, y)


def test_relations_by_angle():
    """GenEval's rule without its shrinking is a matter of angle: 60 degrees off each axis."""
    b = at(0, 0, 0)
    for degrees in range(0, 360, 1):
        if degrees % 30 == 0:
            continue
        x = round(1e6 * math.cos(math.radians(degrees)))
        y = round(1e6 * math.sin(math.radians(degrees)))
        axes = {"right of": 0, "below": 90, "left of": 180, "above": 270}
        off = {n: abs((degrees - a + 180) % 360 - 180) for n, a in axes.items()}
        assert relations(at(x, y, 0), b) == {n for n, d in off.items() if d < 60}
        nearest = min(off, key=off.__getitem__)
        clear = off[nearest] < math.degrees(math.acos(0.9))
        assert relation(at(x, y, 0), b) == (nearest if clear else None)


def test_relations_shrink_and_mirror():
    # Offsets up to a tenth of both diameters count as none: here 2.8 pixels.
    assert relations(at(2, 0), at(0, 0)) == set()
    assert relations(at(2, 9), at(0, 0)) == {"below"}
    assert relations(at(3, 0), at(0, 0)) == {"right of"}
    rng = np.random.default_rng(0)
    for _ in range(300):
        a, b = at(*rng.integers(0, 60, 2)), at(*rng.integers(0, 60, 2), 22)
        held = relation(a, b)
        assert relation(b, a) == OPPOSITE.get(held)
        if held is not None:
            assert relations(a, b) == {held}


def test_regions():
    scene = Scene(48, 80, "white", ())
    assert region(at(20, 10), scene) == "top left"
    assert region(at(40, 24), scene) == "center"
    assert region(at(40, 40), scene) == "bottom"
    assert region(at(33, 24), scene) is None
    for h, w in DEFAULT_WORLD.canvases:
        scene = Scene(h, w, "white", ())
        for name in REGION_NAMES:
            left, right, top, bottom = region_bounds(name, scene)
            inside = {
                (x, y)
                for x in range(w + 1)
                for y in range(h + 1)
                if region(at(x, y), scene) == name
            }
            assert inside == {
                (x, y) for x in range(left, right + 1) for y in range(top, bottom + 1)
            }


def test_a_world_can_leave_out_images_that_would_be_shrunk():
    world = DEFAULT_WORLD.fitting(max_pixels=4096, max_side=64)
    assert world.canvases and all(max(size) <= 64 for size in world.canvases)
    assert set(world.canvases) < set(DEFAULT_WORLD.canvases)
    assert DEFAULT_WORLD.fitting(max_pixels=1, max_side=1) == DEFAULT_WORLD
