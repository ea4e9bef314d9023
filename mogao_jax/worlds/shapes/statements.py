"""Everything that an image shows, in words: many words, each decided by the image.

An answer to a question is a word or two: a thin signal. A description teaches the same (colours,
shapes, places, relations, numbers) with thirty words per image, as the detailed captions of
vision-language models do. So descriptions have no synonyms and a fixed order: a word that the
image does not decide teaches nothing.

Descriptions always name colours before shapes: they teach what shape the red object has, and not
what colour the circle has. Statements ask in every direction, as questions do, several to an
image, and each ends in a word that only the image decides.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

from mogao_jax.worlds.shapes.language import (
    NUMBERS,
    listing,
    noun_phrase,
    plainly_at,
    refer,
    with_article,
)
from mogao_jax.worlds.shapes.placement import arrange, distinct_scene, random_kind, shrink_crowd
from mogao_jax.worlds.shapes.rng import Rng, between, chance, pick, sample
from mogao_jax.worlds.shapes.scene import Object, Scene, World, region, relation
from mogao_jax.worlds.shapes.truth import Wanted

DESCRIBE_REQUESTS = ("what do you see?", "what is in the picture?", "what does the picture show?")
STATE_REQUESTS = ("tell me about the picture.", "say something about the picture.")
NUM_STATEMENTS = 5


def any_scene(rng: Rng, world: World) -> Scene:
    """One to max_count objects: mostly all different, sometimes of any kinds."""
    count = between(rng, 1, world.max_count)
    if chance(rng, 0.3):
        return arrange(rng, shrink_crowd([random_kind(rng, world) for _ in range(count)]), world)
    return distinct_scene(rng, min(count, 4), world)


def description(scene: Scene) -> str:
    """The number of objects, each with its size, colour, shape and place, then how neighbours lie.

    Objects come in reading order: by rows of a fourth of the image's height, then from the left.
    A place that is not clear (see `scene.region`) is left out, and so is a relation that is not,
    or whose objects look the same.
    """
    objects = sorted(scene.objects, key=lambda o: (4 * o.cy // scene.height, o.cx))
    number = "one object" if len(objects) == 1 else f"{NUMBERS[len(objects)]} objects"
    whole = f"{number}: {listing([_placed_object(o, scene) for o in objects])}."
    names = [f"{o.color} {o.shape}" for o in objects]
    lies = [
        f"the {names[i]} is {held} the {names[i + 1]}"
        for i in range(len(objects) - 1)
        if (held := relation(objects[i], objects[i + 1])) is not None
        and names.count(names[i]) == names.count(names[i + 1]) == 1
    ]
    return f"{whole} {listing(lies)}." if lies else whole


def _placed_object(obj: Object, scene: Scene) -> str:
    phrase = with_article(f"{obj.size} {obj.color} {obj.shape}")
    place = region(obj, scene)
    return phrase if place is None else f"{phrase} {plainly_at(place)}"


def statements_and_scene(rng: Rng, world: World, kind: str | None = None) -> tuple[str, Scene]:
    """Up to NUM_STATEMENTS statements, all of the kind (of any if None), and their scene.

    Each states another fact: the same fact in other words could be copied from the text.
    """
    while True:
        scene = any_scene(rng, world)
        made: dict[Hashable, str] = {}
        for _ in range(4 * NUM_STATEMENTS):
            statement = _MAKERS[kind or pick(rng, _MIXTURE)](rng, world, scene)
            if statement is not None:
                made.setdefault(*statement)
            if len(made) == NUM_STATEMENTS:
                break
        if made:
            return " ".join(made.values()), scene


_Statement = tuple[Hashable, str]  # what it is about, and its words


def _about_one(rng: Rng, scene: Scene, fact: str) -> _Statement | None:
    """Where an object is, or its colour or shape."""
    obj = pick(rng, scene.objects)
    subject = refer(rng, scene, obj, without=fact)
    value = region(obj, scene) if fact in ("where", "placed") else getattr(obj, fact)
    if subject is None or value is None:
        return None
    said = {
        "color": f"is {obj.color}",
        "shape": f"is {with_article(obj.shape)}",
        "where": f"is {plainly_at(value)}",
        "placed": value,  # right after the object: the place must be known where it is named
    }
    about = "where" if fact == "placed" else fact, obj
    return about, f"{noun_phrase(rng, subject, 'the')} {said[fact]}."


_SIDE = {"left of": "on the left", "right of": "on the right", "above": "above", "below": "below"}


def _relation(rng: Rng, scene: Scene) -> _Statement | None:
    """The other object first: the side is decided only once both are named."""
    if len(scene.objects) < 2:
        return None
    a, b = sample(rng, scene.objects, 2)
    held, subject, other = relation(a, b), refer(rng, scene, a), refer(rng, scene, b)
    if held is None or subject is None or other is None:
        return None
    seen_from = f"seen from {noun_phrase(rng, other, 'the')}"
    return (
        ("relation", frozenset((a, b))),
        f"{seen_from}, {noun_phrase(rng, subject, 'the')} is {_SIDE[held]}.",
    )


def _count(rng: Rng, world: World, scene: Scene) -> _Statement:
    """The objects first, then how many of them; mostly of objects that are there."""
    like = pick(rng, scene.objects).kind if chance(rng, 0.8) else random_kind(rng, world)
    by_shape, by_color = Wanted(like.shape), Wanted(None, like.color)
    subject = pick(rng, (Wanted(), by_shape, by_color, Wanted(like.shape, like.color)))
    number = NUMBERS[len(subject.among(scene))]
    return ("count", subject), f"{noun_phrase(rng, subject, 'plural')}: {number}."


_MAKERS: dict[str, Callable[[Rng, World, Scene], _Statement | None]] = {
    "color": lambda rng, world, scene: _about_one(rng, scene, "color"),
    "shape": lambda rng, world, scene: _about_one(rng, scene, "shape"),
    "where": lambda rng, world, scene: _about_one(rng, scene, "where"),
    "relation": lambda rng, world, scene: _relation(rng, scene),
    "count": _count,
    "placed": lambda rng, world, scene: _about_one(rng, scene, "placed"),
}
STATEMENTS = tuple(_MAKERS)
# Colours, places, relations and numbers are what small models learn last.
_MIXTURE = (
    *("color", "color", "shape", "where"),
    *("where", "relation", "relation", "count", "count"),
)
