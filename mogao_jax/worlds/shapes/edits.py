"""Changes of a scene, in two moods: told to be done ("paint it blue"), and told as they happen."""

from __future__ import annotations

import dataclasses

import numpy as np

from mogao_jax.worlds.shapes.language import (
    RELATION_WORDS,
    at_region,
    noun_phrase,
    refer,
    to_region,
)
from mogao_jax.worlds.shapes.placement import (
    coordinate,
    fits,
    free_place,
    random_kind,
)
from mogao_jax.worlds.shapes.rng import chance, pick
from mogao_jax.worlds.shapes.scene import (
    REGION_NAMES,
    RELATIONS,
    Object,
    Scene,
    World,
    region,
    region_bounds,
    relation,
)
from mogao_jax.worlds.shapes.truth import EDITS, Edit, Wanted

_TRIES = 20  # of places for an added or moved object


def random_edit(
    rng: np.random.Generator, scene: Scene, world: World, kind: str | None = None
) -> Edit | None:
    """A change that can be made to the scene and told in words; None if none was found.

    The scene's objects must differ in shape or colour pairwise, and still do afterwards.
    """
    kind = kind or pick(rng, EDITS)
    if kind == "background":
        return Edit(kind, background=_another(rng, world.backgrounds, scene.background))
    if kind == "add":
        return _add(rng, scene, world)
    if not scene.objects:
        return None
    target = pick(rng, scene.objects)
    if kind == "remove":
        return Edit(kind, target=target) if len(scene.objects) > 1 else None
    if kind == "recolor":
        new = dataclasses.replace(target, color=_another(rng, world.colors, target.color))
        return None if _twin(new, scene, target) else Edit(kind, target=target, new=new)
    if kind == "move":
        return _move(rng, scene, world, target)
    shape = _another(rng, world.shapes, target.shape)
    named = chance(rng, 0.5)
    color = pick(rng, world.colors) if named else target.color
    new = dataclasses.replace(target, shape=shape, color=color)
    asked = Wanted(shape, color if named else None)
    if _twin(new, scene, target):
        return None
    return Edit(kind, target=target, new=new, asked=asked)


def apply(scene: Scene, edit: Edit) -> Scene:
    """The scene after the change: the target's place in the order is kept, additions come last."""
    if edit.background is not None:
        return dataclasses.replace(scene, background=edit.background)
    objects = list(scene.objects)
    if edit.target is None:
        assert edit.new is not None
        objects.append(edit.new)
    else:
        index = objects.index(edit.target)
        objects[index : index + 1] = [] if edit.new is None else [edit.new]
    return scene.with_objects(tuple(objects))


def _another(rng: np.random.Generator, options: tuple[str, ...], than: str) -> str:
    return pick(rng, [o for o in options if o != than])


def _twin(obj: Object, scene: Scene, leave_out: Object | None = None) -> bool:
    return any(
        (o.shape, o.color) == (obj.shape, obj.color) for o in scene.objects if o is not leave_out
    )


def _add(rng: np.random.Generator, scene: Scene, world: World) -> Edit | None:
    if len(scene.objects) >= world.max_count:
        return None
    kind = random_kind(rng, world)
    size_named = chance(rng, 0.2)
    size = kind.size if size_named or len(scene.objects) < 2 else "small"
    new = Object(kind.shape, kind.color, size, world.diameter(size), 0, 0)
    if _twin(new, scene):
        return None
    asked = Wanted(kind.shape, kind.color, size if size_named else None)
    place = pick(rng, ("anywhere", "region", "relation", "relation"))
    if place == "relation" and not scene.objects:
        place = "region"
    return place_again(rng, scene, world, new, Edit("add", asked=asked), place)


def _move(rng: np.random.Generator, scene: Scene, world: World, target: Object) -> Edit | None:
    rest = scene.with_objects(tuple(o for o in scene.objects if o is not target))
    place = "relation" if rest.objects and chance(rng, 0.5) else "region"
    edit = place_again(rng, rest, world, target, Edit("move", target=target), place)
    if edit is None or edit.new is None:
        return None
    if edit.region is not None:
        already = edit.region == region(target, scene)
    else:
        assert edit.anchor is not None
        already = edit.relation == relation(target, edit.anchor)
    return None if already else edit


