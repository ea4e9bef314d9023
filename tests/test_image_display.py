"""What images and results look like to those who hold them: files, Pillow, notebooks, one line."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image
import pytest

from mogao_jax.errors import DocumentError, EnvironmentProblem
from mogao_jax.images import Image
from mogao_jax.sampling.requests import Result
from mogao_jax.sequence.document import Document, Text

PIXELS = np.random.default_rng(0).integers(0, 255, (32, 48, 3), np.uint8)


def test_an_image_is_saved_as_it_is(tmp_path):
    image = Image(pixels=PIXELS)
    np.testing.assert_array_equal(np.asarray(image.to_pil()), PIXELS)
    image.save(tmp_path / "new" / "image.PNG")
    with PIL.Image.open(tmp_path / "new" / "image.PNG") as saved:
        np.testing.assert_array_equal(np.asarray(saved), PIXELS)
    image.save(tmp_path / "image.jpg")
    with PIL.Image.open(tmp_path / "image.jpg") as saved:
        assert (saved.format, saved.size) == ("JPEG", (48, 32))


@pytest.mark.parametrize("name", ["image", "image.eps", "image.txt"])
def test_files_that_are_no_images_are_not_written(tmp_path, name):
    with pytest.raises(DocumentError, match="name a file such as image.png"):
        Image(pixels=PIXELS).save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem):
        Image(pixels=PIXELS).save(tmp_path / "file" / "image.png")


def test_a_notebook_shows_small_images_enlarged():
    shown = PIL.Image.open(io.BytesIO(Image(pixels=PIXELS)._repr_png_()))
    assert shown.size == (4 * 48, 4 * 32)
    large = np.zeros((200, 300, 3), np.uint8)
    assert PIL.Image.open(io.BytesIO(Image(pixels=large)._repr_png_())).size == (300, 200)


def test_one_line(tmp_path):
    image = Image(pixels=PIXELS, role="assistant")
    assert repr(image) == "Image(32x48 pixels, role='assistant')"
    assert repr(Image(data=b"abc")) == "Image(3 bytes)"
    assert repr(Image(path=tmp_path / "a.png")) == f"Image('{tmp_path / 'a.png'}')"
    items = (Text("a <b>"), image, Text("done"))
    result = Result(items, "end", Document(items))
    assert repr(result) == (
        "Result('a <b>', Image(32x48 pixels, role='assistant'), 'done'; stop='end')"
    )
    assert result.text == "a <b>done" and result.images == [image]
    html = result._repr_html_()
    assert html.startswith("<p>a &lt;b&gt;</p><img src=") and html.endswith("<p>done</p>")
    long = (Text("word " * 1000),)
    assert len(repr(Result(long, "end", Document(long)))) < 200
