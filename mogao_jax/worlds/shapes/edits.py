"""Changes of a scene, in two moods: told to be done ("paint it blue"), and told as they happen."""

from __future__ import annotations

import dataclasses

from mogao_jax.worlds.shapes.language import (
    RELATION_WORDS,
    at_region,
    noun_phrase,
    refer,
    to_region,
)
from mogao_jax.worlds.shapes.placement import coordinate, fits, free_place, random_kind
from mogao_jax.worlds.shapes.rng import Rng, chance, pick, pick_other
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


def random_edit(rng: Rng, scene: Scene, world: World, kind: str | None = None) -> Edit | None:
    """A change that can be made to the scene and told in words; None if none was found.

    The scene's objects must differ in shape or colour pairwise, and still do afterwards.
    """
    kind = kind or pick(rng, EDITS)
    if kind == "background":
        return Edit(kind, background=pick_other(rng, world.backgrounds, scene.background))
    if kind == "add":
        return _add(rng, scene, world)
    if not scene.objects:
        return None
    target = pick(rng, scene.objects)
    if kind == "remove":
        return Edit(kind, target=target) if len(scene.objects) > 1 else None
    if kind == "move":
        return _move(rng, scene, world, target)
    return _change_look(rng, scene, world, target, kind)


def apply(scene: Scene, edit: Edit) -> Scene:
    """The scene after the change: the target's place in the order is kept, additions come last."""
    if edit.background is not None:
        return dataclasses.replace(scene, background=edit.background)
    objects = list(scene.objects)
    index = objects.index(edit.target) if edit.target else len(objects)
    objects[index : index + 1] = [edit.new] if edit.new else []
    return scene.with_objects(objects)


def _twin(obj: Object, scene: Scene) -> bool:
    return any((o.shape, o.color) == (obj.shape, obj.color) for o in scene.objects)


def _change_look(rng: Rng, scene: Scene, world: World, target: Object, kind: str) -> Edit | None:
    """Another colour (recolor), or another shape and perhaps colour (replace)."""
    asked = None
    if kind == "recolor":
        new = dataclasses.replace(target, color=pick_other(rng, world.colors, target.color))
    else:
        shape = pick_other(rng, world.shapes, target.shape)
        color = pick(rng, world.colors) if chance(rng, 0.5) else None
        new = dataclasses.replace(target, shape=shape, color=color or target.color)
        asked = Wanted(shape, color)
    if _twin(new, scene.without(target)):
        return None
    return Edit(kind, target=target, new=new, asked=asked)


def _add(rng: Rng, scene: Scene, world: World) -> Edit | None:
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


def _move(rng: Rng, scene: Scene, world: World, target: Object) -> Edit | None:
    rest = scene.without(target)
    place = "relation" if rest.objects and chance(rng, 0.5) else "region"
    edit = place_again(rng, rest, world, target, Edit("move", target=target), place)
    if edit is None:
        return None
    if edit.anchor is None:
        already = edit.region == region(target, scene)
    else:
        already = edit.relation == relation(target, edit.anchor)
    return None if already else edit


def place_again(
    rng: Rng, scene: Scene, world: World, obj: Object, edit: Edit, place: str
) -> Edit | None:
    """`edit` with `obj` at a free place of the scene as its new object; None if none was found.

    Args:
      scene: without the object.
      place: "anywhere"; or a place that is random and named in the edit: in a "region", or in a
        "relation" to one of the scene's objects.
    """
    if place == "anywhere":
        spot = free_place(rng, scene, obj.diameter, world)
        if spot is None:
            return None
        return dataclasses.replace(edit, new=dataclasses.replace(obj, cx=spot[0], cy=spot[1]))
    named = dataclasses.replace(edit, region=pick(rng, REGION_NAMES))
    if place == "relation":
        anchor, goal = pick(rng, scene.objects), pick(rng, RELATIONS)
        named = dataclasses.replace(edit, anchor=anchor, relation=goal)
    return _placed(rng, scene, world, obj, named)


def _placed(rng: Rng, scene: Scene, world: World, obj: Object, named: Edit) -> Edit | None:
    x0, x1, y0, y1 = _bounds(named, scene, world, obj)
    if x0 > x1 or y0 > y1:
        return None
    for _ in range(_TRIES):
        cx = coordinate(rng, x0, x1, world.pitch)
        cy = coordinate(rng, y0, y1, world.pitch)
        if cx is None or cy is None:
            return None
        new = dataclasses.replace(obj, cx=cx, cy=cy)
        right = named.anchor is None or relation(new, named.anchor) == named.relation
        if right and fits(new, scene, world):
            return dataclasses.replace(named, new=new)
    return None


def _bounds(edit: Edit, scene: Scene, world: World, obj: Object) -> tuple[int, int, int, int]:
    """Where the centre of `obj` may lie: (left, right, top, bottom) in pixels, all included."""
    low = world.margin + obj.diameter // 2
    x0, x1, y0, y1 = low, scene.width - low, low, scene.height - low
    if edit.region is not None:
        left, right, top, bottom = region_bounds(edit.region, scene)
        return max(x0, left), min(x1, right), max(y0, top), min(y1, bottom)
    # Not needed for the result, which is checked: spares places that cannot do.
    anchor = edit.anchor
    assert anchor is not None
    reach = (obj.diameter + anchor.diameter) // 2 + world.gap
    return {
        "left of": (x0, min(x1, anchor.cx - reach), y0, y1),
        "right of": (max(x0, anchor.cx + reach), x1, y0, y1),
        "above": (x0, x1, y0, min(y1, anchor.cy - reach)),
        "below": (x0, x1, max(y0, anchor.cy + reach), y1),
    }[edit.relation or ""]


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


def order(rng: Rng, scene: Scene, edit: Edit, sized: bool = True) -> str:
    """An instruction without a full stop: "add a red star left of the circle".

    Args:
      sized: whether objects of the scene may be told by size ("the small star").
    """
    return _fill(rng, pick(rng, _ORDERS[edit.kind]), scene, edit, sized)


def event(rng: Rng, scene: Scene, edit: Edit, sized: bool = True) -> str:
    """The same as it happens, without a full stop: "a red star appears left of the circle"."""
    return _fill(rng, pick(rng, _EVENTS[edit.kind]), scene, edit, sized)


def _fill(rng: Rng, form: str, scene: Scene, edit: Edit, sized: bool) -> str:
    words: dict[str, str] = {"bg": edit.background or "", "at": "", "to": ""}
    if edit.target is not None:
        # "change the red object into a square" names what stays; that is fine.
        words["x"] = _the(rng, scene, edit.target, sized)
    if edit.asked is not None:
        words["y"] = noun_phrase(rng, edit.asked, "a")
    if edit.new is not None:
        words["color"] = edit.new.color
    if edit.anchor is not None and edit.relation is not None:
        near = pick(rng, RELATION_WORDS[edit.relation])
        words["at"] = words["to"] = f" {near} {_the(rng, scene, edit.anchor, sized)}"
    elif edit.region is not None:
        words["at"] = " " + at_region(rng, edit.region)
        words["to"] = " " + to_region(rng, edit.region)
    return form.format(**words)


def _the(rng: Rng, scene: Scene, obj: Object, sized: bool) -> str:
    wanted = refer(rng, scene, obj, without=None if sized else "size")
    assert wanted is not None, "objects of edited scenes differ in shape or colour"
    return noun_phrase(rng, wanted, "the")
