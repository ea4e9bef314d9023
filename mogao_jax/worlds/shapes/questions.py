"""Questions about an image, each with its one right answer: one at a time, or several in a quiz.

A question by itself is a thin signal: an image is read for one word. In a quiz it is read for four.

`told_apart` asks where one of two named things is, in the words in which `relation` asks for its
side of the other. A small model that is asked for relations from the start finds both things but
not which of them is meant. It answers with the right axis and a random side, and stays there,
because what it reads at both places cancels out. Where one of two things is gives a signal at once.

The quizzes `count` and `yes_no` are about what single questions are slow to teach: numbers of
things that a description picks out of others like them, and claims about numbers and sides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable

from mogao_jax.worlds.shapes.edits import place_again
from mogao_jax.worlds.shapes.language import NUMBERS, RELATION_WORDS, noun_phrase, refer
from mogao_jax.worlds.shapes.placement import (
    arrange,
    distinct_scene,
    random_kind,
    random_size,
    shrink_crowd,
)
from mogao_jax.worlds.shapes.rng import Rng, between, chance, pick, pick_other, sample
from mogao_jax.worlds.shapes.scene import RELATIONS, Kind, Object, Scene, World, region, relation
from mogao_jax.worlds.shapes.truth import QUESTIONS, Edit, Question, Wanted

SHORT = {"left of": "left", "right of": "right", "above": "above", "below": "below"}
MIXED = ("color", "shape", "count", "relation", "where", "told_apart")
QUIZZES = (*MIXED, "yes_no")
NUM_QUESTIONS = 4


# ------------------------------------------------------------------------------ questions of scenes


def _attribute(rng: Rng, scene: Scene, name: str) -> Question | None:
    """What colour or shape one of a scene's objects has; None if words cannot single it out."""
    obj = pick(rng, scene.objects)
    subject = refer(rng, scene, obj, without=name)
    return Question(name, subject, getattr(obj, name)) if subject else None


def _number(subject: Wanted, scene: Scene) -> Question:
    """How many of a scene's objects a description fits."""
    return Question("count", subject, NUMBERS[len(subject.among(scene))])


def _side(rng: Rng, scene: Scene, a: Object, b: Object) -> Question | None:
    """On which side of `b` `a` is; None if that is not clear or words cannot single them out."""
    held = relation(a, b)
    subject, other = refer(rng, scene, a), refer(rng, scene, b)
    if held is None or subject is None or other is None:
        return None
    return Question("relation", subject, SHORT[held], other=other)


def _place(rng: Rng, scene: Scene, obj: Object) -> Question | None:
    subject, place = refer(rng, scene, obj), region(obj, scene)
    return Question("where", subject, place) if subject and place else None


def _told_apart(rng: Rng, scene: Scene, a: Object, b: Object) -> Question | None:
    subject, other, place = refer(rng, scene, a), refer(rng, scene, b), region(a, scene)
    return Question("told_apart", subject, place, other) if subject and other and place else None


# ------------------------------------------------------------------------------------ yes/no claims


def _yes(yes: bool) -> str:
    return "yes" if yes else "no"


def _claim(rng: Rng, world: World, question: Question, yes: bool) -> Question:
    """Whether its answer is so (or, if not `yes`, another): of a color, shape or relation."""
    options = {"color": world.colors, "shape": world.shapes}.get(question.kind, RELATIONS)
    held = next(o for o in options if SHORT.get(o, o) == question.answer)
    value = held if yes else pick_other(rng, options, held)
    return dataclasses.replace(
        question, kind="yes_no", answer=_yes(yes), claim=question.kind, value=value
    )


def _number_claim(
    rng: Rng, world: World, subject: Wanted, scene: Scene, yes: bool
) -> Question | None:
    """Whether there are so many; None where that would be none."""
    count = len(subject.among(scene))
    if not yes:
        count = (count + between(rng, 1, world.max_count)) % (world.max_count + 1)
    counted = dataclasses.replace(subject, count=count)
    return Question("yes_no", counted, _yes(yes), claim="count") if count else None


def _existence_claim(rng: Rng, world: World, scene: Scene, yes: bool) -> Question | None:
    """Whether there is such a thing; None if words drawn for the one answer have the other."""
    kind = random_kind(rng, world)
    obj = pick(rng, scene.objects)
    shape, color = (obj.shape, obj.color) if yes else (kind.shape, kind.color)
    drop = pick(rng, ("shape", "color", "nothing", "nothing"))
    subject = Wanted(None if drop == "shape" else shape, None if drop == "color" else color)
    if bool(subject.among(scene)) != yes:
        return None
    return Question("yes_no", subject, _yes(yes), claim="exists")


# --------------------------------------------------------------------------------- single questions

_Asked = tuple[Question | None, Scene]


