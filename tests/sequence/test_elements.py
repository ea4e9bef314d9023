"""A document that is to be continued: turns opened and closed as training has them."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from mogao_jax.sequence.document import Document, Image, Text
from mogao_jax.sequence.elements import Token, apply_chat_template
from mogao_jax.tokenizer import ByteTokenizer

TOKENIZER = ByteTokenizer()
prompt_elements = functools.partial(apply_chat_template, add_generation_prompt=True)
PIXELS = np.zeros((16, 16, 3), np.uint8)


def image(role=None, loss=True):
    return Image(pixels=PIXELS, role=role, loss=loss)


def spelled(elements) -> str:
    return "".join(
        TOKENIZER.decode([e.id], keep_special=True) if isinstance(e, Token) else "#"
        for e in elements
    )


@pytest.mark.parametrize(
    ("items", "text"),
    [
        ((Text("ab"),), "ab"),
        ((Text("ab"), image()), "ab<|vision_start|>#<|vision_end|>"),
        (
            (Text("hi", role="user"),),
            "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            (Text("s", role="system"), image("user")),
            "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\n<|vision_start|>#<|vision_end|>"
            "<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            (Text("q", role="user"), Text("yes", role="assistant")),
            "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\nyes",
        ),
    ],
)
def test_prompts_end_where_the_answer_begins(items, text):
    assert spelled(prompt_elements(Document(items), TOKENIZER)) == text


@pytest.mark.parametrize("role", [None, "assistant"])
def test_a_prompt_and_its_continuation_are_a_training_document(role):
    """What follows the prompt, in training, is the answer's tokens: nothing is in between."""
    question = Text("q", role=role and "user", loss=False)
    answer = (Text("a", role=role), image(role), Text("b", role=role))
    whole = apply_chat_template(Document((question, *answer)), TOKENIZER, end_after_image="never")
    for cut in range(len(answer)):
        prompt = prompt_elements(Document((question, *answer[:cut])), TOKENIZER)
        assert spelled(whole[: len(prompt)]) == spelled(prompt)
        assert [getattr(e, "image", None) for e in whole[: len(prompt)]] == [
            getattr(e, "image", None) for e in prompt
        ]
    end = "<|im_end|>" if role else "<|endoftext|>"
    assert spelled(whole)[len(spelled(prompt)) :] == "b" + end
