"""Questions about a picture, each with its one right answer."""

from __future__ import annotations

import dataclasses

import numpy as np

from mogao_jax.worlds.shapes.edits import place_again
from mogao_jax.worlds.shapes.language import (
    NUMBERS,
    RELATION_WORDS,
    describe,
    noun_phrase,
    refer,
)
from mogao_jax.worlds.shapes.placement import (
    arrange,
    distinct_kinds,
    random_kind,
    shrink_crowd,
)
from mogao_jax.worlds.shapes.rng import between, chance, pick
from mogao_jax.worlds.shapes.scene import (
    RELATIONS,
    Kind,
    Object,
    Scene,
    World,
    relation,
)
from mogao_jax.worlds.shapes.truth import QUESTIONS, Edit, Question, Wanted

SHORT = {"left of": "left", "right of": "right", "above": "above", "below": "below"}


def question_and_scene(
    rng: np.random.Generator, world: World, kind: str | None = None
) -> tuple[Question, Scene]:
    """A question of the kind (a random one if None) and the scene it is about."""
    kind = kind or pick(rng, QUESTIONS)
    while True:
        question, scene = _MAKERS[kind](rng, world)
        if question is not None:
            return question, scene


def some_objects(rng: np.random.Generator, world: World, low: int, high: int) -> Scene:
    """Between `low` and `high` objects (or max_count), all of different kinds."""
    count = between(rng, low, min(high, world.max_count))
    return arrange(rng, shrink_crowd(distinct_kinds(rng, count, world)), world)


def attribute_of(rng: np.random.Generator, scene: Scene, name: str) -> Question | None:
    """What colour or shape one of a scene's objects has; None if words cannot single it out."""
    obj = pick(rng, scene.objects)
    subject = refer(rng, scene, obj, without=name)
    return None if subject is None else Question(name, subject, getattr(obj, name))


def _attribute(rng: np.random.Generator, world: World, name: str) -> tuple[Question | None, Scene]:
    scene = some_objects(rng, world, 1, 4)
    return attribute_of(rng, scene, name), scene


def _color(rng: np.random.Generator, world: World) -> tuple[Question | None, Scene]:
    return _attribute(rng, world, "color")


def _shape(rng: np.random.Generator, world: World) -> tuple[Question | None, Scene]:
    return _attribute(rng, world, "shape")


def _counted_scene(rng: np.random.Generator, world: World) -> tuple[Wanted, Scene]:
    """A description and a scene in which every number of matches is about equally likely."""
    like = random_kind(rng, world)
    mode = pick(rng, ("all", "shape", "shape", "color", "both"))
    subject = Wanted(
        like.shape if mode in ("shape", "both") else None,
        like.color if mode in ("color", "both") else None,
    )
    matching = between(rng, 1 if mode == "all" else 0, world.max_count)
    rest = 0 if mode == "all" else between(rng, 0 if matching else 1, world.max_count - matching)
    kinds: list[Kind] = []
    while len(kinds) < matching:
        kind = random_kind(rng, world)
        kinds.append(Kind(subject.shape or kind.shape, subject.color or kind.color, kind.size))
    while len(kinds) < matching + rest:
        kind = random_kind(rng, world)
        if (subject.shape or kind.shape, subject.color or kind.color) != (kind.shape, kind.color):
            kinds.append(kind)
    return subject, arrange(rng, shrink_crowd(kinds), world)


def _count(rng: np.random.Generator, world: World) -> tuple[Question | None, Scene]:
    subject, scene = _counted_scene(rng, world)
    return Question("count", subject, NUMBERS[len(subject.among(scene))]), scene


def relation_of(rng: np.random.Generator, scene: Scene, a: Object, b: Object) -> Question | None:
    """On which side of `b` `a` is; None if that is not clear or words cannot single them out."""
    held = relation(a, b)
    subject, other = refer(rng, scene, a), refer(rng, scene, b)
    if held is None or subject is None or other is None:
        return None
    return Question("relation", subject, SHORT[held], other=other)


def _relation(rng: np.random.Generator, world: World) -> tuple[Question | None, Scene]:
    scene = some_objects(rng, world, 2, 3)
    return relation_of(rng, scene, *scene.objects[:2]), scene


def _where(rng: np.random.Generator, world: World) -> tuple[Question | None, Scene]:
    scene = some_objects(rng, world, 1, 3)
    first, rest = scene.objects[0], scene.with_objects(scene.objects[1:])
    # Put there on purpose: few objects lie in the center by chance.
    moved = place_again(rng, rest, world, first, Edit("move", target=first), "region")
    if moved is None or moved.new is None or moved.region is None:
        return None, scene
    scene = scene.with_objects((moved.new, *rest.objects))
    subject = refer(rng, scene, moved.new)
    if subject is None:
        return None, scene
    return Question("where", subject, moved.region), scene