def place_again(
    rng: np.random.Generator, scene: Scene, world: World, obj: Object, edit: Edit, place: str
) -> Edit | None:
    """`edit` with `obj` at a free place of the scene as its new object; None if none was found.

    Args:
      scene: without the object.
      place: "anywhere"; or a place that is random and named in the edit: in a "region", or in a
        "relation" to one of the scene's objects.
    """
    if place == "anywhere":
        spot = free_place(rng, scene.height, scene.width, obj.diameter, scene.objects, world)
        if spot is None:
            return None
        return dataclasses.replace(edit, new=dataclasses.replace(obj, cx=spot[0], cy=spot[1]))
    low = world.margin + obj.diameter // 2
    x0, x1, y0, y1 = low, scene.width - low, low, scene.height - low
    anchor, goal = None, pick(rng, REGION_NAMES)
    if place == "relation":
        anchor, goal = pick(rng, scene.objects), pick(rng, RELATIONS)
        # Not needed for the result, which is checked: spares places that cannot do.
        reach = (obj.diameter + anchor.diameter) // 2 + world.gap
        x1 = min(x1, anchor.cx - reach) if goal == "left of" else x1
        x0 = max(x0, anchor.cx + reach) if goal == "right of" else x0
        y1 = min(y1, anchor.cy - reach) if goal == "above" else y1
        y0 = max(y0, anchor.cy + reach) if goal == "below" else y0
    else:
        left, right, top, bottom = region_bounds(goal, scene)
        x0, x1, y0, y1 = max(x0, left), min(x1, right), max(y0, top), min(y1, bottom)
    if x0 > x1 or y0 > y1:
        return None
    for _ in range(_TRIES):
        cx = coordinate(rng, x0, x1, world.pitch)
        cy = coordinate(rng, y0, y1, world.pitch)
        if cx is None or cy is None:
            return None
        new = Object(obj.shape, obj.color, obj.size, obj.diameter, cx, cy)
        if fits(new, scene, world):
            if anchor is None:
                return dataclasses.replace(edit, new=new, region=goal)
            if relation(new, anchor) == goal:
                return dataclasses.replace(edit, new=new, anchor=anchor, relation=goal)
    return None


# --------------------------------------------------------------------------------------- words

_ORDERS: dict[str, tuple[str, ...]] = {
    "recolor": (
        *("make {x} {color}", "paint {x} {color}", "color {x} {color}", "turn {x} {color}"),
        "change the color of {x} to {color}",
    ),
    "add": ("add {y}{at}", "add {y}{at}", "put {y}{at}", "draw {y}{at}", "place {y}{at}"),
    "remove": ("remove {x}", "delete {x}", "erase {x}", "take {x} away", "take away {x}"),
    "move": ("move {x}{to}", "move {x}{to}", "bring {x}{to}", "shift {x}{to}"),
    "replace": (
        *("replace {x} with {y}", "turn {x} into {y}", "change {x} into {y}"),
        *("swap {x} for {y}", "make {x} into {y}"),
    ),
    "background": (
        *("make the background {bg}", "change the background to {bg}"),
        *("turn the background {bg}", "use a {bg} background", "paint the background {bg}"),
    ),
}
_EVENTS: dict[str, tuple[str, ...]] = {
    "recolor": ("{x} turns {color}", "{x} becomes {color}", "{x} is painted {color}"),
    "add": ("{y} appears{at}", "there is {y}{at}", "{y} is added{at}", "we see {y}{at}"),
    "remove": ("{x} disappears", "{x} is gone", "{x} goes away", "{x} is removed"),
    "move": ("{x} moves{to}", "{x} goes{to}", "{x} is moved{to}"),
    "replace": ("{x} turns into {y}", "{x} becomes {y}", "{x} changes into {y}"),
    "background": (
        *("the background turns {bg}", "the background becomes {bg}"),
        "the background is painted {bg}",
    ),
}


def order(rng: np.random.Generator, scene: Scene, edit: Edit, sized: bool = True) -> str:
    """An instruction without a full stop: "add a red star left of the circle".

    Args:
      sized: whether objects of the scene may be told by size ("the small star").
    """
    return _fill(rng, pick(rng, _ORDERS[edit.kind]), scene, edit, sized)


def event(rng: np.random.Generator, scene: Scene, edit: Edit, sized: bool = True) -> str:
    """The same as it happens, without a full stop: "a red star appears left of the circle"."""
    return _fill(rng, pick(rng, _EVENTS[edit.kind]), scene, edit, sized)


def _fill(rng: np.random.Generator, form: str, scene: Scene, edit: Edit, sized: bool) -> str:
    words: dict[str, str] = {"bg": edit.background or "", "at": "", "to": ""}
    if edit.target is not None:
        # "change the red object into a square" names what stays; that is fine.
        words["x"] = _the(rng, scene, edit.target, sized)
    if edit.asked is not None:
        words["y"] = noun_phrase(rng, edit.asked, "a")
    if edit.kind == "recolor":
        assert edit.new is not None
        words["color"] = edit.new.color
    if edit.anchor is not None and edit.relation is not None:
        near = pick(rng, RELATION_WORDS[edit.relation])
        words["at"] = words["to"] = f" {near} {_the(rng, scene, edit.anchor, sized)}"
    elif edit.region is not None:
        words["at"] = " " + at_region(rng, edit.region)
        words["to"] = " " + to_region(rng, edit.region)
    return form.format(**words)


def _the(rng: np.random.Generator, scene: Scene, obj: Object, sized: bool) -> str:
    wanted = refer(rng, scene, obj, without=None if sized else "size")
    assert wanted is not None, "objects of edited scenes differ in shape or colour"
    return noun_phrase(rng, wanted, "the")
