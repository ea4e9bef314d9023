"""True sentences about a picture, each ending in a word that only the picture decides.

Descriptions (`descriptions.py`) name colours before shapes, always: they teach what shape the red
object has, and not what colour the circle has. Statements ask in every direction, as questions
do, several to a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import numpy as np

from mogao_jax.worlds.shapes.descriptions import any_scene
from mogao_jax.worlds.shapes.language import (
    NUMBERS,
    noun_phrase,
    plainly_at,
    refer,
    with_article,
)
from mogao_jax.worlds.shapes.placement import random_kind
from mogao_jax.worlds.shapes.rng import chance, pick, sample
from mogao_jax.worlds.shapes.scene import DEFAULT_WORLD, Scene, World, region, relation
from mogao_jax.worlds.shapes.truth import Wanted

REQUESTS = ("tell me about the picture.", "say something about the picture.")
NUM_STATEMENTS = 5

_SIDE = {"left of": "on the left", "right of": "on the right", "above": "above", "below": "below"}


def statements_and_scene(
    rng: np.random.Generator, world: World, kind: str | None = None
) -> tuple[str, Scene]:
    """Statements, all of the kind (of any if None), and the scene that they are about."""
    while True:
        scene = any_scene(rng, world)
        if said := statements(rng, scene, kind, world=world):
            return said, scene


def statements(
    rng: np.random.Generator,
    scene: Scene,
    kind: str | None = None,
    num: int = NUM_STATEMENTS,
    world: World = DEFAULT_WORLD,
) -> str:
    """Up to `num` statements about a scene with an object or more; "" if none fits.

    Each says something else: in other words, a fact could be copied from the text.
    """
    made: dict[Hashable, str] = {}
    for _ in range(4 * num):
        statement = _MAKERS[kind or pick(rng, _MIXTURE)](rng, world, scene)
        if statement is not None:
            fact, words = statement
            made.setdefault(fact, words)
        if len(made) == num:
            break
    return " ".join(made.values())


_Statement = tuple[Hashable, str]  # what it is about, and its words


def _color(rng: np.random.Generator, world: World, scene: Scene) -> _Statement | None:
    obj = pick(rng, scene.objects)
    subject = refer(rng, scene, obj, without="color")
    if subject is None:
        return None
    return ("color", obj), f"{noun_phrase(rng, subject, 'the')} is {obj.color}."


def _shape(rng: np.random.Generator, world: World, scene: Scene) -> _Statement | None:
    obj = pick(rng, scene.objects)
    subject = refer(rng, scene, obj, without="shape")
    if subject is None:
        return None
    return ("shape", obj), f"{noun_phrase(rng, subject, 'the')} is {with_article(obj.shape)}."


def _where(rng: np.random.Generator, world: World, scene: Scene) -> _Statement | None:
    obj = pick(rng, scene.objects)
    subject, place = refer(rng, scene, obj), region(obj, scene)
    if subject is None or place is None:
        return None
    return ("where", obj), f"{noun_phrase(rng, subject, 'the')} is {plainly_at(place)}."


def _relation(rng: np.random.Generator, world: World, scene: Scene) -> _Statement | None:
    """The other object first: the side is decided only once both are named."""
    if len(scene.objects) < 2:
        return None
    a, b = sample(rng, scene.objects, 2)
    held, subject, other = relation(a, b), refer(rng, scene, a), refer(rng, scene, b)
    if held is None or subject is None or other is None:
        return None
    words = (
        f"seen from {noun_phrase(rng, other, 'the')}, "
        f"{noun_phrase(rng, subject, 'the')} is {_SIDE[held]}."
    )
    return ("relation", frozenset((a, b))), words


def _placed(rng: np.random.Generator, world: World, scene: Scene) -> _Statement | None:
    """The place right after the thing: it has to be known where the thing is named."""
    obj = pick(rng, scene.objects)
    subject, place = refer(rng, scene, obj), region(obj, scene)
    if subject is None or place is None:
        return None
    return ("where", obj), f"{noun_phrase(rng, subject, 'the')} {place}."


def _count(rng: np.random.Generator, world: World, scene: Scene) -> _Statement:
    """The things first, then how many of them; mostly of things that are there."""
    like = pick(rng, scene.objects).kind if chance(rng, 0.8) else random_kind(rng, world)
    subject = pick(
        rng,
        (Wanted(), Wanted(like.shape), Wanted(None, like.color), Wanted(like.shape, like.color)),
    )
    number = NUMBERS[len(subject.among(scene))]
    return ("count", subject), f"{noun_phrase(rng, subject, 'plural')}: {number}."


_MAKERS: dict[str, Callable[[np.random.Generator, World, Scene], _Statement | None]] = {
    "color": _color,
    "shape": _shape,
    "where": _where,
    "relation": _relation,
    "count": _count,
    "placed": _placed,
}
STATEMENTS = tuple(_MAKERS)
# Colours, places, relations and numbers are what small models learn last.
_MIXTURE = (
    *("color", "color", "shape", "where"),
    *("where", "relation", "relation", "count", "count"),
)
