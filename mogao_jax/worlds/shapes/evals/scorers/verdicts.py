"""Whether an image shows what was asked for, and if not, why: in words fit to stand under it.

Places by words are judged as people would: "left of" by GenEval's rule (scene.relations), parts of
the canvas by its thirds. What must stay is judged by kind and place.
"""

from __future__ import annotations

import dataclasses

from mogao_jax.worlds.shapes.evals.scorers.reader import Reading
from mogao_jax.worlds.shapes.language import listing, with_article
from mogao_jax.worlds.shapes.scene import (
    REGION_GRID,
    Kind,
    Object,
    Scene,
    World,
    distance,
    region,
    relation,
    relations,
)
from mogao_jax.worlds.shapes.truth import Edit, Motion, Request, Truth, Wanted, satisfies


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Right or not; if not, the reason."""

    right: bool
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Change:
    """How an image follows from the one before it.

    Attributes:
      done: it is clear, and what is new in it is what was asked, no less and no more.
      kept: everything that was not to change is where it was: background and objects.
      kept_objects, num_objects: how many objects were not to change, and how many of them are
        where they were.
      repeated: it shows what the image before showed.
      reason: why not done or not kept.
    """

    done: bool
    kept: bool
    kept_objects: int
    num_objects: int
    repeated: bool
    reason: str = ""

    @property
    def right(self) -> bool:
        return self.done and self.kept


def tolerance(world: World) -> int:
    """Pixels that the centre of an unmoved object may be off: less than the slowest motion."""
    return max(1, round(0.75 * world.slow))


def judge_request(reading: Reading, request: Request) -> Verdict:
    """An image drawn by a caption."""
    return _shows(reading, satisfies(reading.scene, request))


def judge_opening(reading: Reading, wanted: Wanted) -> Verdict:
    """The first image of a story: one object, and the right one."""
    objects = reading.scene.objects
    return _shows(reading, len(objects) == 1 and wanted.matches(objects[0]))


def _shows(reading: Reading, right: bool) -> Verdict:
    if not reading.clear:
        return Verdict(False, reading.problems[0])
    return Verdict(True) if right else Verdict(False, "shows " + describe(reading.scene))


def judge_last(truth: Truth, after: Reading, world: World) -> Change:
    """The last image of an edit or a clip, given the one before it."""
    before = truth.scenes[-2]
    if truth.motion is None:
        return judge_change(before, after, truth.edits[-1], world)
    return judge_motion(before, after, truth.motion, before.objects[0], world)


def judge_change(before: Scene, after: Reading, edit: Edit, world: World) -> Change:
    """An image that should show `before` with a change.

    Args:
      before: what the image before shows; the edit's target and anchor are objects of it.
      after: the image.
      edit: what was asked; any outcome that agrees with its words will do, so of its `new` only
        the colour of a recolored object is used.
    """
    rest = _rest(before, after.scene, edit.target, edit.background is not None, world)
    failure = after.problems[0] if after.problems else _undone(after.scene, rest, edit)
    if not failure and edit.target is not None and rest.new:
        if edit.kind == "move":
            failure = _unmoved(before, rest.new[0], edit, tolerance(world))
        elif distance(rest.new[0], edit.target) > tolerance(world):
            failure = f"{_the(rest.new[0])} is elsewhere"
    return _change(failure, rest, before, after, world)


def judge_motion(
    before: Scene, after: Reading, motion: Motion, mover: Object, world: World
) -> Change:
    """The next frame of a clip: `mover`, an object of `before`, goes on as told, and nothing else.

    It must go at least half of the slowest motion in its direction, without moving sideways.
    """
    rest = _rest(before, after.scene, mover, False, world)
    failure = after.problems[0] if after.problems else ""
    if not failure and [o.kind for o in rest.new] != [mover.kind]:
        failure = f"{_the(mover)} became {_all(rest.new)}"
    if not failure:
        dx, dy = rest.new[0].cx - mover.cx, rest.new[0].cy - mover.cy
        x, y = (motion.dx > 0) - (motion.dx < 0), (motion.dy > 0) - (motion.dy < 0)
        if dx * x + dy * y < world.slow / 2 or abs(dx * y) + abs(dy * x) > tolerance(world):
            failure = f"{_the(mover)} moves by {dx} right, {dy} down"
    return _change(failure, rest, before, after, world)


@dataclasses.dataclass
class _Rest:
    """Where the objects that were to stay are now.

    Attributes:
      new: objects that are none of them.
      places: where each is now, by id of the object before.
      kept, total: how many are where they were, and how many there are.
      wrong: what was disturbed, in words.
    """

    new: list[Object]
    places: dict[int, Object]
    kept: int
    total: int
    wrong: list[str]


def _rest(
    before: Scene, scene: Scene, changed: Object | None, repainted: bool, world: World
) -> _Rest:
    stay = [o for o in before.objects if o is not changed]
    rest = _Rest(list(scene.objects), {}, 0, len(stay), [])
    for o in stay:
        wrong = _moved_to(o, rest, tolerance(world))
        rest.kept += not wrong
        rest.wrong += [f"{_the(o)} {wrong}"] if wrong else []
    if not repainted and scene.background != before.background:
        rest.wrong.append("the background is another")
    if (scene.height, scene.width) != (before.height, before.width):
        rest.wrong.append("the canvas is another")
    return rest


def _moved_to(obj: Object, rest: _Rest, near: int) -> str:
    """Takes an object's new self out of the new ones; what is wrong with it, "" if nothing."""
    same = [p for p in rest.new if (p.shape, p.color) == (obj.shape, obj.color)]
    if not same:
        return "is gone"
    found = rest.places[id(obj)] = _nearest(obj, same)
    rest.new.remove(found)
    if distance(found, obj) > near:
        return "is elsewhere"
    return "" if found.size == obj.size else "is of another size"


