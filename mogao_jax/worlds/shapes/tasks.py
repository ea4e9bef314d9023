"""The kinds of documents that the world yields: one generator per kind.

Each takes a generator of all randomness, a world and a category ("": any), and gives the document's
items, with images as pixels, and the truth about them. Users ask and show (never a loss),
assistants answer and draw; text and clips are plain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mogao_jax.sequence.document import Document, Image, Item, Text
from mogao_jax.worlds.shapes import captions, edits, facts, questions, statements, stories
from mogao_jax.worlds.shapes.placement import distinct_scene
from mogao_jax.worlds.shapes.render import render
from mogao_jax.worlds.shapes.rng import Rng, between, chance, pick
from mogao_jax.worlds.shapes.scene import DEFAULT_WORLD, Scene, World
from mogao_jax.worlds.shapes.truth import CATEGORIES, QUESTIONS, Truth

Made = tuple[Sequence[Item], Truth]


def _asks(text: str) -> Text:
    return Text(text, role="user", loss=False)


def _says(text: str) -> Text:
    return Text(text, role="assistant", loss=True)


def _shows(scene: Scene) -> Image:
    return Image(pixels=render(scene), role="user", loss=False)


def _draws(scene: Scene) -> Image:
    return Image(pixels=render(scene), role="assistant", loss=True)


def text(rng: Rng, world: World, category: str) -> Made:
    """Text only: one to three exchanges of facts, as plain text or as a chat."""
    made = [facts.exchange(rng, world) for _ in range(between(rng, 1, 3))]
    truth = Truth("text", made[0][0])
    pairs = [pair for _, pair in made]
    if chance(rng, 0.5):
        chat: list[Item] = []
        for said, answer in pairs:
            chat += [_asks(said), _says(answer)]
        return chat, truth
    return [Text(" ".join(f"{said} {answer}" for said, answer in pairs))], truth


def qa(rng: Rng, world: World, category: str) -> Made:
    """An image and a question -> the answer; six kinds of question, each as likely."""
    question, scene = questions.question_and_scene(rng, world, category)
    asked = questions.question_text(rng, question)
    truth = Truth("qa", question.kind, (scene,), question=question)
    return [_shows(scene), _asks(asked), _says(question.answer)], truth


def t2i(rng: Rng, world: World, category: str) -> Made:
    """A caption -> the image; GenEval's six categories, each as likely."""
    request, scene = captions.request_and_scene(rng, world, category)
    truth = Truth("t2i", request.category, (scene,), request=request)
    return [_asks(captions.caption(rng, request)), _draws(scene)], truth


def edit(rng: Rng, world: World, category: str) -> Made:
    """An image and an instruction -> the changed image; untouched objects stay exactly."""
    kind = pick(rng, edits.EDITS)
    change = None
    while change is None:
        count = between(rng, 2 if kind == "remove" else 1, min(4, world.max_count))
        before = distinct_scene(rng, count, world)
        change = edits.random_edit(rng, before, world, kind)
    after = edits.apply(before, change)
    words = edits.order(rng, before, change)
    instruction = pick(rng, ("{}", "{}.", "{}.", "please {}.", "now {}.")).format(words)
    truth = Truth("edit", kind, (before, after), edits=(change,))
    return [_shows(before), _asks(instruction), _draws(after)], truth


def story(rng: Rng, world: World, category: str) -> Made:
    """A request -> two to four images, a sentence before each, and a closing text."""
    told = stories.random_story(rng, world)
    items: list[Item] = [_asks(told.request)]
    for sentence, scene in zip(told.sentences, told.scenes, strict=True):
        items += [_says(sentence), _draws(scene)]
    kind = "planned" if told.planned else "free"
    truth = Truth("story", kind, told.scenes, edits=told.edits, planned=told.planned)
    return [*items, _says(told.closing)], truth


def clip(rng: Rng, world: World, category: str) -> Made:
    """Two to four frames of a moving object, a caption before each; plain."""
    texts, scenes, motion = stories.random_clip(rng, world)
    items: list[Item] = []
    for words, scene in zip(texts, scenes, strict=True):
        items += [Text(words), Image(pixels=render(scene))]
    return items, Truth("clip", motion.direction, scenes, motion=motion)


def describe(rng: Rng, world: World, category: str) -> Made:
    """An image -> everything that it shows, in words."""
    scene = statements.any_scene(rng, world)
    asked = pick(rng, statements.DESCRIBE_REQUESTS)
    items: list[Item] = [_shows(scene), _asks(asked), _says(statements.description(scene))]
    return items, Truth("describe", str(len(scene.objects)), (scene,))


def state(rng: Rng, world: World, category: str) -> Made:
    """An image -> several true statements about it, of one kind or of all."""
    asked = pick(rng, statements.STATE_REQUESTS)
    said, scene = statements.statements_and_scene(rng, world, category)
    return [_shows(scene), _asks(asked), _says(said)], Truth("state", category or "mixed", (scene,))


def quiz(rng: Rng, world: World, category: str) -> Made:
    """An image and several questions in turn, each answered; of one kind or of all."""
    asked, scene = questions.quiz_and_scene(rng, world, category)
    items: list[Item] = [_shows(scene)]
    for question in asked:
        items += [_asks(questions.question_text(rng, question)), _says(question.answer)]
    return items, Truth("quiz", category or "mixed", (scene,))


TASKS: dict[str, Callable[[Rng, World, str], Made]] = {
    f.__name__: f for f in (text, qa, t2i, edit, story, clip, describe, state, quiz)
}


def make_document(
    task: str, rng: Rng, world: World = DEFAULT_WORLD, category: str = "", id: str = ""
) -> tuple[Document, Truth]:
    """A document of a task (of TASKS), of any category or of one, and the truth about it."""
    items, truth = TASKS[task](rng, world, category)
    return Document(tuple(items), id=id), truth


# What a source of one task may be narrowed to.
TASK_CATEGORIES: dict[str, tuple[str, ...]] = {
    "qa": QUESTIONS,
    "t2i": CATEGORIES,
    "state": statements.STATEMENTS,
    "quiz": questions.QUIZZES,
}
