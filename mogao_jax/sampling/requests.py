"""A request: what is asked, checked and prepared once, and what comes of it.

`prepare` is the one place where a prompt is judged: its options, its images (loaded at the
resolution that the model sees them in), its chat template, its length. Whoever holds the result
hands it on, and nothing is done twice. Everything that is refused is a RequestError or a
DocumentError that names the value and the remedy, before any heavy work.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from mogao_jax import images as image_ops
from mogao_jax.config.geometry import VAE_GRID
from mogao_jax.config.schema import MogaoConfig
from mogao_jax.errors import DocumentError, RequestError
from mogao_jax.sampling.options import SamplingOptions, check_options, is_whole
from mogao_jax.sequence.document import Document, Image, Item, Text
from mogao_jax.sequence.elements import Element, ImageRef, apply_chat_template
from mogao_jax.tokenizer import SPECIAL_TOKENS, Tokenizer

MAX_LENGTH = 2**20
Stop = Literal["end", "max_images", "max_tokens", "cache_full"]


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """A document to continue. The same seed gives the same output, alone and in any batch."""

    document: Document
    seed: int = 0
    options: SamplingOptions = SamplingOptions()


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedRequest(Request):
    """A request that can be served, from `prepare`. Only `seed` may be replaced afterwards.

    The images of its document are pixels of native resolution.
    """

    elements: tuple[Element, ...] = ()  # of the document, by the chat template
    # Remarks for people: images that were made smaller, words that the model has not met, ...
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """What was generated."""

    items: tuple[Item, ...]  # texts and images (pixels uint8[H, W, 3]) in order
    stop: Stop  # why it ended: the model's end token, or a limit
    document: Document  # the request's document and the items, to be fed back in

    @property
    def text(self) -> str:
        """All texts, joined."""
        return "".join(item.text for item in self.items if isinstance(item, Text))

    @property
    def images(self) -> list[Image]:
        return [item for item in self.items if isinstance(item, Image)]

    def __repr__(self) -> str:
        shown = [repr(i.text) if isinstance(i, Text) else repr(i) for i in self.items]
        return f"Result({textwrap.shorten(', '.join(shown), 160)}; stop={self.stop!r})"

    def _repr_html_(self) -> str:
        """What a notebook shows: texts and images in order."""
        parts = []
        for item in self.items:
            if isinstance(item, Text):
                parts.append(f"<p>{html.escape(item.text)}</p>")
            else:
                encoded = base64.b64encode(item._repr_png_()).decode()
                parts.append(f'<img src="data:image/png;base64,{encoded}">')
        return "".join(parts)


# ----------------------------------------------------------------------------------------- events


@dataclasses.dataclass(frozen=True)
class TextChunk:
    """Text as it comes: the chunks between two images, joined, are one text item."""

    text: str


@dataclasses.dataclass(frozen=True)
class ImageStarted:
    size: tuple[int, int]  # height, width


@dataclasses.dataclass(frozen=True)
class ImageProgress:
    step: int  # steps done
    num_steps: int


@dataclasses.dataclass(frozen=True, eq=False)
class GeneratedImage:
    image: Image


@dataclasses.dataclass(frozen=True, eq=False)
class Finished:
    """The last event of a request; others of its batch may still be served."""

    result: Result


Event = TextChunk | ImageStarted | ImageProgress | GeneratedImage | Finished
OnEvent = Callable[[int, Event], None]  # (index of the request, what happened)


# -------------------------------------------------------------------------------------- preparing


def as_document(prompt: Document | str) -> Document:
    """A document as it is; a text as what a user says."""
    if isinstance(prompt, Document):
        return prompt
    if not isinstance(prompt, str):
        raise RequestError(f"a prompt is a text or a Document, got {type(prompt).__name__}.")
    if not prompt.strip():
        raise RequestError("the prompt is empty: say what to draw or to answer.")
    return Document((Text(prompt, role="user", loss=False),), id="prompt")


def prepare(
    request: Request, config: MogaoConfig, tokenizer: Tokenizer, limits: Limits
) -> PreparedRequest:
    """Checks a request, loads its images, applies the chat template; a prepared one is returned.

    Raises:
      RequestError: options or a seed that cannot be.
      DocumentError: an image that cannot be read; nothing but blank text; too long.
    """
    if isinstance(request, PreparedRequest):
        return request
    check_options(request.options, config)
    if not is_whole(request.seed) or request.seed < 0:
        raise RequestError(f"seed is {request.seed!r}; it must be a whole number, 0 or more.")
    document, notes = load_images(request.document, config)
    notes += _unknown_words(document, config, tokenizer)
    elements = apply_chat_template(document, tokenizer, add_generation_prompt=True)
    counts = count_tokens(document, elements, config)
    check_length(document.id, counts, config, limits, may_draw=request.options.may_draw)
    return PreparedRequest(document, request.seed, request.options, tuple(elements), tuple(notes))


def load_images(document: Document, config: MogaoConfig) -> tuple[Document, list[str]]:
    """The document with pixels of native resolution instead of files, and remarks for people.

    Raises:
      DocumentError: an image that is missing or cannot be read; nothing but blank text.
    """
    if all(isinstance(item, Text) and not item.text.strip() for item in document.items):
        raise DocumentError(
            f"document {document.id!r} is empty: say what to draw or to answer, or give an image."
        )
    items: list[Item] = []
    notes = _spelled_tokens(document)
    for item in document.items:
        if isinstance(item, Image):
            whole = image_ops.load_pixels(item)
            pixels = image_ops.native_pixels(Image(pixels=whole), config.images)
            (height, width), seen = whole.shape[:2], pixels.shape[:2]
            if seen[0] < height or seen[1] < width:
                name = str(item.path) if item.path is not None else "an image"
                notes.append(
                    f"{name}: {height}x{width} is more than this model sees; made "
                    f"{seen[0]}x{seen[1]}."
                )
            if pixels is not item.pixels:
                item = dataclasses.replace(item, path=None, data=None, pixels=pixels)
        items.append(item)
    return dataclasses.replace(document, items=tuple(items)), notes


def _spelled_tokens(document: Document) -> list[str]:
    """Says that control tokens in texts are letters; they never reach the model as tokens."""
    text = " ".join(item.text for item in document.items if isinstance(item, Text))
    spelled = [token for token in SPECIAL_TOKENS.values() if token in text]
    remark = (
        f"the text spells {', '.join(spelled)}: read as plain letters, which mean nothing. Give "
        "images and speakers as items of a JSON document (with a role each) instead."
    )
    return [remark] if spelled else []


def _unknown_words(document: Document, config: MogaoConfig, tokenizer: Tokenizer) -> list[str]:
    """Says so where the model has not met most words of the last text.

    Only of models that say what they know. Their tokenizers were learned from what they were
    trained on, so a word that takes several tokens was not there, but for those that
    `config.about` names.
    """
    texts = [item.text for item in document.items if isinstance(item, Text)]
    if not config.about or not texts:
        return []
    named = set(_words(config.about))
    words = dict.fromkeys(_words(texts[-1]))
    unknown = [
        word
        for word in words
        if not named & {word, word.removesuffix("s")}
        and all(len(tokenizer.encode(form)) > 1 for form in (word, f" {word}"))
    ]
    if len(unknown) <= len(words) / 2:
        return []
    return [
        f"most of these words are new to the model ({', '.join(unknown[:6])}). It knows "
        f"{config.about}."
    ]


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text.lower())


# ----------------------------------------------------------------------------------------- length


class Limits(NamedTuple):
    """Tokens that a document's history may have, everything that is generated included."""

    und: int  # text and ViT tokens
    clean: int  # clean VAE tokens


