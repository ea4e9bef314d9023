"""Scenes that are wrong by as little as possible, to test the scorer with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from mogao_jax.worlds.shapes.evals.scorers.verdicts import third, tolerance
from mogao_jax.worlds.shapes.placement import fits, free_place, random_kind
from mogao_jax.worlds.shapes.rng import between, pick
from mogao_jax.worlds.shapes.scene import (
    BACKGROUND_NAMES,
    COLOR_NAMES,
    SHAPES,
    SIZES,
    Object,
    Scene,
    World,
    relations,
)
from mogao_jax.worlds.shapes.truth import Edit, Request, satisfies


def wrong_pictures(
    rng: np.random.Generator, request: Request, scene: Scene, world: World
) -> dict[str, Scene]:
    """Scenes that miss a request by one thing, by the name of it; those that there are room for."""
    objects = scene.objects
    victim = pick(rng, objects)
    made: dict[str, Scene | None] = {
        "other color": _with(scene, victim, color=_another(rng, COLOR_NAMES, victim.color)),
        "other shape": _with(scene, victim, shape=_another(rng, SHAPES, victim.shape)),
        "one missing": scene.with_objects(tuple(o for o in objects if o is not victim)),
        "one more": _extra(rng, scene, world, victim if len(objects) > 1 else None),
        "other size": _resized(scene, victim, world),
        "other background": dataclasses.replace(
            scene, background=_another(rng, BACKGROUND_NAMES, scene.background)
        ),
    }
    if request.relation is not None:
        made["other side"] = _mirrored(scene, request.relation)
    if len(objects) == 2 and objects[0].color != objects[1].color:
        a, b = objects
        swapped = dataclasses.replace(a, color=b.color), dataclasses.replace(b, color=a.color)
        made["swapped colors"] = scene.with_objects(swapped)
    return {name: s for name, s in made.items() if s is not None and not satisfies(s, request)}


def wrong_changes(
    rng: np.random.Generator, before: Scene, edit: Edit, after: Scene, world: World
) -> dict[str, Scene]:
    """Scenes that miss a change of `before` to `after` by one thing, by the name of it."""
    made: dict[str, Scene | None] = {"not done": before}
    untouched = [o for o in before.objects if o is not edit.target]
    if untouched:
        victim = pick(rng, untouched)
        made["another recolored"] = _with(after, victim, color=_other_color(rng, after, victim))
        made["another moved"] = _moved(rng, after, victim, world)
        made["another missing"] = after.with_objects(
            tuple(o for o in after.objects if o is not victim)
        )
    made["one more"] = _extra(rng, after, world)
    if edit.background is None:
        ground = _another(rng, BACKGROUND_NAMES, after.background)
        made["background changed"] = dataclasses.replace(after, background=ground)
    else:
        others = [b for b in BACKGROUND_NAMES if b not in (before.background, edit.background)]
        made["other background"] = dataclasses.replace(after, background=pick(rng, others))
    new = next((o for o in after.objects if o not in before.objects), None)
    if new is not None:
        if edit.asked is None or edit.asked.color is not None:
            made["wrong color"] = _with(after, new, color=_other_color(rng, after, new))
        made["wrong shape"] = _with(after, new, shape=_other_shape(rng, after, new))
        if edit.kind in ("recolor", "replace"):
            made["elsewhere"] = _moved(rng, after, new, world)
        if edit.relation is not None or edit.region is not None:
            made["wrong place"] = _misplaced(rng, after, new, edit, world)
    return {name: s for name, s in made.items() if s is not None}


def _another(rng: np.random.Generator, options: Sequence[str], than: str) -> str:
    return pick(rng, [o for o in options if o != than])


def _with(scene: Scene, obj: Object, **fields) -> Scene:
    """The scene with fields of an object replaced."""
    new = dataclasses.replace(obj, **fields)
    return scene.with_objects(tuple(new if o is obj else o for o in scene.objects))


def _other_color(rng: np.random.Generator, scene: Scene, obj: Object) -> str:
    """One that makes the object no twin of another."""
    taken = {o.color for o in scene.objects if o.shape == obj.shape}
    return pick(rng, [c for c in COLOR_NAMES if c not in taken])


def _other_shape(rng: np.random.Generator, scene: Scene, obj: Object) -> str:
    taken = {o.shape for o in scene.objects if o.color == obj.color}
    options = [s for s in SHAPES if s not in taken]
    return pick(rng, options) if options else _another(rng, SHAPES, obj.shape)


def _extra(
    rng: np.random.Generator, scene: Scene, world: World, like: Object | None = None
) -> Scene | None:
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
    rest = scene.with_objects(tuple(o for o in scene.objects if o is not obj))
    return scene.with_objects((new, *rest.objects)) if fits(new, rest, world) else None


def _mirrored(scene: Scene, relation: str) -> Scene:
    flip = relation in ("left of", "right of")

    def moved(o: Object) -> Object:
        cx, cy = (scene.width - o.cx, o.cy) if flip else (o.cx, scene.height - o.cy)
        return dataclasses.replace(o, cx=cx, cy=cy)

    return scene.with_objects(tuple(moved(o) for o in scene.objects))


def _spots(rng: np.random.Generator, scene: Scene, obj: Object, world: World) -> list[Object]:
    """The object at places where it fits, clearly away from where it is, in random order."""
    rest = scene.with_objects(tuple(o for o in scene.objects if o is not obj))
    low, far = world.margin + obj.diameter // 2, tolerance(world) + 2
    found = []
    for _ in range(60):
        if low > scene.width - low or low > scene.height - low:
            break
        cx, cy = between(rng, low, scene.width - low), between(rng, low, scene.height - low)
        new = dataclasses.replace(obj, cx=cx, cy=cy)
        if max(abs(cx - obj.cx), abs(cy - obj.cy)) > far and fits(new, rest, world):
            found.append(new)
    return found


def _moved(rng: np.random.Generator, scene: Scene, obj: Object, world: World) -> Scene | None:
    spots = _spots(rng, scene, obj, world)
    return _with(scene, obj, cx=spots[0].cx, cy=spots[0].cy) if spots else None


def _misplaced(
    rng: np.random.Generator, scene: Scene, obj: Object, edit: Edit, world: World
) -> Scene | None:
    """The object at a place that the words do not allow by a few pixels or more."""
    for spot in _spots(rng, scene, obj, world):
        held = [spot] + [
            dataclasses.replace(spot, cx=spot.cx + x, cy=spot.cy + y)
            for x in (-2, 2)
            for y in (-2, 2)
        ]
        if edit.anchor is not None:
            right = any(edit.relation in relations(o, edit.anchor) for o in held)
        else:
            right = any(third(o, scene) == edit.region for o in held)
        if not right:
            return _with(scene, obj, cx=spot.cx, cy=spot.cy)
    return None
