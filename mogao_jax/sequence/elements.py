"""From a document's items to the sequence that the model reads: tokens and images in order.

Turns are wrapped as the tokenizer's chat template says (chat.py); images stand between
`<|vision_start|>` and `<|vision_end|>` (paper, section 3). Which tokens are *trained* is decided
here, what exists of each image is decided in forms.py.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from mogao_jax.chat import ChatTemplate
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

    @property
    def chat(self) -> ChatTemplate: ...

    def encode(self, text: str) -> list[int]: ...

    def split_template(self, text: str) -> list[int | str]: ...


@dataclasses.dataclass(frozen=True)
class Token:
    """One text token. `trained`: it is a next-token-prediction target."""

    id: int
    trained: bool
    image: int | None = None  # for vision tokens: which image they stand around


@dataclasses.dataclass(frozen=True)
class ImageRef:
    """One image, as a whole: `index` counts the document's images, `target` if it is generated."""

    index: int
    target: bool


Element = Token | ImageRef


def apply_chat_template(
    document: Document,
    tokenizer: TokenizerLike,
    *,
    add_generation_prompt: bool = False,
    end_after_image: str = "never",
    rng: np.random.Generator | None = None,
) -> list[Element]:
    """The document's elements in reading order.

    Args:
      document: its turns, if it has roles, are wrapped as the tokenizer's template says.
      tokenizer: encodes text (never yielding control tokens) and knows the special ids.
      add_generation_prompt: the document is a prompt, to be continued (`complete` has no meaning
        then). After a turn of the user or the system the assistant's turn is opened; a document
        that ends with the assistant, or that has no roles, goes on where it ends. The last element
        is always a token: the one after which something is to be predicted.
      end_after_image: 'never', 'interleaved', 'sometimes' or 'always', see config LayoutConfig.
      rng: draws for 'sometimes', which needs it.
    """
    last = document.items[-1]
    if add_generation_prompt:
        return _turns(document, tokenizer, continues=last.role in ("user", "system"))
    elements = _turns(document, tokenizer)
    if isinstance(last, Image) and not _ends_after_image(document, last, end_after_image, rng):
        return elements[:-1]  # without <|vision_end|>: nothing follows the image
    if document.complete:
        end = tokenizer.endoftext if last.role is None else tokenizer.im_end
        elements.append(Token(end, last.loss))
    return elements


def _turns(
    document: Document, tokenizer: TokenizerLike, *, continues: bool = False
) -> list[Element]:
    """All items; every turn but the last is closed. A last image has its <|vision_end|>.

    Args:
      continues: the last turn is closed too, and the assistant's next one opened.
    """
    elements: list[Element] = []
    numbers = itertools.count()  # of images
    # Conversations, whose items have roles, and what stands outside of any.
    groups = itertools.groupby(document.items, lambda item: item.role is not None)
    parts = [(has_roles, list(items)) for has_roles, items in groups]
    for part, (has_roles, items) in enumerate(parts, start=1):
        if not has_roles:
            elements += _items(items, tokenizer, numbers)
            continue
        is_last = part == len(parts)
        turns = [list(turn) for _, turn in itertools.groupby(items, key=lambda item: item.role)]
        roles = [str(turn[0].role) for turn in turns]
        *before, after = tokenizer.chat.pieces(roles, continues=continues and is_last)
        closes = False  # whether the end of the turn before is learned
        for piece, turn in zip(before, turns, strict=True):
            joined = _joined_text(turn[0])
            elements += _template(piece, joined, tokenizer, closes)
            elements += _items(turn[1:] if joined else turn, tokenizer, numbers)
            closes = turn[-1].loss
        if continues or not is_last:
            elements += _template(after, "", tokenizer, closes and not is_last)
    return elements


def _items(
    items: Sequence[Item], tokenizer: TokenizerLike, numbers: Iterator[int]
) -> list[Element]:
    elements: list[Element] = []
    for item in items:
        if isinstance(item, Text):
            elements += [Token(id, item.loss) for id in tokenizer.encode(item.text)]
        else:
            number = next(numbers)
            elements += [
                Token(tokenizer.vision_start, item.loss, number),
                ImageRef(number, item.loss),
                Token(tokenizer.vision_end, False, number),
            ]
    return elements


def _template(text: str, said: str, tokenizer: TokenizerLike, closes: bool) -> list[Element]:
    """A piece of the chat template.

    Args:
      said: what the next turn begins with, where it is read together with the template's end.
      closes: the first token ends a turn that is learned, and is learned with it.
    """
    parts = tokenizer.split_template(text)
    if said:
        last = parts.pop() if parts and isinstance(parts[-1], str) else ""
        parts.append(f"{last}{said}")
    ids = [i for p in parts for i in ([p] if isinstance(p, int) else tokenizer.encode(p))]
    return [Token(id, trained=closes and number == 0) for number, id in enumerate(ids)]


def _joined_text(item: Item) -> str:
    """The text of a turn's first item where it joins the line break of the header, else "".

    Qwen's tokenizer makes one token of several line breaks, and reads a whole turn at once. What
    is only read is given to it so. What is learned begins after the header, as in sampling.
    """
    if not isinstance(item, Text) or item.loss:
        return ""
    blank = item.text[: len(item.text) - len(item.text.lstrip())]
    return item.text if "\n" in blank or "\r" in blank else ""


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
