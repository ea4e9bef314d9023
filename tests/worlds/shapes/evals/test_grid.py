"""The image grids and what is saved."""

from __future__ import annotations

import json
import re

import numpy as np
import PIL.Image
import pytest
from shapes_oracles import Oracle, Repeating, Silent

from mogao_jax.errors import EnvironmentProblem
from mogao_jax.evals import cards
from mogao_jax.evals.cards import Card, CardImage
from mogao_jax.sequence.document import Image
from mogao_jax.worlds.shapes.evals.benchmark import Benchmark, run
from mogao_jax.worlds.shapes.evals.saving import PNG_PER_CATEGORY, card, page, save, sections
from mogao_jax.worlds.shapes.evals.scores import TITLES, read


@pytest.fixture(scope="module")
def found():
    return run(Repeating(), Benchmark(per_category=2, with_chance=False), name="a <b>model</b>")


def test_cards_show_what_happened(found):
    edit = found.outcomes["edit"][0]
    made = card(edit)
    assert made.prompt == edit.case.prompt.items[1].text and not made.right and made.reason
    assert [p.right for p in made.images] == [None, False]
    story = found.outcomes["story"][0]
    made = card(story)
    assert len(made.images) == len(story.case.truth.scenes)
    assert made.images[0].right and not made.images[1].right
    assert made.images[0].words == story.items[0].text and made.answer == story.items[-1].text
    question = card(found.outcomes["qa"][0])
    assert question.right and question.answer and question.images[0].right is None


def test_sections_follow_tasks_and_limits(found):
    made = sections(found.outcomes, {"t2i": 1, "edit": 2, "story": 5})
    titles = [s.title.split(":")[0] for s in made]
    assert list(dict.fromkeys(titles)) == [TITLES[t] for t in ("t2i", "edit", "story")]
    assert [len(s.cards) for s in made] == [1] * 6 + [2] * 6 + [2] * 2


def test_nothing_drawn_is_shown_too():
    made = run(Silent(), Benchmark(("t2i", "story"), 1, with_chance=False))
    for judged in (*made.outcomes["t2i"], *made.outcomes["story"]):
        shown = card(judged)
        assert shown.images == () and "drawn" in shown.reason
    assert cards.png("t", sections(made.outcomes, PNG_PER_CATEGORY)).height > 100


def test_png_holds_the_images_in_frames_of_their_verdict():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 32, 3), np.uint8)
    shown = cards.card_image(
        Card("a prompt", (CardImage(pixels, "words", True),), "", False, "why")
    )
    values = np.asarray(shown).astype(int)
    green = (values == cards.RIGHT).all(-1)
    y, x = np.argwhere(green)[0]
    inner = values[y + 3 : y + 3 + 128, x + 3 : x + 3 + 64]
    np.testing.assert_array_equal(inner, pixels.repeat(2, 0).repeat(2, 1))
    assert (values == cards.WRONG).all(-1).any()  # the words of the verdict


def test_long_texts_and_large_images_fit():
    large = np.zeros((300, 200, 3), np.uint8)
    shown = cards.card_image(Card("word " * 200, (CardImage(large),) * 3, "é ☃ " * 50, True, ""))
    assert shown.width < 600 and shown.height < 600


def test_saved_files(found, tmp_path):
    files = save(found, tmp_path / "new", suffix="_x")
    assert [f.name for f in files] == ["scores_x.json", "grid_x.png", "grid_x.html"]
    assert json.loads(files[0].read_text())["grid"] == "grid_x.png"
    assert read(files[0]).rows == found.rows
    with PIL.Image.open(files[1]) as image:
        assert image.format == "PNG" and image.width == 1280
    shown = files[2].read_text()
    assert "<b>model" not in shown and "&lt;b&gt;model" in shown
    assert not re.search(r"(src|href)=['\"](?!data:)", shown) and "<script" not in shown
    drawn = sum(isinstance(i, Image) for j in found.outcomes["t2i"] for i in j.items)
    assert shown.count("<img") >= drawn > 10


def test_unwritable_folder(found, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match="cannot be written"):
        save(found, tmp_path / "file" / "sub")


def test_the_oracle_is_green():
    made = run(Oracle(), Benchmark(("t2i",), 1, with_chance=False))
    shown = page(made)
    assert "class='wrong'" not in shown and shown.count("class='right'") == 6
