"""The picture grids and what is saved."""

from __future__ import annotations

import json
import re

import numpy as np
import PIL.Image
import pytest
from shapes_oracles import Oracle, Repeating, Silent

from mogao_jax.errors import EnvironmentProblem
from mogao_jax.sequence.document import Image
from mogao_jax.worlds.shapes.evals import grid
from mogao_jax.worlds.shapes.evals.benchmark import run
from mogao_jax.worlds.shapes.evals.cards import Card, CardImage, card, sections
from mogao_jax.worlds.shapes.evals.saving import save
from mogao_jax.worlds.shapes.evals.scores import read


@pytest.fixture(scope="module")
def found():
    return run(Repeating(), per_category=2, with_chance=False, name="a <b>model</b>")


def test_cards_show_what_happened(found):
    edit = found.outcomes["edit"][0]
    made = card(edit)
    assert made.prompt == edit.case.prompt.items[1].text and not made.right and made.reason
    assert [p.right for p in made.pictures] == [None, False]
    story = found.outcomes["story"][0]
    made = card(story)
    assert len(made.pictures) == len(story.case.truth.scenes)
    assert made.pictures[0].right and not made.pictures[1].right
    assert made.pictures[0].words == story.items[0].text and made.answer == story.items[-1].text
    question = card(found.outcomes["qa"][0])
    assert question.right and question.answer and question.pictures[0].right is None


def test_sections_follow_tasks_and_limits(found):
    made = sections(found.outcomes, {"t2i": 1, "edit": 2, "story": 5})
    tasks = [s.task for s in made]
    assert tasks == sorted(tasks, key=["t2i", "edit", "story"].index)
    assert [len(s.cards) for s in made] == [1] * 6 + [2] * 6 + [2] * 2


def test_nothing_drawn_is_shown_too():
    made = run(Silent(), tasks=("t2i", "story"), per_category=1, with_chance=False)
    for judged in (*made.outcomes["t2i"], *made.outcomes["story"]):
        shown = card(judged)
        assert shown.pictures == () and "drawn" in shown.reason
    assert grid.png("t", sections(made.outcomes, grid.PNG_PER_CATEGORY)).height > 100


def test_png_holds_the_pictures_in_frames_of_their_verdict():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 32, 3), np.uint8)
    picture = grid._card(Card("a prompt", (CardImage(pixels, "words", True),), "", False, "why"))
    values = np.asarray(picture).astype(int)
    green = (values == grid._RIGHT).all(-1)
    y, x = np.argwhere(green)[0]
    inner = values[y + 3 : y + 3 + 128, x + 3 : x + 3 + 64]
    np.testing.assert_array_equal(inner, pixels.repeat(2, 0).repeat(2, 1))
    assert (values == grid._WRONG).all(-1).any()  # the words of the verdict


def test_long_texts_and_large_pictures_fit():
    large = np.zeros((300, 200, 3), np.uint8)
    picture = grid._card(Card("word " * 200, (CardImage(large),) * 3, "é ☃ " * 50, True, ""))
    assert picture.width < 600 and picture.height < 600


def test_saved_files(found, tmp_path):
    files = save(found, tmp_path / "new", suffix="_x")
    assert [f.name for f in files] == ["scores_x.json", "grid_x.png", "grid_x.html"]
    assert json.loads(files[0].read_text())["grid"] == "grid_x.png"
    assert read(files[0]).rows == found.rows
    with PIL.Image.open(files[1]) as image:
        assert image.format == "PNG" and image.width == 1280
    page = files[2].read_text()
    assert "<b>model" not in page and "&lt;b&gt;model" in page
    assert not re.search(r"(src|href)=['\"](?!data:)", page) and "<script" not in page
    drawn = sum(isinstance(i, Image) for j in found.outcomes["t2i"] for i in j.items)
    assert page.count("<img") >= drawn > 10


def test_unwritable_folder(found, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match="cannot be written"):
        save(found, tmp_path / "file" / "sub")


def test_the_oracle_is_green():
    made = run(Oracle(), tasks=("t2i",), per_category=1, with_chance=False)
    page = grid.page(made, sections(made.outcomes, grid.HTML_PER_CATEGORY))
    assert "class='wrong'" not in page and page.count("class='right'") == 6
