"""How long a document may be: counted as training lays it out, and with a limit of each kind."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tiny_system as tiny

from mogao_jax.config.schema import ImageConfig
from mogao_jax.errors import DocumentError, RequestError
from mogao_jax.sampling import requests
from mogao_jax.sequence.batch import sizes
from mogao_jax.sequence.document import Document, Image, Text
from mogao_jax.sequence.elements import apply_chat_template
from mogao_jax.sequence.packing import budgets, exceeds

IMAGES = ImageConfig(max_pixels=64 * 64, max_side=80)
CONFIG = dataclasses.replace(tiny.CONFIG, images=IMAGES)
WITHOUT_VIT = tiny.config(layout={"understanding_encoder": "vae"})


def an_image(height, width, **fields):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image(pixels=pixels, **fields)


def count(document, config):
    elements = apply_chat_template(document, tiny.TOKENIZER, add_generation_prompt=True)
    return requests.count_tokens(document, elements, config)


def check(document, config, max_length=None, *, limits=None, **options):
    limits = limits or requests.token_limits(config, max_length)
    requests.check_length(document.id, count(document, config), config, limits, **options)


def test_length_is_that_of_the_layout():
    """The und tokens of a prompt are those that training lays out for the document."""
    for height, width in ((32, 32), (64, 48)):
        document = Document(
            [an_image(height, width, role="user", loss=False), Text("what is it?", "user", False),
             Text("a cat", "assistant")],
            complete=False,
        )  # fmt: skip
        laid = tiny.lay(document, CONFIG)
        counted = count(document, CONFIG)
        assert counted == (len(laid.und.tokens), height * width // 256)


def test_prompts_longer_than_the_context():
    size = requests.token_limits(CONFIG).und
    assert size == CONFIG.packing.und_tokens
    check(Document([Text("x" * (size - 1))], id="long"), CONFIG)
    too_long = Document([Text("x" * size)], id="long")
    with pytest.raises(DocumentError) as caught:
        check(too_long, CONFIG)
    asked = f"--max-length {size + 1}"
    for word in ("'long'", str(size), "Shorten", asked, f"max_length={size + 1}"):
        assert word in str(caught.value)
    check(too_long, CONFIG, size + 1)


@pytest.mark.parametrize("resize", ["native", "match_vae_grid"])
@pytest.mark.parametrize("side", [32, 48, 96])
def test_what_fits_a_row_of_the_training_data_fits(resize, side):
    """A question about many images: read by the ViT alone, they take no clean tokens there."""
    config = tiny.config(
        images={"max_pixels": 96 * 96, "max_side": 96, "vit_resize": resize},
        packing={"und_tokens": 400, "vit_patches": 1600, "images": 100},
    )
    question = [Text("how many?", "user", False), Text("3", "assistant")]

    def laid(number):
        images = [an_image(side, side, role="user", loss=False)] * number
        return Document([*images, *question]), tiny.lay(Document([*images, *question]), config)

    number = 1
    while exceeds(sizes(laid(number + 1)[1]), budgets(config.packing)) is None:
        number += 1
    document, row = laid(number)
    assert sizes(row).und > 300 and sizes(row).clean == 0
    check(dataclasses.replace(document, complete=False), config)


def test_images_have_a_limit_of_their_own():
    limits = requests.token_limits(WITHOUT_VIT)
    packing = WITHOUT_VIT.packing
    assert limits == (packing.und_tokens, packing.und_tokens)
    many = dataclasses.replace(packing, clean_tokens=300, noised_tokens=100)
    config = dataclasses.replace(WITHOUT_VIT, packing=many)
    limits = requests.token_limits(config)
    assert limits == (packing.und_tokens, 400)
    small = an_image(16, 16)  # a token and its two brackets
    check(Document([an_image(32, 48)] * 30), config)  # 180 of 112 und tokens
    with pytest.raises(DocumentError, match="408 tokens of images.*holds 400") as caught:
        check(Document([an_image(32, 96)] * 34, id="long"), config)
    needed = int(str(caught.value).split("--max-length ")[1].split(",")[0])
    check(Document([an_image(32, 96)] * 34), config, needed)
    with pytest.raises(DocumentError, match=r"needs 1\d\d tokens,"):
        check(Document([small] * 60), config)


def test_only_what_is_read_counts():
    """With a ViT, clean tokens are for images that are drawn later."""
    document = Document([an_image(96, 96)])
    limits = requests.Limits(100, 35)
    config = tiny.config(images={"max_pixels": 96 * 96, "max_side": 96, "vit_resize": "native"})
    check(document, config, limits=limits, may_draw=False)
    with pytest.raises(DocumentError, match="36 tokens of images"):
        check(document, config, limits=limits, may_draw=True)
    with pytest.raises(DocumentError, match="36 tokens of images"):
        check(document, WITHOUT_VIT, limits=limits, may_draw=False)


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "long", 2**40])
def test_impossible_contexts(value):
    with pytest.raises(RequestError, match="max_length"):
        requests.token_limits(CONFIG, value)