def token_limits(config: MogaoConfig, max_length: int | None = None) -> Limits:
    """Token limits of a request: the training row's, or `max_length` with clean in proportion.

    `und` is the row's own budget. `clean` cannot be: in training only images that a later image
    reads have clean tokens, while here any image may come to be read. So it is what the row has
    for images, clean and noised, and where a ViT sees them at least what `und` ViT tokens can
    belong to.

    Args:
      max_length: text and ViT tokens, instead of the row's.
    Raises:
      RequestError: not a whole number from 1 to MAX_LENGTH.
    """
    packing = config.packing
    und = packing.und_tokens if max_length is None else max_length
    if not is_whole(und) or not 1 <= und <= MAX_LENGTH:
        raise RequestError(
            f"max_length is {und!r}; it must be a whole number of tokens, from 1 to {MAX_LENGTH}."
        )
    drawn = packing.clean_tokens + packing.noised_tokens // config.layout.noised_copies
    share = drawn / packing.und_tokens
    if config.layout.understanding_encoder == "vit":
        share = max(share, _vae_tokens_per_vit_token(config))
    return Limits(und, max(und, math.ceil(und * share)))


def _vae_tokens_per_vit_token(config: MogaoConfig) -> float:
    """The most that an image of any size has; rows and columns alike, so squares tell."""
    images = config.images
    longest = min(images.max_side, math.isqrt(images.max_pixels))
    sides = range(VAE_GRID, max(VAE_GRID, longest) + 1, VAE_GRID)
    return max((side // VAE_GRID) ** 2 / _vit_tokens(side, side, config) for side in sides)


def _vit_tokens(height: int, width: int, config: MogaoConfig) -> int:
    """ViT tokens, after the merge, of an image of this size as the model sees it."""
    images, unit = config.images, config.vit.patch_size * config.vit.merge_size
    rows, columns = image_ops.vit_size(
        height, width, mode=images.vit_resize, vit_max_pixels=images.vit_max_pixels
    )
    return rows * columns // unit**2


def count_tokens(document: Document, elements: Sequence[Element], config: MogaoConfig) -> Limits:
    """Tokens of a document with these elements, its images loaded: (text and ViT, clean VAE)."""
    images = [item.pixels for item in document.items if isinstance(item, Image)]
    und = clean = 0
    for element in elements:
        if not isinstance(element, ImageRef):
            und += 1
            continue
        pixels = images[element.index]
        assert pixels is not None  # loaded
        clean += math.prod(image_ops.vae_grid(pixels))
        if config.layout.understanding_encoder == "vit":
            height, width = pixels.shape[:2]
            und += _vit_tokens(height, width, config)
    return Limits(und, clean)


def check_length(
    name: Any, counts: Limits, config: MogaoConfig, limits: Limits, *, may_draw: bool = True
) -> None:
    """Raises DocumentError for a prompt that leaves no room for a token to be written.

    Args:
      name: of the document.
      counts: its tokens.
      may_draw: whether an image may follow: only images read clean tokens, unless there is no
        ViT.
    """
    und, clean = counts.und + 1, counts.clean  # one to be written
    if not (may_draw or config.layout.understanding_encoder == "vae"):
        clean = 0
    if und <= limits.und and clean <= limits.clean:
        return
    if und > limits.und:
        have, holds, needed = f"{und} tokens", f"{limits.und}", und
    else:
        have, holds = f"{clean} tokens of images", f"{limits.clean} of these"
        needed = math.ceil(clean * limits.und / limits.clean)
    raise DocumentError(
        f"document {name!r} needs {have}, and this model's context holds {holds}, what it writes "
        "included. Shorten the text, use fewer or smaller images, or allow a longer document: "
        f"mogao sample --max-length {needed}, in Python mogao_jax.load(..., max_length={needed})."
    )