def _change(failure: str, rest: _Rest, before: Scene, after: Reading, world: World) -> Change:
    return Change(
        done=not failure,
        kept=not rest.wrong,
        kept_objects=rest.kept,
        num_objects=rest.total,
        repeated=after.clear and same_scene(before, after.scene, world),
        reason="; ".join([failure] * bool(failure) + rest.wrong),
    )


def _undone(scene: Scene, rest: _Rest, edit: Edit) -> str:
    """Why the change is not there, its target's place apart; "" if it is."""
    if edit.kind == "background" and scene.background != edit.background:
        return f"the background is {scene.background}"
    if edit.kind in ("background", "remove"):
        return _added(rest, edit.target)
    if not rest.new:
        return f"{_the(edit.target)} is gone" if edit.target else "nothing is new"
    if len(rest.new) > 1:
        return f"new are {_all(rest.new)}"
    new = rest.new[0]
    if not _as_asked(new, edit):
        return _instead(new, edit.target)
    anchor = rest.places.get(id(edit.anchor), edit.anchor)
    return "" if _in_place(new, scene, edit, anchor) else f"{_the(new)} is in the wrong place"


def _instead(new: Object, target: Object | None) -> str:
    if target is None:
        return f"new is {_all([new])}"
    same = new.kind == target.kind
    return f"{_the(target)} " + ("has not changed" if same else f"became {_all([new])}")


def _added(rest: _Rest, removed: Object | None) -> str:
    """Why an image that should show nothing new does, or is empty; "" if neither."""
    if rest.total and not rest.places:  # or else an empty image would do
        return "all objects are gone"
    if removed is not None and any(o.kind == removed.kind for o in rest.new):
        return f"{_the(removed)} is there"
    return f"there is also {_all(rest.new)}" if rest.new else ""


def _as_asked(new: Object, edit: Edit) -> bool:
    """Whether a new object is of the kind that the edit asks for."""
    asked, target = edit.asked or Wanted(), edit.target
    if target is None:
        return asked.matches(new)
    color = edit.new.color if edit.kind == "recolor" and edit.new else asked.color
    return new.kind == Kind(asked.shape or target.shape, color or target.color, target.size)


def _in_place(obj: Object, scene: Scene, edit: Edit, anchor: Object | None) -> bool:
    if edit.relation is not None:
        return anchor is not None and edit.relation in relations(obj, anchor)
    return edit.region is None or third(obj, scene) == edit.region


def _unmoved(before: Scene, new: Object, edit: Edit, near: int) -> str:
    """An object that had to move must have, or now be in place beyond doubt (as it may have been).

    The loose rules by which places are judged may have held before the move.
    """
    assert edit.target is not None
    if edit.relation is not None:
        assert edit.anchor is not None
        clear = relation(new, edit.anchor) == edit.relation
    else:
        clear = region(new, before) == edit.region
    far = distance(new, edit.target) > near
    return "" if far or clear else f"{_the(edit.target)} has not moved"


def same_scene(a: Scene, b: Scene, world: World) -> bool:
    """Whether two images show the same: objects of one kind in one place, one background."""
    if (a.background, a.height, a.width) != (b.background, b.height, b.width):
        return False
    near, rest = tolerance(world), list(b.objects)
    for o in a.objects:
        found = [p for p in rest if p.kind == o.kind and distance(p, o) <= near]
        if not found:
            return False
        rest.remove(_nearest(o, found))
    return not rest


def third(obj: Object, scene: Scene) -> str:
    """The part of the canvas that an object's centre lies in, by thirds."""
    row = min(3 * max(obj.cy, 0) // scene.height, 2)
    return REGION_GRID[row][min(3 * max(obj.cx, 0) // scene.width, 2)]


def _nearest(obj: Object, others: list[Object]) -> Object:
    return min(others, key=lambda other: distance(obj, other))


def describe(scene: Scene) -> str:
    """ "a small red circle and a large blue square on white"."""
    return f"{_all(list(scene.objects))} on {scene.background or 'an unknown background'}"


def _all(objects: list[Object]) -> str:
    named = [with_article(f"{o.size} {o.color} {o.shape}") for o in objects]
    return listing(named) if named else "nothing"


def _the(obj: Object) -> str:
    return f"the {obj.color} {obj.shape}"