def question_and_scene(rng: Rng, world: World, kind: str | None = None) -> tuple[Question, Scene]:
    """A question of the kind (a random one if None) and the scene it is about."""
    kind = kind or pick(rng, QUESTIONS)
    while True:
        question, scene = _MAKERS[kind](rng, world)
        if question is not None:
            return question, scene


def _some_objects(rng: Rng, world: World, low: int, high: int) -> Scene:
    """Between `low` and `high` objects (or max_count), all of different kinds."""
    return distinct_scene(rng, between(rng, low, min(high, world.max_count)), world)


def _one_attribute(rng: Rng, world: World, name: str) -> _Asked:
    scene = _some_objects(rng, world, 1, 4)
    return _attribute(rng, scene, name), scene


def _counted_scene(rng: Rng, world: World) -> tuple[Wanted, Scene]:
    """A description and a scene in which every number of matches is about equally likely."""
    like = random_kind(rng, world)
    by_shape, by_color = Wanted(like.shape), Wanted(None, like.color)
    subject = pick(rng, (Wanted(), by_shape, by_shape, by_color, Wanted.of(like)))
    everything = subject == Wanted()
    matching = between(rng, int(everything), world.max_count)
    rest = 0 if everything else between(rng, int(matching == 0), world.max_count - matching)
    kinds: list[Kind] = []
    while len(kinds) < matching + rest:
        kind = random_kind(rng, world)
        match = Kind(subject.shape or kind.shape, subject.color or kind.color, kind.size)
        if len(kinds) < matching:
            kinds.append(match)
        elif match != kind:
            kinds.append(kind)
    return subject, arrange(rng, shrink_crowd(kinds), world)


def _count(rng: Rng, world: World) -> _Asked:
    subject, scene = _counted_scene(rng, world)
    return _number(subject, scene), scene


def _relation(rng: Rng, world: World) -> _Asked:
    scene = _some_objects(rng, world, 2, 3)
    return _side(rng, scene, *scene.objects[:2]), scene


def _where(rng: Rng, world: World) -> _Asked:
    scene = _some_objects(rng, world, 1, 3)
    first, rest = scene.objects[0], scene.without(scene.objects[0])
    # Put there on purpose: few objects lie in the center by chance.
    moved = place_again(rng, rest, world, first, Edit("move", target=first), "region")
    if moved is None or moved.new is None or moved.region is None:
        return None, scene
    scene = scene.replacing(first, moved.new)
    subject = refer(rng, scene, moved.new)
    return Question("where", subject, moved.region) if subject else None, scene


def _yes_no(rng: Rng, world: World) -> _Asked:
    claim = pick(rng, ("exists", "count", "color", "shape", "relation"))
    yes = chance(rng, 0.5)
    if claim == "count":
        subject, scene = _counted_scene(rng, world)
        return _number_claim(rng, world, subject, scene, yes), scene
    if claim == "exists":
        scene = _some_objects(rng, world, 1, 4)
        return _existence_claim(rng, world, scene, yes), scene
    question, scene = _MAKERS[claim](rng, world)
    return question and _claim(rng, world, question, yes), scene


_MAKERS: dict[str, Callable[[Rng, World], _Asked]] = {
    "color": lambda rng, world: _one_attribute(rng, world, "color"),
    "shape": lambda rng, world: _one_attribute(rng, world, "shape"),
    "count": _count,
    "relation": _relation,
    "where": _where,
    "yes_no": _yes_no,
}


# ------------------------------------------------------------------------------------------ quizzes


def quiz_and_scene(
    rng: Rng, world: World, kind: str | None = None
) -> tuple[tuple[Question, ...], Scene]:
    """One to NUM_QUESTIONS questions, all of the kind (of any of MIXED if None), and their scene.

    No two are of one kind about the same objects in the same roles; of relations, not in the other
    roles either: the answer would follow from the words alone.
    """
    while True:
        # What is counted is counted among things like it; the others are about single things.
        crowd = kind == "count" or (kind == "yes_no" and chance(rng, 0.5))
        scene = _crowd(rng, world) if crowd else _some_objects(rng, world, 2, 4)
        made: dict[Hashable, Question] = {}
        for _ in range(2 * NUM_QUESTIONS):
            about, question = _quiz_question(rng, world, scene, kind, crowd)
            if question is not None:
                made.setdefault(about, question)
            if len(made) == NUM_QUESTIONS:
                break
        if made:
            return tuple(made.values()), scene


_About = tuple[Hashable, Question | None]  # what it may not share with another of the quiz; itself


def _quiz_question(rng: Rng, world: World, scene: Scene, kind: str | None, crowd: bool) -> _About:
    if kind == "yes_no":
        return _claimed(rng, world, scene, crowd)
    if crowd:
        return _counted(_description(rng, world, scene), scene)
    return _about(rng, scene, kind or pick(rng, MIXED))


