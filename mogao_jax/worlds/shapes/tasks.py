"""The kinds of documents that the world yields: one generator per kind.

Each takes a Generator (all randomness), a world and the document's id, and gives the document
with pictures as pixels and the truth about it; qa, t2i, state and quiz also take a category. Users
ask and show (never a loss), assistants answer and draw; text and clips are plain.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mogao_jax.sequence.document import Document, Image, Item, Text
from mogao_jax.worlds.shapes import (
    captions,
    descriptions,
    edits,
    facts,
    questions,
    quizzes,
    statements,
    stories,
)
from mogao_jax.worlds.shapes.placement import arrange, distinct_kinds, shrink_crowd
from mogao_jax.worlds.shapes.render import render
from mogao_jax.worlds.shapes.rng import between, chance, pick
from mogao_jax.worlds.shapes.scene import DEFAULT_WORLD, Scene, World
from mogao_jax.worlds.shapes.truth import CATEGORIES, QUESTIONS, Truth

TaskGenerator = Callable[..., tuple[Document, Truth]]


def _asks(text: str) -> Text:
    return Text(text, role="user", loss=False)


def _says(text: str) -> Text:
    return Text(text, role="assistant", loss=True)


def _shows(scene: Scene) -> Image:
    return Image(pixels=render(scene), role="user", loss=False)


def _draws(scene: Scene) -> Image:
    return Image(pixels=render(scene), role="assistant", loss=True)


def _answered(scene: Scene, asked: str, said: str) -> tuple[Item, ...]:
    return (_shows(scene), _asks(asked), _says(said))


def text(
    rng: np.random.Generator, world: World = DEFAULT_WORLD, id: str = ""
) -> tuple[Document, Truth]:
    """Text only: one to three exchanges of facts, as plain text or as a chat."""
    items: list[Item] = []
    kinds = []
    pairs = []
    for _ in range(between(rng, 1, 3)):
        kind, pair = facts.exchange(rng, world=world)
        kinds.append(kind)
        pairs.append(pair)
    if chance(rng, 0.5):
        for said, answer in pairs:
            items += [_asks(said), _says(answer)]
    else:
        items = [Text(" ".join(f"{said} {answer}" for said, answer in pairs))]
    return Document(tuple(items), id=id), Truth("text", kinds[0])


def qa(
    rng: np.random.Generator,
    world: World = DEFAULT_WORLD,
    id: str = "",
    category: str | None = None,
) -> tuple[Document, Truth]:
    """A picture and a question -> the answer; six kinds of question, each as likely."""
    question, scene = questions.question_and_scene(rng, world, category)
    items = _answered(scene, questions.question_text(rng, question), question.answer)
    return Document(items, id=id), Truth("qa", question.kind, (scene,), question=question)


def t2i(
    rng: np.random.Generator,
    world: World = DEFAULT_WORLD,
    id: str = "",
    category: str | None = None,
) -> tuple[Document, Truth]:
    """A caption -> the picture; GenEval's six categories, each as likely."""
    request, scene = captions.request_and_scene(rng, world, category)
    items = (_asks(captions.caption(rng, request)), _draws(scene))
    return Document(items, id=id), Truth("t2i", request.category, (scene,), request=request)


def edit(
    rng: np.random.Generator, world: World = DEFAULT_WORLD, id: str = ""
) -> tuple[Document, Truth]:
    """A picture and an instruction -> the changed picture; untouched objects stay exactly."""
    kind = pick(rng, edits.EDITS)
    change = None
    while change is None:
        count = between(rng, 2 if kind == "remove" else 1, min(4, world.max_count))
        before = arrange(rng, shrink_crowd(distinct_kinds(rng, count, world)), world)
        change = edits.random_edit(rng, before, world, kind)
    after = edits.apply(before, change)
    words = edits.order(rng, before, change)
    instruction = pick(rng, ("{}", "{}.", "{}.", "please {}.", "now {}.")).format(words)
    items = (_shows(before), _asks(instruction), _draws(after))
    return Document(items, id=id), Truth("edit", kind, (before, after), edits=(change,))


def story(
    rng: np.random.Generator, world: World = DEFAULT_WORLD, id: str = ""
) -> tuple[Document, Truth]:
    """A request -> two to four pictures, a sentence before each, and a closing text."""
    told = stories.random_story(rng, world)
    items: list[Item] = [_asks(told.request)]
    for sentence, scene in zip(told.sentences, told.scenes, strict=True):
        items += [_says(sentence), _draws(scene)]
    items.append(_says(told.closing))
    category = "planned" if told.planned else "free"
    truth = Truth("story", category, told.scenes, edits=told.edits, planned=told.planned)
    return Document(tuple(items), id=id), truth


def clip(
    rng: np.random.Generator, world: World = DEFAULT_WORLD, id: str = ""
) -> tuple[Document, Truth]:
    """Two to four frames of a moving object, a caption before each; plain."""
    texts, scenes, motion = stories.random_clip(rng, world)
    items: list[Item] = []
    for words, scene in zip(texts, scenes, strict=True):
        items += [Text(words), Image(pixels=render(scene))]
    return Document(tuple(items), id=id), Truth("clip", motion.direction, scenes, motion=motion)


def describe(
    rng: np.random.Generator, world: World = DEFAULT_WORLD, id: str = ""
) -> tuple[Document, Truth]:
    """A picture -> everything that it shows, in words."""
    scene = descriptions.any_scene(rng, world)
    asked = pick(rng, descriptions.REQUESTS)
    items = _answered(scene, asked, descriptions.description(scene))
    return Document(items, id=id), Truth("describe", str(len(scene.objects)), (scene,))


def state(
    rng: np.random.Generator,
    world: World = DEFAULT_WORLD,
    id: str = "",
    category: str | None = None,
) -> tuple[Document, Truth]:
    """A picture -> several true statements about it, of one kind or of all."""
    asked = pick(rng, statements.REQUESTS)
    said, scene = statements.statements_and_scene(rng, world, category)
    return Document(_answered(scene, asked, said), id=id), Truth(
        "state", category or "mixed", (scene,)
    )


def quiz(
    rng: np.random.Generator,
    world: World = DEFAULT_WORLD,
    id: str = "",
    category: str | None = None,
) -> tuple[Document, Truth]:
    """A picture and several questions in turn, each answered; of one kind or of all."""
    asked, scene = quizzes.questions_and_scene(rng, world, category)
    items: list[Item] = [_shows(scene)]
    for question in asked:
        items += [_asks(questions.question_text(rng, question)), _says(question.answer)]
    return Document(tuple(items), id=id), Truth("quiz", category or "mixed", (scene,))


TASKS: dict[str, TaskGenerator] = {
    "text": text,
    "qa": qa,
    "t2i": t2i,
    "edit": edit,
    "story": story,
    "clip": clip,
    "describe": describe,
    "state": state,
    "quiz": quiz,
}

# What a source of one task may be narrowed to.
TASK_CATEGORIES: dict[str, tuple[str, ...]] = {
    "qa": QUESTIONS,
    "t2i": CATEGORIES,
    "state": statements.STATEMENTS,
    "quiz": quizzes.KINDS,
}
