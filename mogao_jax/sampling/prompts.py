"""Requests are judged here, before any heavy work: options and pictures (lengths: lengths.py).

Everything is a RequestError or a DocumentError that names the value and the remedy.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any

from mogao_jax import images as image_ops
from mogao_jax.config.geometry import VAE_GRID
from mogao_jax.config.schema import ImageConfig, MogaoConfig
from mogao_jax.errors import DocumentError, RequestError
from mogao_jax.images import native_pixels
from mogao_jax.sampling.options import SamplingOptions
from mogao_jax.sequence.document import Document, Image, Item, Text
from mogao_jax.tokenizer import SPECIAL_TOKENS

MAX_STEPS = 10_000
MAX_GUIDANCE = 1000
MAX_COUNT = 2**31 - 1  # of tokens, pictures and the like: they become int32
# Beyond these, float32 has nothing left: time grids become NaN, or all logits equal or infinite.
TEMPERATURES = (1e-3, 1e3)  # besides 0
SHIFTS = (1e-3, 1e3)
_AREA_WEIGHT = 0.25  # a size of half the area is as bad as one that is 19% too wide


def as_document(prompt: Document | str) -> Document:
    """A document as it is; a text as what a user says."""
    if isinstance(prompt, Document):
        return prompt
    if not isinstance(prompt, str):
        raise RequestError(f"a prompt is a text or a Document, got {type(prompt).__name__}.")
    if not prompt.strip():
        raise RequestError("the prompt is empty: say what to draw or to answer.")
    return Document((Text(prompt, role="user", loss=False),), id="prompt")


def default_options(config: MogaoConfig) -> SamplingOptions:
    """What a model's config recommends."""
    return SamplingOptions(**dataclasses.asdict(config.sampling))


def make_options(fields: Mapping[str, Any], config: MogaoConfig) -> SamplingOptions:
    """SamplingOptions of the given fields; the others are what the model's config recommends."""
    known = [f.name for f in dataclasses.fields(SamplingOptions)]
    for name in fields:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}."
            raise RequestError(f"there is no option {name!r}; {hint}")
    return dataclasses.replace(default_options(config), **fields)


def check_options(options: SamplingOptions, config: MogaoConfig) -> None:
    """Raises RequestError for a value that cannot be, or a size that the model cannot draw."""
    _whole(options.num_steps, "num_steps", 1, MAX_STEPS)
    for name in ("max_images", "max_tokens", "top_k"):
        _whole(getattr(options, name), name, 0, MAX_COUNT)
    if options.solver not in ("euler", "heun"):
        raise RequestError(f"solver is {shown(options.solver)}; choose euler or heun.")
    for name in ("guidance_scale", "image_guidance_scale"):
        wanted = f"from 0 to {MAX_GUIDANCE}"
        _number(getattr(options, name), name, wanted, lambda x: 0 <= x <= MAX_GUIDANCE)
    low, high = TEMPERATURES
    wanted = f"0 (the likeliest token), or from {low:g} to {high:g}"
    _number(options.temperature, "temperature", wanted, lambda x: x == 0 or low <= x <= high)
    _number(options.top_p, "top_p", "above 0 and at most 1", lambda x: 0 < x <= 1)
    if options.timestep_shift is not None:
        least, most = SHIFTS
        wanted = f"from {least:g} to {most:g}"
        _number(options.timestep_shift, "timestep_shift", wanted, lambda x: least <= x <= most)
    interval = options.guidance_interval
    if not _is_interval(interval):
        raise RequestError(
            f"guidance_interval is {shown(interval)}; it must be (low, high) with 0 <= low < high "
            "<= 1. To draw without guidance, set guidance_scale and image_guidance_scale to 1."
        )
    if options.draw_first and not (options.allow_images and options.max_images):
        raise RequestError(
            "draw_first asks for a picture, and allow_images or max_images forbids it; drop one."
        )
    if options.size is not None:
        check_size(options.size, config.images)


