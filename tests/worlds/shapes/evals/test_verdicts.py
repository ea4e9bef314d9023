"""What counts as right: requests, changes, motion; one case for each rule."""

from __future__ import annotations

import dataclasses

import pytest

from mogao_jax.worlds.shapes.evals.scorers import verdicts
from mogao_jax.worlds.shapes.evals.scorers.reader import Reading
from mogao_jax.worlds.shapes.scene import DEFAULT_WORLD, Object, Scene
from mogao_jax.worlds.shapes.truth import Edit, Motion, Request, Wanted

WORLD = DEFAULT_WORLD


def small(shape, color, cx, cy):
    return Object(shape, color, "small", 14, cx, cy)


RED, BLUE = small("circle", "red", 16, 32), small("square", "blue", 48, 32)
SCENE = Scene(64, 64, "white", (RED, BLUE))


def scene(*objects, background="white"):
    return Scene(64, 64, background, objects)


def at(obj, cx, cy):
    return dataclasses.replace(obj, cx=cx, cy=cy)


def change(after, edit, problems=()):
    return verdicts.judge_change(SCENE, Reading(after, problems), edit, WORLD)


def test_requests_say_what_is_wrong():
    request = Request("position", (Wanted("circle"), Wanted("square")), "left of")
    assert verdicts.judge_request(Reading(SCENE), request).right
    mirrored = scene(at(RED, 48, 32), at(BLUE, 16, 32))
    verdict = verdicts.judge_request(Reading(mirrored), request)
    assert not verdict.right
    assert verdict.reason == "shows a small red circle and a small blue square on white"
    unclear = verdicts.judge_request(Reading(SCENE, ("a blot",)), request)
    assert not unclear.right and unclear.reason == "a blot"


def test_openings():
    assert verdicts.judge_opening(Reading(scene(RED)), Wanted("circle", "red")).right
    assert not verdicts.judge_opening(Reading(scene(RED)), Wanted("circle", "blue")).right
    assert not verdicts.judge_opening(Reading(SCENE), Wanted("circle", "red")).right
    assert not verdicts.judge_opening(Reading(scene(RED), ("x",)), Wanted("circle", "red")).right


GREEN = dataclasses.replace(RED, color="green")
RECOLOR = Edit("recolor", target=RED, new=GREEN)
STAR = small("star", "cyan", 32, 12)
ADD = Edit("add", asked=Wanted("star", "cyan"))


@pytest.mark.parametrize(
    ("edit", "after"),
    [
        (RECOLOR, scene(GREEN, BLUE)),
        (RECOLOR, scene(at(GREEN, 18, 30), at(BLUE, 50, 33))),  # a little off is fine
        (ADD, scene(RED, BLUE, STAR)),
        (ADD, scene(RED, BLUE, at(STAR, 50, 12))),
        (dataclasses.replace(ADD, region="top"), scene(RED, BLUE, STAR)),
        (dataclasses.replace(ADD, relation="above", anchor=BLUE), scene(RED, BLUE, STAR)),
        (Edit("remove", target=BLUE), scene(RED)),
        (Edit("move", target=RED, region="top left"), scene(at(RED, 12, 12), BLUE)),
        (Edit("move", target=RED, relation="right of", anchor=BLUE), scene(at(RED, 60, 32),
                                                                           at(BLUE, 45, 32))),
        (Edit("replace", target=RED, asked=Wanted("ring")), scene(
            dataclasses.replace(RED, shape="ring"), BLUE)),
        (Edit("replace", target=RED, asked=Wanted("ring", "cyan")), scene(
            dataclasses.replace(RED, shape="ring", color="cyan"), BLUE)),
        (Edit("background", background="mint"), scene(RED, BLUE, background="mint")),
    ],
)  # fmt: skip
def test_right_changes(edit, after):
    found = change(after, edit)
    assert found.done and found.kept and found.right and not found.repeated and found.reason == ""
    assert found.kept_objects == found.num_objects


