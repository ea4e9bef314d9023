"""What goes into the sampler, what it tells while it works, and what comes out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

from mogao_jax.sampling.options import SamplingOptions
from mogao_jax.sequence.document import Document, Image, Item

Stop = Literal["end", "max_images", "max_tokens", "cache_full"]


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """A document to go on with. The same seed gives the same output, alone and in any batch."""

    document: Document
    seed: int = 0
    options: SamplingOptions = SamplingOptions()


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """What was generated.

    Attributes:
      items: texts and pictures (pixels uint8[H, W, 3]) in order.
      stop: why it ended: the model's end token, or a limit.
      document: the request's document and the items, to be fed back in.
    """

    items: tuple[Item, ...]
    stop: Stop
    document: Document


@dataclasses.dataclass(frozen=True)
class TextChunk:
    """Text as it comes: the chunks between two pictures, joined, are one text item."""

    text: str


@dataclasses.dataclass(frozen=True)
class PictureStarted:
    size: tuple[int, int]  # height, width


@dataclasses.dataclass(frozen=True)
class PictureProgress:
    step: int  # steps done
    num_steps: int


@dataclasses.dataclass(frozen=True, eq=False)
class GeneratedImage:
    image: Image


@dataclasses.dataclass(frozen=True, eq=False)
class Finished:
    """The last event of a request; others of its batch may still be served."""

    result: Result


Event = TextChunk | PictureStarted | PictureProgress | GeneratedImage | Finished
OnEvent = Callable[[int, Event], None]  # (index of the request, what happened)