def _is_interval(value: Any) -> bool:
    """Whether it is (low, high) with 0 <= low < high <= 1."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        return False
    numbers = all(isinstance(x, (int, float)) for x in value)
    return numbers and 0 <= value[0] < value[1] <= 1  # nan is not


def _whole(value: Any, name: str, least: int, most: int) -> None:
    good = isinstance(value, int) and not isinstance(value, bool)
    if not good or not least <= value <= most:
        raise RequestError(
            f"{name} is {shown(value)}; it must be a whole number, from {least} to {most}."
        )


def _number(value: Any, name: str, wanted: str, holds: Callable[[Any], bool]) -> None:
    # Compared as it is: whole numbers of any size are no floats yet. NaN fails every bound.
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not good or not holds(value):
        raise RequestError(f"{name} is {shown(value)}; it must be a number, {wanted}.")


def shown(value: Any) -> str:
    """The value for a message: Python refuses to print whole numbers of thousands of digits."""
    try:
        text = repr(value)
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."


# ------------------------------------------------------------------------------------------ sizes


def check_size(size: tuple[int, int], images: ImageConfig) -> None:
    """Raises RequestError unless pictures of (height, width) can be drawn; names the nearest."""
    is_pair = isinstance(size, (tuple, list)) and len(size) == 2
    if not is_pair or any(not isinstance(x, int) or isinstance(x, bool) for x in size):
        raise RequestError(f"size is {shown(size)}; it must be two whole numbers: (height, width).")
    height, width = size
    name = f"{shown(height)}x{shown(width)}"
    if height < 1 or width < 1:
        raise RequestError(f"size {name} has no pixels; sides are multiples of 16.")
    # A side of any length is judged, not computed with.
    largest = fitting_size(min(height, MAX_COUNT), min(width, MAX_COUNT), images)
    if max(size) > images.max_side or height * width > images.max_pixels:
        raise RequestError(
            f"size {name} is over what this model draws ({images.max_pixels} pixels, "
            f"sides up to {images.max_side}); the largest of this shape is "
            f"{largest[0]}x{largest[1]}."
        )
    nearest = [max(1, round(x / VAE_GRID)) * VAE_GRID for x in size]
    if [height, width] != nearest:
        near = largest if nearest[0] * nearest[1] > images.max_pixels else nearest
        raise RequestError(
            f"size {height}x{width} is off the grid: sides are multiples of {VAE_GRID}; the "
            f"nearest is {near[0]}x{near[1]}."
        )


def fitting_size(height: float, width: float, images: ImageConfig) -> tuple[int, int]:
    """The (height, width) on the grid that comes closest to a shape without giving up much area."""
    longest, cells = images.max_side // VAE_GRID, images.max_pixels // VAE_GRID**2

    def badness(size: tuple[int, int]) -> float:
        h, w = size
        stretch = abs(math.log(h / w) - math.log(height / width))
        return stretch + _AREA_WEIGHT * math.log(cells / (h * w))

    sides = range(1, longest + 1)
    h, w = min(((h, w) for h in sides for w in sides if h * w <= cells), key=badness)
    return h * VAE_GRID, w * VAE_GRID


# -------------------------------------------------------------------------------------- documents


def prepare(document: Document, config: MogaoConfig) -> tuple[Document, list[str]]:
    """Loads a document's pictures, at the resolution that the model sees them in.

    Returns:
      The document with pixels instead of files, and remarks: on pictures that were made smaller,
      and on control tokens spelled in texts.
    Raises:
      DocumentError: a picture that is missing or cannot be read; nothing but blank text.
    """
    if all(isinstance(item, Text) and not item.text.strip() for item in document.items):
        raise DocumentError(
            f"document {document.id!r} is empty: say what to draw or to answer, or give a picture."
        )
    items: list[Item] = []
    notes = _spelled_tokens(document)
    for item in document.items:
        if isinstance(item, Image):
            whole = image_ops.load_pixels(item)
            pixels = native_pixels(Image(pixels=whole), config.images)
            (height, width), seen = whole.shape[:2], pixels.shape[:2]
            if seen[0] < height or seen[1] < width:
                name = str(item.path) if item.path is not None else "a picture"
                notes.append(
                    f"{name}: {height}x{width} is more than this model sees; made "
                    f"{seen[0]}x{seen[1]}."
                )
            item = dataclasses.replace(item, path=None, data=None, pixels=pixels)
        items.append(item)
    return dataclasses.replace(document, items=tuple(items)), notes


def _spelled_tokens(document: Document) -> list[str]:
    """Says that control tokens in texts are letters; they never reach the model as tokens."""
    text = " ".join(item.text for item in document.items if isinstance(item, Text))
    spelled = [token for token in SPECIAL_TOKENS.values() if token in text]
    if not spelled:
        return []
    return [
        f"the text spells {', '.join(spelled)}: read as plain letters, which mean nothing. Give "
        "pictures and speakers as items of a JSON document (with a role each) instead."
    ]
