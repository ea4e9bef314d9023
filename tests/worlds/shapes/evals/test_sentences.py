"""Sentences of stories read back, against the truth they were made from."""

from __future__ import annotations

import dataclasses

import pytest

from mogao_jax.sequence.document import Text
from mogao_jax.worlds.shapes.evals.scorers import sentences
from mogao_jax.worlds.shapes.scene import Object, Scene
from mogao_jax.worlds.shapes.truth import Edit, Wanted
from mogao_jax.worlds.shapes.world import ShapesSource


def stories(number):
    source = ShapesSource("story", split="validation")
    for index in range(number):
        document, truth = source.with_truth(index)
        yield [i.text for i in document.items if isinstance(i, Text)], truth


def test_all_sentences_of_the_world_are_understood():
    kinds = set()
    for texts, truth in stories(300):
        first = truth.scenes[0].objects[0]
        wanted = sentences.opening(texts[1])
        assert wanted == Wanted(first.shape, first.color)
        for text, edit, scene in zip(texts[2:], truth.edits, truth.scenes, strict=False):
            claim = sentences.change(text)
            assert claim is not None, text
            assert sentences.tells(claim, edit, scene), text
            assert sentences.opening(text) is None or edit.kind == "add"
            kinds.add(edit.kind)
        assert sentences.change(texts[-1]) is None and sentences.opening(texts[-1]) is None
    assert len(kinds) == 6


def test_a_sentence_does_not_tell_another_change():
    for texts, truth in stories(60):
        for text, edit, scene in zip(texts[2:], truth.edits, truth.scenes, strict=False):
            claim = sentences.change(text)
            others = [
                dataclasses.replace(edit, kind="remove" if edit.kind != "remove" else "add"),
                dataclasses.replace(edit, region="left" if edit.region != "left" else "top"),
                dataclasses.replace(edit, asked=Wanted("ring", "black", "large")),
                dataclasses.replace(edit, background="a"),
            ]
            if edit.kind == "recolor":
                new = dataclasses.replace(edit.new, color="?")
                others.append(dataclasses.replace(edit, new=new))
            assert not any(sentences.tells(claim, other, scene) for other in others)


def test_requests_of_free_stories():
    for texts, truth in stories(200):
        if not truth.planned:
            count, about = sentences.asked_story(texts[0])
            first = truth.scenes[0].objects[0]
            assert count == len(truth.scenes)
            assert about in (None, Wanted(first.shape, first.color))
            assert (about is None) == (" a" not in texts[0].replace(" a story", ""))


@pytest.mark.parametrize(
    "text",
    ["", "the", "hello.", "the red circle", "a red circle turns blue.", "then the sky turns red.",
     "the circle turns mint.", "the background turns red.", "the circle moves.", "the circle moves"
     " to the top top.", "then then the circle is gone.", "the red circle is gone and more."],
)  # fmt: skip
def test_nonsense_is_not_understood(text):
    assert sentences.change(text) is None


A, B = Object("circle", "red", "small", 14, 20, 20), Object("circle", "blue", "large", 22, 50, 40)
SCENE = Scene(64, 64, "white", (A, B))


def test_resolving_names():
    def find(text):
        return sentences.resolve(sentences.change(text), SCENE)

    assert find("then the blue circle is gone.") == Edit("remove", target=B)
    assert find("The small circle  is gone") == Edit("remove", target=A)
    assert find("the circle is gone.") is None  # which?
    assert find("the star is gone.") is None  # none there
    assert find("now a ring appears above the star.") is None
    move = find("the red circle goes to the right of the blue shape.")
    assert (move.target, move.anchor, move.relation) == (A, B, "right of")
    assert find("the red circle moves below the red thing.") is None  # of itself
    assert find("the red thing becomes green.").new == dataclasses.replace(A, color="green")
    assert find("the red thing becomes a green cross.").asked == Wanted("cross", "green")
    assert find("there is a ring in the bottom left corner.").region == "bottom left"
    assert find("we see a ring in the middle.").region == "center"


def test_transfer_finds_objects_by_kind():
    there = Scene(48, 48, "gray", (dataclasses.replace(B, cx=15, size="small", diameter=14),))
    edit = Edit("recolor", target=B, new=dataclasses.replace(B, color="cyan"))
    moved = sentences.transfer(edit, there)
    assert moved.target is there.objects[0]
    assert moved.new == dataclasses.replace(there.objects[0], color="cyan")
    assert sentences.transfer(Edit("remove", target=A), there) is None
    assert sentences.transfer(Edit("add", asked=Wanted("ring"), anchor=A), there) is None
    assert sentences.transfer(Edit("background", background="mint"), there).background == "mint"


def test_the_world_never_asks_for_what_is_there():
    for texts, truth in stories(300):
        for text, _, scene in zip(texts[2:], truth.edits, truth.scenes, strict=False):
            edit = sentences.resolve(sentences.change(text), scene)
            assert not sentences.changes_nothing(edit, scene), text


@pytest.mark.parametrize(
    ("text", "nothing"),
    [
        ("the blue ring becomes a ring.", True),
        ("the ring turns into a blue ring.", True),
        ("the ring turns blue.", True),
        ("the background turns white.", True),
        ("the ring moves to the top left.", True),
        ("the ring goes left of the square.", True),
        ("the ring becomes a square.", False),
        ("the ring turns into a red ring.", False),
        ("the ring turns red.", False),
        ("the background turns mint.", False),
        ("the ring moves to the bottom left.", False),
        ("the ring goes below the square.", False),
        ("a blue ring appears.", False),
        ("the ring is gone.", False),
    ],
)
def test_sentences_that_change_nothing(text, nothing):
    ring = Object("ring", "blue", "small", 10, 8, 8)
    square = Object("square", "red", "small", 10, 40, 8)
    scene = Scene(48, 48, "white", (ring, square))
    edit = sentences.resolve(sentences.change(text), scene)
    assert sentences.changes_nothing(edit, scene) == nothing
