"""One request while it is being served: its history, what it has produced, and why it stops."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Callable, Iterator

import numpy as np

from mogao_jax.config.geometry import VAE_GRID
from mogao_jax.config.schema import MogaoConfig
from mogao_jax.sampling.guided_flow import context_weights
from mogao_jax.sampling.history import CachedSequence, EncodedImage, History
from mogao_jax.sampling.requests import (
    Event,
    Finished,
    GeneratedImage,
    ImageStarted,
    Limits,
    PreparedRequest,
    Result,
    Stop,
    TextChunk,
)
from mogao_jax.sequence.batch import EMPTY, FULL, IMAGE_ONLY
from mogao_jax.sequence.document import Image, Item, Role, Text
from mogao_jax.sequence.elements import Token
from mogao_jax.tokenizer import Tokenizer


class Mode(enum.Enum):
    TEXT = enum.auto()  # the last token is chosen; the next is to be
    IMAGE = enum.auto()  # <|vision_start|> is there; an image is to be generated
    DONE = enum.auto()


class TextStream:
    """Tokens to text as they come: what may still change (half a character) is held back."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = 0

    def push(self, token: int) -> str:
        """The text that is certain now and was not before."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids).rstrip("\ufffd")
        new, self._shown = text[self._shown :], max(self._shown, len(text))
        return new

    def finish(self) -> tuple[str, str]:
        """The whole text, and what of it was held back; the stream is empty afterwards."""
        text = self._tokenizer.decode(self._ids)
        rest = text[self._shown :]
        self._ids, self._shown = [], 0
        return text, rest


class Session:
    """A request being served.

    Attributes:
      request, history, mode: see above.
      stop: why it ended, once it is DONE.
      tell: is called with every event.
    """

    def __init__(
        self,
        request: PreparedRequest,
        images: Iterator[EncodedImage],
        *,
        config: MogaoConfig,
        tokenizer: Tokenizer,
        limits: Limits,
        tell: Callable[[Event], None],
    ):
        """Takes the prompt into the history. `images`: encoded, those of its document next."""
        self.request, self.options = request, request.options
        self.mode = Mode.TEXT
        self.stop: Stop | None = None
        self.tell = tell
        self._config, self._tokenizer, self._limits = config, tokenizer, limits
        self._items: list[Item] = []
        self._text = TextStream(tokenizer)
        self._tokens_left = self.options.max_tokens
        self._num_generated = 0
        self._ends = {tokenizer.im_end, tokenizer.endoftext}
        last = request.document.items[-1].role
        self._role: Role | None = None if last is None else "assistant"

        self.history = History(config.layout, tokenizer.image_pad)
        for element in request.elements:
            if isinstance(element, Token):
                self.history.add_token(element.id, is_vision=element.image is not None)
            else:
                self.history.add_image(next(images))
        if self.options.draw_first:
            self.history.add_token(tokenizer.vision_start, is_vision=True)
            self.mode = Mode.IMAGE

    # ----------------------------------------------------------------------------------- text

    @property
    def may_draw(self) -> bool:
        return self.options.allow_images and self._num_generated < self.options.max_images

    @property
    def token_limit(self) -> int:
        """Tokens that may still be written."""
        return min(self._tokens_left, self._limits.und - self.history.full.und_length)

    def check_limits(self) -> None:
        """Ends a session that is to write and may not."""
        if self.mode is Mode.TEXT and self.token_limit <= 0:
            self._end("max_tokens" if self._tokens_left <= 0 else "cache_full")

    def write(self, tokens: list[int]) -> None:
        """Takes tokens that were chosen one after another."""
        self._tokens_left -= len(tokens)
        chunk = ""
        for token in tokens:
            is_start = token == self._tokenizer.vision_start
            self.history.add_token(token, is_vision=is_start)
            if token in self._ends:
                self.mode = Mode.DONE
            elif is_start:
                self.mode = Mode.IMAGE
            else:
                chunk += self._text.push(token)
        self._emit(chunk)
        if self.mode is Mode.IMAGE:
            self._finish_text()
        if self.mode is Mode.DONE:
            self._end("end")
        self.check_limits()

    def _emit(self, text: str) -> None:
        if text:
            self.tell(TextChunk(text))

    def _finish_text(self) -> None:
        text, rest = self._text.finish()
        self._emit(rest)
        if text:
            self._items.append(Text(text, role=self._role))

    # ---------------------------------------------------------------------------------- images

    @property
    def image_index(self) -> int:
        """Of the next image, among those of the document."""
        return len(self.history.sizes)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the next image."""
        if self.options.size is not None:
            height, width = self.options.size
            return int(height), int(width)
        if self.history.sizes:
            return self.history.sizes[-1]
        images = self._config.images
        side = min(images.max_side, math.isqrt(images.max_pixels)) // VAE_GRID * VAE_GRID
        return max(side, VAE_GRID), max(side, VAE_GRID)

    def start_image(self) -> tuple[dict[int, CachedSequence], dict[int, float]]:
        """The contexts that the next image is predicted in, and their weights."""
        self.tell(ImageStarted(self.size))
        o, history = self.options, self.history
        weights = context_weights(
            o.guidance_scale, o.image_guidance_scale, has_image=bool(history.sizes)
        )
        contexts = {FULL: history.full, IMAGE_ONLY: history.image_only}
        if EMPTY in weights:
            contexts[EMPTY] = history.empty(self._tokenizer.vision_start)
        return {name: contexts[name] for name in weights}, weights

    def finish_image(self, pixels: np.ndarray) -> None:
        """Hands the image over; it joins the history by `resume`, unless all is done."""
        image = Image(pixels=pixels, role=self._role)
        self._items.append(image)
        self.tell(GeneratedImage(image))
        self._num_generated += 1
        if self._num_generated >= self.options.max_images:
            self._end("max_images")
        elif self._tokens_left <= 0:
            self._end("max_tokens")

    def resume(self, image: EncodedImage) -> None:
        """The generated image joins the history, and text goes on."""
        self.mode = Mode.TEXT
        full = self.history.full
        und = full.und_length + image.num_vit_tokens + 1
        # Clean tokens that something will read.
        clean = full.clean_length(waiting=self.may_draw) + len(image.latents)
        if und > self._limits.und or clean > self._limits.clean:
            self._end("cache_full")
            return
        self.history.add_image(image)
        self.history.add_token(self._tokenizer.vision_end, is_vision=True)
        self.check_limits()

    # ------------------------------------------------------------------------------------- end

    def _end(self, stop: Stop) -> None:
        self._finish_text()
        self.mode, self.stop = Mode.DONE, stop
        self.tell(Finished(self.result()))

    def result(self) -> Result:
        assert self.stop is not None
        items = tuple(self._items)
        document = self.request.document
        continued = dataclasses.replace(
            document, items=(*document.items, *items), complete=self.stop == "end"
        )
        return Result(items, self.stop, continued)
