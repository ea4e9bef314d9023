"""From a document's items to the sequence that the model reads: tokens and pictures in order.

Chat turns are wrapped as Qwen2.5 wraps them (`<|im_start|>role\\n ... <|im_end|>\\n`); images
stand between `<|vision_start|>` and `<|vision_end|>` (paper, section 3). Which tokens are
*trained* is decided here, what exists of each picture is decided in layout.py.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Protocol

import numpy as np

from mogao_jax.sequence.document import Document, Image, Item, Text

_SOMETIMES = 0.25  # [choice] of documents with one generated image: those whose end is trained


class TokenizerLike(Protocol):
    """What this room needs of a tokenizer (mogao_jax.tokenizer.Tokenizer)."""

    endoftext: int
    im_start: int
    im_end: int
    vision_start: int
    vision_end: int
    image_pad: int

    def encode(self, text: str) -> list[int]: ...


@dataclasses.dataclass(frozen=True)
class Token:
    """One text token. `trained`: it is a next-token-prediction target."""

    id: int
    trained: bool
    picture: int | None = None  # for vision tokens: which picture they stand around


@dataclasses.dataclass(frozen=True)
class Picture:
    """One image, as a whole: `index` counts the document's images, `target` if it is generated."""

    index: int
    target: bool


Element = Token | Picture


def render(
    document: Document,
    tokenizer: TokenizerLike,
    *,
    end_after_image: str,
    rng: np.random.Generator | None = None,
) -> list[Element]:
    """The document's elements in reading order.

    Args:
      document: what to render.
      tokenizer: encodes text (never yielding control tokens) and knows the special ids.
      end_after_image: 'never', 'interleaved', 'sometimes' or 'always', see config LayoutConfig.
      rng: draws for 'sometimes', which needs it.
    """
    elements = _turns(document, tokenizer)
    last = document.items[-1]
    if isinstance(last, Image) and not _ends_after_image(document, last, end_after_image, rng):
        return elements[:-1]  # without <|vision_end|>: nothing follows the picture
    if document.complete:
        end = tokenizer.endoftext if last.role is None else tokenizer.im_end
        elements.append(Token(end, last.loss))
    return elements


def render_prompt(document: Document, tokenizer: TokenizerLike) -> list[Element]:
    """The elements of a document that is to be continued (`complete` has no meaning here).

    After a turn of the user or the system the assistant's turn is opened; a document that ends
    with the assistant, or that has no roles, goes on where it ends. The last element is always
    a token: the one after which something is to be predicted.
    """
    elements = _turns(document, tokenizer)
    if document.items[-1].role in ("user", "system"):
        elements += _close_turn(tokenizer, trained=False)
        elements += _open_turn("assistant", tokenizer)
    return elements


def _turns(document: Document, tokenizer: TokenizerLike) -> list[Element]:
    """All items; every turn but the last is closed. A last image has its <|vision_end|>."""
    elements: list[Element] = []
    num_pictures = 0
    turns = [list(g) for _, g in itertools.groupby(document.items, key=lambda item: item.role)]
    for turn in turns:
        role = turn[0].role
        joined = "" if role is None else _joined_text(turn[0])
        if role is not None:
            elements += _open_turn(role, tokenizer, joined)
        for item in turn[1:] if joined else turn:
            if isinstance(item, Image):
                elements.append(Token(tokenizer.vision_start, item.loss, num_pictures))
                elements.append(Picture(num_pictures, item.loss))
                elements.append(Token(tokenizer.vision_end, False, num_pictures))
                num_pictures += 1
            else:
                elements += [Token(id, item.loss) for id in tokenizer.encode(item.text)]
        if role is not None and turn is not turns[-1]:
            elements += _close_turn(tokenizer, trained=turn[-1].loss)
    return elements


def _joined_text(item: Item) -> str:
    """The text of a turn's first item where it joins the line break of the header, else "".

    Qwen's tokenizer makes one token of several line breaks, and reads a whole turn at once. What
    is only read is given to it so. What is learned begins after the header, as in sampling.
    """
    if not isinstance(item, Text) or item.loss:
        return ""
    blank = item.text[: len(item.text) - len(item.text.lstrip())]
    return item.text if "\n" in blank or "\r" in blank else ""


def _open_turn(role: str, tokenizer: TokenizerLike, text: str = "") -> list[Element]:
    header = [tokenizer.im_start, *tokenizer.encode(f"{role}\n{text}")]
    return [Token(id, trained=False) for id in header]


def _close_turn(tokenizer: TokenizerLike, *, trained: bool) -> list[Element]:
    newline = [Token(id, trained=False) for id in tokenizer.encode("\n")]
    return [Token(tokenizer.im_end, trained), *newline]


def _ends_after_image(
    document: Document, last: Item, policy: str, rng: np.random.Generator | None
) -> bool:
    if not document.complete or not last.loss or policy == "never":
        return False
    num_targets = sum(isinstance(item, Image) and item.loss for item in document.items)
    if num_targets == 1 and policy == "sometimes":
        assert rng is not None
        return rng.random() < _SOMETIMES
    return policy == "always" or num_targets > 1
