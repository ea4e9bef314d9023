"""Several questions about one picture, each with its one right answer.

A question by itself is a thin signal: a picture is read for one word. Here it is read for four.

`told_apart` asks where one of two named things is, in the words in which `relation` asks for its
side of the other. A small model that is asked for relations from the start finds both things and
not which of them is meant: it answers with the right axis and a side at random, and stays there,
because what it reads at both places cancels out. Where one of two things is gives a signal at once.

`count` and `yes_no` are about what single questions are slow to teach: numbers of things that a
description picks out of others like them, and claims about numbers and sides.
"""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from mogao_jax.worlds.shapes.language import NUMBERS, refer
from mogao_jax.worlds.shapes.placement import arrange, random_size, shrink_crowd
from mogao_jax.worlds.shapes.questions import (
    attribute_of,
    claim_of,
    existence_claim,
    number_claim,
    relation_of,
    some_objects,
)
from mogao_jax.worlds.shapes.rng import between, chance, pick, sample
from mogao_jax.worlds.shapes.scene import Kind, Object, Scene, World, region
from mogao_jax.worlds.shapes.truth import Question, Wanted

MIXED = ("color", "shape", "count", "relation", "where", "told_apart")
KINDS = (*MIXED, "yes_no")
NUM_QUESTIONS = 4


def questions_and_scene(
    rng: np.random.Generator, world: World, kind: str | None = None, num: int = NUM_QUESTIONS
) -> tuple[tuple[Question, ...], Scene]:
    """One to `num` questions, all of the kind (of any of MIXED if None), and their scene.

    No two are of one kind about the same objects in the same roles; of relations, not in the other
    roles either: the answer would follow from the words alone.
    """
    while True:
        # What is counted is counted among things like it; the others are about single things.
        crowd = kind == "count" or (kind == "yes_no" and chance(rng, 0.5))
        scene = _crowd(rng, world) if crowd else some_objects(rng, world, 2, 4)
        made: dict[Hashable, Question] = {}
        for _ in range(2 * num):
            if kind == "yes_no":
                about, question = _claimed(rng, world, scene, crowd)
            elif crowd:
                about, question = _counted(_description(rng, world, scene), scene)
            else:
                about, question = _about(rng, scene, kind or pick(rng, MIXED))
            if question is not None:
                made.setdefault(about, question)
            if len(made) == num:
                break
        if made:
            return tuple(made.values()), scene


def _crowd(rng: np.random.Generator, world: World) -> Scene:
    """Things of two shapes and two colors; of each, every number is about equally likely."""
    shapes, colors = sample(rng, world.shapes, 2), sample(rng, world.colors, 2)
    of_shape, of_color = rng.random(), rng.random()
    kinds = [
        Kind(shapes[chance(rng, of_shape)], colors[chance(rng, of_color)], random_size(rng))
        for _ in range(between(rng, 2, world.max_count))
    ]
    return arrange(rng, shrink_crowd(kinds), world)


def _description(rng: np.random.Generator, world: World, scene: Scene) -> Wanted:
    """Words for some of a scene's things, or for none of them."""
    shape, color = pick(rng, scene.objects).shape, pick(rng, scene.objects).color
    if chance(rng, 0.1):
        shape = pick(rng, world.shapes)
    by_shape, by_color, by_both = Wanted(shape), Wanted(None, color), Wanted(shape, color)
    return pick(rng, (Wanted(), by_shape, by_shape, by_color, by_color, by_both))


def _counted(subject: Wanted, scene: Scene) -> tuple[Hashable, Question]:
    number = NUMBERS[len(subject.among(scene))]
    return ("count", subject), Question("count", subject, number)


def _claimed(
    rng: np.random.Generator, world: World, scene: Scene, crowd: bool
) -> tuple[Hashable, Question | None]:
    """A claim, as likely true as not, and what it may not share with another of the picture."""
    yes = chance(rng, 0.5)
    claim = "count" if crowd else pick(rng, ("relation", "relation", "color", "exists"))
    if claim == "count":
        subject = _description(rng, world, scene)
        return (claim, subject), number_claim(rng, world, subject, scene, yes)
    if claim == "exists":
        question = existence_claim(rng, world, scene, yes)
        return (claim, question and question.subject), question
    about, asked = _about(rng, scene, claim)
    return about, asked and claim_of(rng, world, asked, yes)


def _about(rng: np.random.Generator, scene: Scene, kind: str) -> tuple[Hashable, Question | None]:
    """A question, and what it may not share with another of the same picture."""
    if kind == "relation":
        a, b = sample(rng, scene.objects, 2)
        return (kind, frozenset((a, b))), relation_of(rng, scene, a, b)
    if kind == "told_apart":
        a, b = sample(rng, scene.objects, 2)
        return (kind, a, b), _told_apart(rng, scene, a, b)
    obj = pick(rng, scene.objects)
    if kind == "count":
        shape, color = pick(rng, ((None, None), (obj.shape, None), (None, obj.color)))
        return _counted(Wanted(shape, color), scene)
    if kind == "where":
        return (kind, obj), _where(rng, scene, obj)
    question = attribute_of(rng, scene, kind)
    return (kind, question and question.subject.among(scene)[0]), question


def _where(rng: np.random.Generator, scene: Scene, obj: Object) -> Question | None:
    subject, place = refer(rng, scene, obj), region(obj, scene)
    if subject is None or place is None:
        return None
    return Question("where", subject, place)


def _told_apart(rng: np.random.Generator, scene: Scene, a: Object, b: Object) -> Question | None:
    subject, other, place = refer(rng, scene, a), refer(rng, scene, b), region(a, scene)
    if subject is None or other is None or place is None:
        return None
    return Question("told_apart", subject, place, other)