@pytest.mark.parametrize(
    ("edit", "after", "reason"),
    [
        (RECOLOR, SCENE, "the red circle has not changed"),
        (RECOLOR, scene(BLUE), "the red circle is gone"),
        (RECOLOR, scene(dataclasses.replace(RED, color="cyan"), BLUE), "became a small cyan"),
        (RECOLOR, scene(at(GREEN, 26, 32), BLUE), "the green circle is elsewhere"),
        (RECOLOR, scene(GREEN, BLUE, STAR), "new are"),
        (RECOLOR, scene(dataclasses.replace(GREEN, size="large", diameter=22), BLUE), "large"),
        (ADD, SCENE, "nothing is new"),
        (ADD, scene(RED, BLUE, dataclasses.replace(STAR, color="red")), "new is a small red star"),
        (dataclasses.replace(ADD, region="bottom"), scene(RED, BLUE, STAR), "wrong place"),
        (dataclasses.replace(ADD, relation="below", anchor=BLUE), scene(RED, BLUE, STAR), "wrong"),
        (Edit("remove", target=BLUE), SCENE, "the blue square is there"),
        (Edit("remove", target=BLUE), scene(RED, STAR), "there is also a small cyan star"),
        (Edit("move", target=RED, region="top left"), SCENE, "wrong place"),
        (Edit("replace", target=RED, asked=Wanted("ring")), SCENE, "has not changed"),
        (Edit("replace", target=RED, asked=Wanted("ring")), scene(
            dataclasses.replace(RED, shape="ring", color="cyan"), BLUE), "cyan ring"),
        (Edit("background", background="mint"), SCENE, "the background is white"),
        (Edit("background", background="mint"), scene(RED, BLUE, STAR, background="mint"), "also"),
    ],
)  # fmt: skip
def test_changes_not_done(edit, after, reason):
    found = change(after, edit)
    assert not found.done and reason in found.reason
    assert found.kept
    assert found.repeated == (after == SCENE)


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        (scene(GREEN, at(BLUE, 48, 24)), "the blue square is elsewhere"),
        (scene(GREEN, dataclasses.replace(BLUE, size="large", diameter=22)), "another size"),
        (scene(GREEN, BLUE, background="gray"), "the background is another"),
        (dataclasses.replace(scene(GREEN, BLUE), width=80), "the canvas is another"),
    ],
)
def test_untouched_things_must_stay(after, reason):
    found = change(after, RECOLOR)
    assert found.done and not found.kept and reason in found.reason and not found.right


def test_a_lost_or_repainted_object_is_neither_done_nor_kept_alone():
    lost = change(scene(GREEN), RECOLOR)
    assert lost.done and not lost.kept and (lost.kept_objects, lost.num_objects) == (0, 1)
    repainted = change(scene(GREEN, dataclasses.replace(BLUE, color="black")), RECOLOR)
    assert not repainted.done and not repainted.kept


@pytest.mark.parametrize(
    "edit", [Edit("remove", target=BLUE), Edit("background", background="mint")]
)
def test_an_empty_image_is_no_edit(edit):
    found = change(scene(background=edit.background or "white"), edit)
    assert not found.done and not found.kept and "all objects are gone" in found.reason


def test_unclear_images_are_not_done():
    found = change(scene(GREEN, BLUE), RECOLOR, ("a blot",))
    assert not found.done and found.kept and found.reason == "a blot" and not found.repeated


def test_moves_must_move_unless_the_place_was_right_or_is_now_beyond_doubt():
    edit = Edit("move", target=RED, region="left")
    assert change(SCENE, edit).done  # was there beyond doubt
    unclear = at(RED, 20, 32)  # within the left third, but not well within
    before = scene(unclear, BLUE)
    edit = Edit("move", target=unclear, region="left")
    assert not verdicts.judge_change(before, Reading(before), edit, WORLD).done
    moved = scene(at(RED, 18, 32), BLUE)
    assert verdicts.judge_change(before, Reading(moved), edit, WORLD).done


def test_a_moved_anchor_counts_where_it_is_now():
    edit = dataclasses.replace(ADD, relation="left of", anchor=BLUE)
    after = scene(RED, at(BLUE, 30, 50), at(STAR, 40, 52))
    found = change(after, edit)
    assert not found.done and not found.kept


def test_motion():
    motion = Motion("right", "slow", 4, 0)

    def judge(*objects):
        return verdicts.judge_motion(SCENE, Reading(scene(*objects)), motion, RED, WORLD)

    assert judge(at(RED, 20, 32), BLUE).right
    assert judge(at(RED, 18, 33), BLUE).right
    assert not judge(RED, BLUE).done and judge(RED, BLUE).repeated
    assert not judge(at(RED, 12, 32), BLUE).done
    assert not judge(at(RED, 20, 42), BLUE).done
    assert judge(at(RED, 20, 32), at(BLUE, 52, 32)).kept is False
    assert not judge(BLUE).done


def test_same_scene():
    assert verdicts.same_scene(SCENE, scene(BLUE, at(RED, 17, 31)), WORLD)
    assert not verdicts.same_scene(SCENE, scene(BLUE, at(RED, 22, 31)), WORLD)
    assert not verdicts.same_scene(SCENE, scene(RED, BLUE, STAR), WORLD)
    assert not verdicts.same_scene(SCENE, scene(RED, BLUE, background="mint"), WORLD)
    assert not verdicts.same_scene(SCENE, scene(GREEN, BLUE), WORLD)


def test_thirds():
    found = [[verdicts.third(at(RED, x, y), SCENE) for x in (21, 22, 43)] for y in (21, 22, 43)]
    assert found == [
        ["top left", "top", "top right"],
        ["left", "center", "right"],
        ["bottom left", "bottom", "bottom right"],
    ]
    assert verdicts.third(at(RED, 64, -3), SCENE) == "top right"
