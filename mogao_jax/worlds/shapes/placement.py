"""Random scenes: objects placed without overlap, with margins."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mogao_jax.errors import DataError
from mogao_jax.worlds.shapes.rng import Rng, between, chance, pick, sample
from mogao_jax.worlds.shapes.scene import DEFAULT_WORLD, Kind, Object, Scene, World, separated

_TRIES_PER_OBJECT = 12
_TRIES_PER_SCENE = 400


def random_kind(rng: Rng, world: World = DEFAULT_WORLD) -> Kind:
    return Kind(pick(rng, world.shapes), pick(rng, world.colors), random_size(rng))


def random_size(rng: Rng) -> str:
    return "small" if chance(rng, 0.6) else "large"


def distinct_kinds(rng: Rng, count: int, world: World = DEFAULT_WORLD) -> list[Kind]:
    """Kinds no two of which share both shape and colour, so that each can be named."""
    shapes, colors = world.shapes, world.colors
    codes = sample(rng, range(len(shapes) * len(colors)), count)
    return [
        Kind(shapes[c % len(shapes)], colors[c // len(shapes)], random_size(rng)) for c in codes
    ]


def coordinate(rng: Rng, low: int, high: int, pitch: int) -> int | None:
    """A random centre along one axis in [low, high] pixels that a world of this pitch allows."""
    first = -((pitch // 2 - low) // pitch)  # of the cells whose middle is not below `low`
    last = (high - pitch // 2) // pitch
    return between(rng, first, last) * pitch + pitch // 2 if first <= last else None


def free_place(
    rng: Rng,
    scene: Scene,
    diameter: int,
    world: World,
    tries: int = _TRIES_PER_OBJECT,
) -> tuple[int, int] | None:
    """A random centre (cx, cy) clear of the scene's objects and its edge; None if unlucky."""
    low = world.margin + diameter // 2
    if 2 * low > min(scene.height, scene.width):
        return None
    for _ in range(tries):
        cx = coordinate(rng, low, scene.width - low, world.pitch)
        cy = coordinate(rng, low, scene.height - low, world.pitch)
        if cx is None or cy is None:
            return None
        for o in scene.objects:
            reach = (diameter + o.diameter) // 2 + world.gap
            if abs(cx - o.cx) < reach and abs(cy - o.cy) < reach:
                break
        else:
            return cx, cy
    return None


def inside(obj: Object, scene: Scene, world: World) -> bool:
    """Whether an object keeps the world's margin from the scene's edge."""
    low = world.margin + obj.diameter // 2
    return low <= obj.cx <= scene.width - low and low <= obj.cy <= scene.height - low


def fits(obj: Object, scene: Scene, world: World) -> bool:
    """Whether `obj` keeps the world's margin from the edge and its gap from the scene's objects."""
    clear = all(separated(obj, o, world.gap) for o in scene.objects)
    return clear and inside(obj, scene, world)


def arrange(
    rng: Rng,
    kinds: Sequence[Kind],
    world: World = DEFAULT_WORLD,
    *,
    background: str | None = None,
    accept: Callable[[Scene], bool] = lambda scene: True,
) -> Scene:
    """A scene of these kinds, in this order, on a random canvas and, by default, background.

    Canvases on which the objects do not find room are drawn again, as are scenes that `accept`
    refuses; sizes are kept.

    Raises:
      DataError: no room was found on any canvas of the world (too many or too large objects).
    """
    background = background or pick(rng, world.backgrounds)
    for _ in range(_TRIES_PER_SCENE):
        scene = _placed(rng, kinds, world, Scene(*pick(rng, world.canvases), background, ()))
        if scene is not None and accept(scene):
            return scene
    raise DataError(
        f"the shapes world found no room for {len(kinds)} objects on its canvases "
        f"{list(world.canvases)}; use larger canvases, smaller objects or a lower max_count."
    )


def _placed(rng: Rng, kinds: Sequence[Kind], world: World, scene: Scene) -> Scene | None:
    for kind in kinds:
        diameter = world.diameter(kind.size)
        place = free_place(rng, scene, diameter, world)
        if place is None:
            return None
        new = Object(kind.shape, kind.color, kind.size, diameter, *place)
        scene = Scene(scene.height, scene.width, scene.background, (*scene.objects, new))
    return scene


def shrink_crowd(kinds: Sequence[Kind]) -> list[Kind]:
    """At most one large object among three or more, none among four or more: they would crowd."""
    keep = {1: 1, 2: 2, 3: 1}.get(len(kinds), 0)
    out = []
    for kind in kinds:
        keep -= kind.size == "large"
        out.append(Kind(kind.shape, kind.color, kind.size if keep >= 0 else "small"))
    return out


def distinct_scene(rng: Rng, count: int, world: World) -> Scene:
    """A scene of objects no two of which share both shape and colour."""
    return arrange(rng, shrink_crowd(distinct_kinds(rng, count, world)), world)


def random_scene(rng: Rng, world: World = DEFAULT_WORLD, count: int | None = None) -> Scene:
    """A scene of one to `world.max_count` objects (or `count`), each drawn by itself."""
    if count is None:
        count = between(rng, 1, world.max_count)
    return arrange(rng, shrink_crowd([random_kind(rng, world) for _ in range(count)]), world)
