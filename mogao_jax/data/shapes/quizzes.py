"""Several questions about one picture, each with its one right answer.

A question by itself is a thin signal: a picture is read for one word. Here it is read for four.

`told_apart` asks where one of two named things is, in the words in which `relation` asks for its
side of the other. A small model that is asked for relations from the start finds both things and
not which of them is meant: it answers with the right axis and a side at random, and stays there,
because what it reads at both places cancels out. Where one of two things is gives a signal at once.
"""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from mogao_jax.data.shapes.chance import pick, sample
from mogao_jax.data.shapes.language import NUMBERS, refer
from mogao_jax.data.shapes.questions import attribute_of, relation_of, some_objects
from mogao_jax.data.shapes.scene import Object, Scene, World, region
from mogao_jax.data.shapes.truth import Question, Wanted

KINDS = ("color", "shape", "count", "relation", "where", "told_apart")
NUM_QUESTIONS = 4


def questions_and_scene(
    rng: np.random.Generator, world: World, kind: str | None = None, num: int = NUM_QUESTIONS
) -> tuple[tuple[Question, ...], Scene]:
    """One to `num` questions, all of the kind (of any of KINDS if None), and their scene.

    No two are of one kind about the same objects in the same roles; of relations, not in the other
    roles either: the answer would follow from the words alone.
    """
    while True:
        scene = some_objects(rng, world, 2, 4)
        made: dict[Hashable, Question] = {}
        for _ in range(2 * num):
            about, question = _about(rng, scene, kind or pick(rng, KINDS))
            if question is not None:
                made.setdefault(about, question)
            if len(made) == num:
                break
        if made:
            return tuple(made.values()), scene


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
        subject = Wanted(shape, color)
        return (kind, subject), Question(kind, subject, NUMBERS[len(subject.among(scene))])
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