def _crowd(rng: Rng, world: World) -> Scene:
    """Things of two shapes and two colors; of each, every number is about equally likely."""
    shapes, colors = sample(rng, world.shapes, 2), sample(rng, world.colors, 2)
    of_shape, of_color = rng.random(), rng.random()
    kinds = [
        Kind(shapes[chance(rng, of_shape)], colors[chance(rng, of_color)], random_size(rng))
        for _ in range(between(rng, 2, world.max_count))
    ]
    return arrange(rng, shrink_crowd(kinds), world)


def _description(rng: Rng, world: World, scene: Scene) -> Wanted:
    """Words for some of a scene's things, or for none of them."""
    shape, color = pick(rng, scene.objects).shape, pick(rng, scene.objects).color
    if chance(rng, 0.1):
        shape = pick(rng, world.shapes)
    by_shape, by_color, by_both = Wanted(shape), Wanted(None, color), Wanted(shape, color)
    return pick(rng, (Wanted(), by_shape, by_shape, by_color, by_color, by_both))


def _counted(subject: Wanted, scene: Scene) -> _About:
    return ("count", subject), _number(subject, scene)


def _claimed(rng: Rng, world: World, scene: Scene, crowd: bool) -> _About:
    """A claim, as likely true as not."""
    yes = chance(rng, 0.5)
    claim = "count" if crowd else pick(rng, ("relation", "relation", "color", "exists"))
    if claim == "count":
        subject = _description(rng, world, scene)
        return (claim, subject), _number_claim(rng, world, subject, scene, yes)
    if claim == "exists":
        question = _existence_claim(rng, world, scene, yes)
        return (claim, question and question.subject), question
    about, asked = _about(rng, scene, claim)
    return about, asked and _claim(rng, world, asked, yes)


def _about(rng: Rng, scene: Scene, kind: str) -> _About:
    if kind == "relation":
        a, b = sample(rng, scene.objects, 2)
        return (kind, frozenset((a, b))), _side(rng, scene, a, b)
    if kind == "told_apart":
        a, b = sample(rng, scene.objects, 2)
        return (kind, a, b), _told_apart(rng, scene, a, b)
    obj = pick(rng, scene.objects)
    if kind == "count":
        shape, color = pick(rng, ((None, None), (obj.shape, None), (None, obj.color)))
        return _counted(Wanted(shape, color), scene)
    if kind == "where":
        return (kind, obj), _place(rng, scene, obj)
    question = _attribute(rng, scene, kind)
    return (kind, question and question.subject.among(scene)[0]), question


# -------------------------------------------------------------------------------------------- words

# {x}: the subject, {y}: the other object. Claims have words of their own.
_FORMS = {
    "count": (
        *("how many {x} are there?", "how many {x} do you see?", "how many {x}?"),
        "count the {x}.",
    ),
    "color": (
        *("what color is {x}?", "which color is {x}?", "what is the color of {x}?"),
        "tell me the color of {x}.",
    ),
    "shape": (
        *("what shape is {x}?", "which shape is {x}?", "what is the shape of {x}?"),
        "tell me the shape of {x}.",
    ),
    "where": (
        *("where is {x}?", "where is {x}?", "where do you see {x}?"),
        "where in the picture is {x}?",
    ),
    "told_apart": (
        *("where is {x} as opposed to {y}?", "apart from {y}, where is {x}?"),
        "on which side, not of {y}, is {x}?",
    ),
    "relation": (
        *("where is {x} relative to {y}?", "seen from {y}, where is {x}?"),
        "on which side of {y} is {x}?",
    ),
}


def question_text(rng: Rng, question: Question) -> str:
    """Words for a question; they determine it completely."""
    if question.kind == "yes_no":
        return _claim_text(rng, question)
    x = noun_phrase(rng, question.subject, "plural" if question.kind == "count" else "the")
    y = question.other and noun_phrase(rng, question.other, "the")
    return pick(rng, _FORMS[question.kind]).format(x=x, y=y)


def _claim_text(rng: Rng, question: Question) -> str:
    subject = question.subject
    if question.claim == "count":
        things = noun_phrase(rng, subject, "number")
        verb = "is" if subject.count == 1 else "are"
        return pick(rng, (f"{verb} there exactly {things}?", f"do you see exactly {things}?"))
    if question.claim == "exists":
        forms = ("is there {x}?", "is there {x} in the picture?", "do you see {x}?")
        thing = noun_phrase(rng, subject, "a")
        return pick(rng, forms).format(x=thing)
    assert question.value is not None
    the = noun_phrase(rng, subject, "the")
    if question.claim == "relation":
        assert question.other is not None
        words = pick(rng, RELATION_WORDS[question.value])
        return f"is {the} {words} {noun_phrase(rng, question.other, 'the')}?"
    if question.claim == "shape":
        return f"is {the} {noun_phrase(rng, Wanted(shape=question.value), 'a')}?"
    return pick(rng, (f"is {the} {question.value}?", f"is the color of {the} {question.value}?"))