def claim_of(rng: np.random.Generator, world: World, question: Question, yes: bool) -> Question:
    """Whether its answer is so (or, if not `yes`, another): of a color, shape or relation."""
    options = {"color": world.colors, "shape": world.shapes}.get(question.kind, RELATIONS)
    held = next(o for o in options if SHORT.get(o, o) == question.answer)
    return dataclasses.replace(
        question,
        kind="yes_no",
        answer=_yes(yes),
        claim=question.kind,
        value=held if yes else pick(rng, [o for o in options if o != held]),
    )


def number_claim(
    rng: np.random.Generator, world: World, subject: Wanted, scene: Scene, yes: bool
) -> Question | None:
    """Whether there are so many; None where that would be none."""
    count = len(subject.among(scene))
    if not yes:
        count = (count + between(rng, 1, world.max_count)) % (world.max_count + 1)
    if count == 0:
        return None
    subject = dataclasses.replace(subject, count=count)
    return Question("yes_no", subject, _yes(yes), claim="count")


def existence_claim(
    rng: np.random.Generator, world: World, scene: Scene, yes: bool
) -> Question | None:
    """Whether there is such a thing; None if words drawn for the one answer have the other."""
    kind = random_kind(rng, world)
    obj = pick(rng, scene.objects)
    subject = describe(obj) if yes else Wanted(kind.shape, kind.color)
    drop = pick(rng, ("shape", "color", "nothing", "nothing"))
    subject = Wanted(
        None if drop == "shape" else subject.shape, None if drop == "color" else subject.color
    )
    if bool(subject.among(scene)) != yes:
        return None
    return Question("yes_no", subject, _yes(yes), claim="exists")


def _yes(yes: bool) -> str:
    return "yes" if yes else "no"


def _yes_no(rng: np.random.Generator, world: World) -> tuple[Question | None, Scene]:
    claim = pick(rng, ("exists", "count", "color", "shape", "relation"))
    yes = chance(rng, 0.5)
    if claim == "count":
        subject, scene = _counted_scene(rng, world)
        return number_claim(rng, world, subject, scene, yes), scene
    if claim == "exists":
        scene = some_objects(rng, world, 1, 4)
        return existence_claim(rng, world, scene, yes), scene
    question, scene = (
        _relation(rng, world) if claim == "relation" else _attribute(rng, world, claim)
    )
    return question and claim_of(rng, world, question, yes), scene


_MAKERS = {
    "color": _color,
    "shape": _shape,
    "count": _count,
    "relation": _relation,
    "where": _where,
    "yes_no": _yes_no,
}


def question_text(rng: np.random.Generator, question: Question) -> str:
    """Words for a question; they determine it completely."""
    subject, kind = question.subject, question.kind
    if kind == "count":
        things = noun_phrase(rng, subject, "plural")
        forms = ("how many {x} are there?", "how many {x} do you see?", "how many {x}?")
        return pick(rng, (*forms, "count the {x}.")).format(x=things)
    if kind == "yes_no" and question.claim in ("exists", "count"):
        return _existence_text(rng, question)
    the = noun_phrase(rng, subject, "the")
    if kind == "color":
        forms = ("what color is {x}?", "which color is {x}?", "what is the color of {x}?")
        return pick(rng, (*forms, "tell me the color of {x}.")).format(x=the)
    if kind == "shape":
        forms = ("what shape is {x}?", "which shape is {x}?", "what is the shape of {x}?")
        return pick(rng, (*forms, "tell me the shape of {x}.")).format(x=the)
    if kind == "where":
        forms = ("where is {x}?", "where is {x}?", "where do you see {x}?")
        return pick(rng, (*forms, "where in the picture is {x}?")).format(x=the)
    if kind == "told_apart":
        assert question.other is not None
        other = noun_phrase(rng, question.other, "the")
        apart = ("where is {x} as opposed to {y}?", "apart from {y}, where is {x}?")
        return pick(rng, (*apart, "on which side, not of {y}, is {x}?")).format(x=the, y=other)
    if kind == "relation":
        assert question.other is not None
        other = noun_phrase(rng, question.other, "the")
        sides = ("where is {x} relative to {y}?", "seen from {y}, where is {x}?")
        return pick(rng, (*sides, "on which side of {y} is {x}?")).format(x=the, y=other)
    return _claim_text(rng, question, the)


def _existence_text(rng: np.random.Generator, question: Question) -> str:
    subject = question.subject
    if question.claim == "count":
        things = noun_phrase(rng, subject, "number")
        verb = "is" if subject.count == 1 else "are"
        return pick(rng, (f"{verb} there exactly {things}?", f"do you see exactly {things}?"))
    thing = noun_phrase(rng, subject, "a")
    forms = ("is there {x}?", "is there {x} in the picture?", "do you see {x}?")
    return pick(rng, forms).format(x=thing)


def _claim_text(rng: np.random.Generator, question: Question, the: str) -> str:
    assert question.value is not None
    if question.claim == "relation":
        assert question.other is not None
        words = pick(rng, RELATION_WORDS[question.value])
        return f"is {the} {words} {noun_phrase(rng, question.other, 'the')}?"
    if question.claim == "shape":
        return f"is {the} {noun_phrase(rng, Wanted(shape=question.value), 'a')}?"
    return pick(rng, (f"is {the} {question.value}?", f"is the color of {the} {question.value}?"))
