"""Scenes that are wrong by as little as possible, to test the scorer with."""

from __future__ import annotations

import dataclasses

from mogao_jax.worlds.shapes.evals.scorers.verdicts import third, tolerance
from mogao_jax.worlds.shapes.placement import fits, free_place, random_kind
from mogao_jax.worlds.shapes.rng import Rng, between, pick, pick_other
from mogao_jax.worlds.shapes.scene import (
    BACKGROUND_NAMES,
    COLOR_NAMES,
    SHAPES,
    SIZES,
    Object,
    Scene,
    World,
    distance,
    relations,
)
from mogao_jax.worlds.shapes.truth import Edit, Request, satisfies


def wrong_images(rng: Rng, request: Request, scene: Scene, world: World) -> dict[str, Scene]:
    """Scenes that miss a request by one thing, by the name of it; those that there are room for."""
    objects = scene.objects
    victim = pick(rng, objects)
    made: dict[str, Scene | None] = {
        "other color": _with(scene, victim, color=pick_other(rng, COLOR_NAMES, victim.color)),
        "other shape": _with(scene, victim, shape=pick_other(rng, SHAPES, victim.shape)),
        "one missing": scene.without(victim),
        "one more": _extra(rng, scene, world, victim if len(objects) > 1 else None),
        "other size": _resized(scene, victim, world),
        "other background": _on_other_ground(rng, scene),
    }
    if request.relation is not None:
        made["other side"] = _mirrored(scene, request.relation)
    if len(objects) == 2 and objects[0].color != objects[1].color:
        a, b = objects
        swapped = dataclasses.replace(a, color=b.color), dataclasses.replace(b, color=a.color)
        made["swapped colors"] = scene.with_objects(swapped)
    return {name: s for name, s in made.items() if s is not None and not satisfies(s, request)}


def wrong_changes(
    rng: Rng, before: Scene, edit: Edit, after: Scene, world: World
) -> dict[str, Scene]:
    """Scenes that miss a change of `before` to `after` by one thing, by the name of it."""
    made: dict[str, Scene | None] = {"not done": before}
    untouched = before.without(edit.target).objects if edit.target else before.objects
    if untouched:
        victim = pick(rng, untouched)
        made["another recolored"] = _recolored(rng, after, victim)
        made["another moved"] = _moved(rng, after, victim, world)
        made["another missing"] = after.without(victim)
    made["one more"] = _extra(rng, after, world)
    if edit.background is None:
        made["background changed"] = _on_other_ground(rng, after)
    else:
        made["other background"] = _on_other_ground(rng, after, besides=before.background)
    new = next((o for o in after.objects if o not in before.objects), None)
    if new is not None:
        made |= _wrong_news(rng, after, new, edit, world)
    return {name: s for name, s in made.items() if s is not None}


def _wrong_news(
    rng: Rng, after: Scene, new: Object, edit: Edit, world: World
) -> dict[str, Scene | None]:
    """The same by what may be wrong with a changed or added object."""
    made: dict[str, Scene | None] = {}
    if edit.asked is None or edit.asked.color is not None:
        made["wrong color"] = _recolored(rng, after, new)
    made["wrong shape"] = _reshaped(rng, after, new)
    if edit.kind in ("recolor", "replace"):
        made["elsewhere"] = _moved(rng, after, new, world)
    if edit.relation is not None or edit.region is not None:
        made["wrong place"] = _misplaced(rng, after, new, edit, world)
    return made


def _with(scene: Scene, obj: Object, **fields) -> Scene:
    """The scene with fields of an object replaced."""
    return scene.replacing(obj, dataclasses.replace(obj, **fields))


def _recolored(rng: Rng, scene: Scene, obj: Object) -> Scene:
    """In a color that makes the object no twin of another."""
    taken = {o.color for o in scene.objects if o.shape == obj.shape}
    return _with(scene, obj, color=pick(rng, [c for c in COLOR_NAMES if c not in taken]))


def _reshaped(rng: Rng, scene: Scene, obj: Object) -> Scene:
    """In a shape that makes the object no twin of another, if there is one."""
    taken = {o.shape for o in scene.objects if o.color == obj.color}
    free = [s for s in SHAPES if s not in taken]
    shape = pick(rng, free) if free else pick_other(rng, SHAPES, obj.shape)
    return _with(scene, obj, shape=shape)


def _on_other_ground(rng: Rng, scene: Scene, besides: str = "") -> Scene:
    known = [b for b in BACKGROUND_NAMES if b != besides]
    return dataclasses.replace(scene, background=pick_other(rng, known, scene.background))


def _extra(rng: Rng, scene: Scene, world: World, like: Object | None = None) -> Scene | None:
    """One small object more, of a random kind or of that of another."""
    kind = like.kind if like else random_kind(rng)
    spot = free_place(rng, scene, world.small, world, tries=60)
    if spot is None:
        return None
    more = Object(kind.shape, kind.color, "small", world.small, *spot)
    return scene.with_objects((*scene.objects, more))


def _resized(scene: Scene, obj: Object, world: World) -> Scene | None:
    size = next(s for s in SIZES if s != obj.size)
    new = dataclasses.replace(obj, size=size, diameter=world.diameter(size))
    rest = scene.without(obj)
    return scene.with_objects((new, *rest.objects)) if fits(new, rest, world) else None


def _mirrored(scene: Scene, relation: str) -> Scene:
    if relation in ("left of", "right of"):
        return scene.with_objects(
            dataclasses.replace(o, cx=scene.width - o.cx) for o in scene.objects
        )
    return scene.with_objects(dataclasses.replace(o, cy=scene.height - o.cy) for o in scene.objects)


def _spots(rng: Rng, scene: Scene, obj: Object, world: World) -> list[Object]:
    """The object at places where it fits, clearly away from where it is, in random order."""
    rest = scene.without(obj)
    low, far = world.margin + obj.diameter // 2, tolerance(world) + 2
    if 2 * low > min(scene.width, scene.height):
        return []
    found = []
    for _ in range(60):
        cx, cy = between(rng, low, scene.width - low), between(rng, low, scene.height - low)
        new = dataclasses.replace(obj, cx=cx, cy=cy)
        if distance(new, obj) > far and fits(new, rest, world):
            found.append(new)
    return found


def _moved(rng: Rng, scene: Scene, obj: Object, world: World) -> Scene | None:
    spots = _spots(rng, scene, obj, world)
    return scene.replacing(obj, spots[0]) if spots else None


def _misplaced(rng: Rng, scene: Scene, obj: Object, edit: Edit, world: World) -> Scene | None:
    """The object at a place that the words do not allow by a few pixels or more."""

    def right(o: Object) -> bool:
        if edit.anchor is not None:
            return edit.relation in relations(o, edit.anchor)
        return third(o, scene) == edit.region

    offsets = [(0, 0), (-2, -2), (-2, 2), (2, -2), (2, 2)]
    for spot in _spots(rng, scene, obj, world):
        near = [dataclasses.replace(spot, cx=spot.cx + x, cy=spot.cy + y) for x, y in offsets]
        if not any(map(right, near)):
            return scene.replacing(obj, spot)
    return None
