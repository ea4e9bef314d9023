"""Stories: a scene built up or changed step by step, and clips: an object that moves."""

from __future__ import annotations

import dataclasses

from mogao_jax.worlds.shapes import edits
from mogao_jax.worlds.shapes.language import NUMBERS, noun_phrase, refer
from mogao_jax.worlds.shapes.placement import distinct_scene, inside
from mogao_jax.worlds.shapes.rng import Rng, between, chance, pick
from mogao_jax.worlds.shapes.scene import Scene, World, separated
from mogao_jax.worlds.shapes.truth import Edit, Motion, Wanted

MAX_IMAGES = 4

_FIRST = ("first, {}.", "first there is {}.", "here is {}.", "we start with {}.", "{}.")
_THEN = ("then {}.", "then {}.", "now {}.", "next, {}.", "after that, {}.", "{}.")
_LAST = ("finally, {}.", "at last {}.", "then {}.", "now {}.")
_CLOSING = ("done.", "done.", "the end.", "that is all.", "finished.")

_PLANNED = (
    "draw {first}, {steps}. show every step.",
    "show me step by step: draw {first}, {steps}.",
    "step by step: {first}, {steps}.",
    "start with {first}, {steps}. show each step.",
    "draw {first}, {steps}. draw a picture for each step.",
)
_FREE = (
    "tell a story in {n} pictures.",
    "tell me a story about {first} in {n} pictures.",
    "show a story with {n} pictures.",
    "show {n} pictures of how {first} changes.",
    "make a story about {first} with {n} pictures.",
)


@dataclasses.dataclass(frozen=True)
class Story:
    """A user's request, then one sentence and one scene per image, and a closing text."""

    request: str
    sentences: tuple[str, ...]
    scenes: tuple[Scene, ...]
    edits: tuple[Edit, ...]
    closing: str
    planned: bool


def random_story(rng: Rng, world: World) -> Story:
    """Two to four images. Builds up only (half of the stories), or changes in any way."""
    count = between(rng, 2, MAX_IMAGES)
    scenes, changes = _plot(rng, world, count, kind="add" if chance(rng, 0.5) else None)
    steps = list(zip(scenes, changes, strict=False))  # each change with the scene before it
    first = noun_phrase(rng, Wanted.of(scenes[0].objects[0]))
    planned = chance(rng, 0.65)
    if planned:
        told = [f"then {edits.order(rng, *step, sized=False)}" for step in steps]
        request = pick(rng, _PLANNED).format(first=first, steps=", ".join(told))
    else:
        request = pick(rng, _FREE).format(first=first, n=NUMBERS[count])
    sentences = [pick(rng, _FIRST).format(first)]
    for step in steps:
        forms = _LAST if step is steps[-1] and chance(rng, 0.4) else _THEN
        sentences.append(pick(rng, forms).format(edits.event(rng, *step, sized=False)))
    return Story(
        request, tuple(sentences), tuple(scenes), tuple(changes), pick(rng, _CLOSING), planned
    )


def _plot(rng: Rng, world: World, count: int, kind: str | None) -> tuple[list[Scene], list[Edit]]:
    while True:  # a crowded small canvas may leave no room: begin anew
        scenes: list[Scene] = [distinct_scene(rng, 1, world)]
        changes: list[Edit] = []
        for _ in range(8 * count):
            if len(scenes) == count:
                return scenes, changes
            change = edits.random_edit(rng, scenes[-1], world, kind)
            if change is not None:
                changes.append(change)
                scenes.append(edits.apply(scenes[-1], change))


DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1)}
_SPEED_WORDS = {"slow": ("slowly", "a little"), "fast": ("quickly", "fast")}
_TOWARDS = {
    "right": ("to the right", "right"),
    "left": ("to the left", "left"),
    "up": ("up", "upwards"),
    "down": ("down", "downwards"),
}
_CLIP_FIRST = ("{a} moves {d} {s}.", "{a} moves {s} {d}.", "a clip of {a} moving {d} {s}.")
_CLIP_NEXT = (
    "it moves {d} {s}.",
    "it moves on {d} {s}.",
    "{the} moves {d} {s}.",
    "{the} moves {s} {d}.",
    "{the} keeps moving {d} {s}.",
)


def random_clip(rng: Rng, world: World) -> tuple[list[str], tuple[Scene, ...], Motion]:
    """Captions and scenes of two to four frames, and the motion of the first object."""
    motion, scenes = _moving_scenes(rng, world, between(rng, 2, MAX_IMAGES))
    still = scenes[0].objects[1:]
    mover = noun_phrase(rng, Wanted.of(scenes[0].objects[0]))
    beside = f"there is {noun_phrase(rng, Wanted.of(still[0]))}. " if still else ""
    captions = []
    for i, scene in enumerate(scenes):
        wanted = refer(rng, scene, scene.objects[0], without="size")
        assert wanted is not None
        form = pick(rng, _CLIP_NEXT if i else _CLIP_FIRST)
        text = form.format(
            a=mover,
            the=noun_phrase(rng, wanted, "the"),
            d=pick(rng, _TOWARDS[motion.direction]),
            s=pick(rng, _SPEED_WORDS[motion.speed]),
        )
        captions.append(text if i else beside + text)
    return captions, tuple(scenes), motion


def _moving_scenes(rng: Rng, world: World, count: int) -> tuple[Motion, list[Scene]]:
    while True:
        scene = distinct_scene(rng, between(rng, 1, 2), world)
        direction = pick(rng, tuple(DIRECTIONS))
        speed = pick(rng, ("slow", "fast"))
        step = world.slow if speed == "slow" else world.fast
        dx, dy = (step * part for part in DIRECTIONS[direction])
        mover, *still = scene.objects
        path = [
            dataclasses.replace(mover, cx=mover.cx + i * dx, cy=mover.cy + i * dy)
            for i in range(count)
        ]
        clear = all(separated(p, o, world.gap) for p in path for o in still)
        if clear and inside(path[-1], scene, world):
            motion = Motion(direction, speed, dx, dy)
            return motion, [scene.with_objects((p, *still)) for p in path]
