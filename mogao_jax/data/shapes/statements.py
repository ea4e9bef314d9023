"""True sentences about a picture, each ending in a word that only the picture decides.

Descriptions (`descriptions.py`) name colours before shapes, always: they teach what shape the red
object has, and not what colour the circle has. Statements ask in every direction, as questions
do, several to a picture.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mogao_jax.data.shapes.chance import chance, pick, sample
from mogao_jax.data.shapes.language import (
    NUMBERS,
    noun_phrase,
    plainly_at,
    refer,
    with_article,
)
from mogao_jax.data.shapes.placement import random_kind
from mogao_jax.data.shapes.scene import Scene, region, relation
from mogao_jax.data.shapes.truth import Wanted

REQUESTS = ("tell me about the picture.", "say something about the picture.")
NUM_STATEMENTS = 5

_SIDE = {"left of": "on the left", "right of": "on the right", "above": "above", "below": "below"}


def statements(rng: np.random.Generator, scene: Scene, num: int = NUM_STATEMENTS) -> str:
    """Up to `num` different statements about a scene with an object or more."""
    made: list[str] = []
    for _ in range(4 * num):
        statement = pick(rng, _MAKERS)(rng, scene)
        if statement is not None and statement not in made:
            made.append(statement)
        if len(made) == num:
            break
    return " ".join(made)


def _color(rng: np.random.Generator, scene: Scene) -> str | None:
    obj = pick(rng, scene.objects)
    subject = refer(rng, scene, obj, without="color")
    return None if subject is None else f"{noun_phrase(rng, subject, 'the')} is {obj.color}."


def _shape(rng: np.random.Generator, scene: Scene) -> str | None:
    obj = pick(rng, scene.objects)
    subject = refer(rng, scene, obj, without="shape")
    if subject is None:
        return None
    return f"{noun_phrase(rng, subject, 'the')} is {with_article(obj.shape)}."


def _where(rng: np.random.Generator, scene: Scene) -> str | None:
    obj = pick(rng, scene.objects)
    subject, place = refer(rng, scene, obj), region(obj, scene)
    if subject is None or place is None:
        return None
    return f"{noun_phrase(rng, subject, 'the')} is {plainly_at(place)}."


def _relation(rng: np.random.Generator, scene: Scene) -> str | None:
    """The other object first: the side is decided only once both are named."""
    if len(scene.objects) < 2:
        return None
    a, b = sample(rng, scene.objects, 2)
    held, subject, other = relation(a, b), refer(rng, scene, a), refer(rng, scene, b)
    if held is None or subject is None or other is None:
        return None
    return (
        f"seen from {noun_phrase(rng, other, 'the')}, "
        f"{noun_phrase(rng, subject, 'the')} is {_SIDE[held]}."
    )


def _count(rng: np.random.Generator, scene: Scene) -> str:
    """The things first, then how many of them; mostly of things that are there."""
    like = pick(rng, scene.objects).kind if chance(rng, 0.8) else random_kind(rng)
    subject = pick(
        rng,
        (Wanted(), Wanted(like.shape), Wanted(None, like.color), Wanted(like.shape, like.color)),
    )
    return f"{noun_phrase(rng, subject, 'plural')}: {NUMBERS[len(subject.among(scene))]}."


_Maker = Callable[[np.random.Generator, Scene], str | None]
# Colours, places, relations and numbers are what small models learn last.
_MAKERS: tuple[_Maker, ...] = (
    *(_color, _color, _shape, _where),
    *(_where, _relation, _relation, _count, _count),
)
