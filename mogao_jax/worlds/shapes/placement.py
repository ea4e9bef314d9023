"""Random scenes: objects placed without overlap, with margins."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mogao_jax.errors import DataError
from mogao_jax.worlds.shapes.rng import between, chance, pick, sample
from mogao_jax.worlds.shapes.scene import (
    DEFAULT_WORLD,
    Kind,
    Object,
    Scene,
    World,
    separated,
)

_TRIES_PER_OBJECT = 12
_TRIES_PER_SCENE = 400


def random_kind(rng: np.random.Generator, world: World = DEFAULT_WORLD) -> Kind:
    return Kind(pick(rng, world.shapes), pick(rng, world.colors), random_size(rng))


def random_size(rng: np.random.Generator) -> str:
    return "small" if chance(rng, 0.6) else "large"


def distinct_kinds(
    rng: np.random.Generator, count: int, world: World = DEFAULT_WORLD
) -> list[Kind]:
    """Kinds no two of which share both shape and colour, so that each can be named."""
    shapes, colors = world.shapes, world.colors
    codes = sample(rng, range(len(shapes) * len(colors)), count)
    return [
        Kind(shapes[c % len(shapes)], colors[c // len(shapes)], random_size(rng)) for c in codes
    ]


def coordinate(rng: np.random.Generator, low: int, high: int, pitch: int) -> int | None:
    """A random centre along one axis in [low, high] pixels that a world of this pitch allows."""
    first = -((pitch // 2 - low) // pitch)  # of the cells whose middle is not below `low`
    last = (high - pitch // 2) // pitch
    return between(rng, first, last) * pitch + pitch // 2 if first <= last else None


def free_place(
    rng: np.random.Generator,
    height: int,
    width: int,
    diameter: int,
    others: Sequence[Object],
    world: World,
    tries: int = _TRIES_PER_OBJECT,
) -> tuple[int, int] | None:
    """A random centre (cx, cy) for an object clear of the others and the edge; None if unlucky."""
    low = world.margin + diameter // 2
    if low > height - low or low > width - low:
        return None
    for _ in range(tries):
        cx = coordinate(rng, low, width - low, world.pitch)
        cy = coordinate(rng, low, height - low, world.pitch)
        if cx is None or cy is None:
            return None
        for o in others:
            reach = (diameter + o.diameter) // 2 + world.gap
            if abs(cx - o.cx) < reach and abs(cy - o.cy) < reach:
                break
        else:
            return cx, cy
    return None


def fits(obj: Object, scene: Scene, world: World) -> bool:
    """Whether `obj` keeps the world's margin from the edge and its gap from the scene's objects."""
    low = world.margin + obj.diameter // 2
    inside = low <= obj.cx <= scene.width - low and low <= obj.cy <= scene.height - low
    return inside and all(separated(obj, o, world.gap) for o in scene.objects)


def arrange(
    rng: np.random.Generator,
    kinds: Sequence[Kind],
    world: World = DEFAULT_WORLD,
    *,
    background: str | None = None,
    accept: Callable[[Scene], bool] | None = None,
) -> Scene:
    """A scene of these kinds, in this order, on a random canvas and, by default, background.

    Canvases on which the objects do not find room are drawn again, as are scenes that `accept`
    refuses; sizes are kept.

    Raises:
      DataError: no room was found on any canvas of the world (too many or too large objects).
    """
    background = background or pick(rng, world.backgrounds)
    for _ in range(_TRIES_PER_SCENE):
        height, width = pick(rng, world.canvases)
        objects: list[Object] = []
        for kind in kinds:
            diameter = world.diameter(kind.size)
            place = free_place(rng, height, width, diameter, objects, world)
            if place is None:
                break
            objects.append(Object(kind.shape, kind.color, kind.size, diameter, *place))
        else:
            scene = Scene(height, width, background, tuple(objects))
            if accept is None or accept(scene):
                return scene
    raise DataError(
        f"the shapes world found no room for {len(kinds)} objects on its canvases "
        f"{list(world.canvases)}; use larger canvases, smaller objects or a lower max_count."
    )


def shrink_crowd(kinds: Sequence[Kind]) -> list[Kind]:
    """At most one large object among three or more, none among four or more: they would crowd."""
    keep = {1: 1, 2: 2, 3: 1}.get(len(kinds), 0)
    out = []
    for kind in kinds:
        if kind.size == "large":
            keep -= 1
        out.append(Kind(kind.shape, kind.color, kind.size if keep >= 0 else "small"))
    return out


def random_scene(
    rng: np.random.Generator, world: World = DEFAULT_WORLD, count: int | None = None
) -> Scene:
    """A scene of one to `world.max_count` objects (or `count`), each drawn by itself."""
    if count is None:
        count = between(rng, 1, world.max_count)
    return arrange(rng, shrink_crowd([random_kind(rng, world) for _ in range(count)]), world)
