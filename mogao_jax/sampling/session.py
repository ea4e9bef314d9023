"""One request while it is being served: its history, what it has produced, and why it stops."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable

import numpy as np

from mogao_jax.config.geometry import VAE_GRID
from mogao_jax.config.schema import MogaoConfig
from mogao_jax.sampling import guidance, lengths
from mogao_jax.sampling.history import CachedSequence, EncodedImage, History
from mogao_jax.sampling.requests import (
    Event,
    Finished,
    GeneratedImage,
    PictureStarted,
    Request,
    Result,
    Stop,
    TextChunk,
)
from mogao_jax.sequence.batch import EMPTY, FULL, IMAGE_ONLY
from mogao_jax.sequence.document import Image, Item, Role, Text
from mogao_jax.sequence.elements import Token, apply_chat_template
from mogao_jax.tokenizer import Tokenizer


class Mode(enum.Enum):
    WRITING = enum.auto()  # the last token is chosen; the next is to be
    DRAWING = enum.auto()  # <|vision_start|> is there; a picture is to be drawn
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
    """

    def __init__(
        self,
        request: Request,
        pictures: list[EncodedImage],
        *,
        config: MogaoConfig,
        tokenizer: Tokenizer,
        limits: lengths.Limits,
        tell: Callable[[Event], None],
    ):
        self.request = request
        self.options = request.options
        self.mode = Mode.WRITING
        self.stop: Stop | None = None
        self._config, self._tokenizer, self._tell = config, tokenizer, tell
        self._limits = limits
        self._items: list[Item] = []
        self._text = TextStream(tokenizer)
        self._tokens_left = self.options.max_tokens
        self._num_drawn = 0
        self._ends = {tokenizer.im_end, tokenizer.endoftext}
        last = request.document.items[-1].role
        self._role: Role | None = None if last is None else "assistant"

        self.history = History(config.layout, tokenizer.image_pad)
        for element in apply_chat_template(request.document, tokenizer, add_generation_prompt=True):
            if isinstance(element, Token):
                self.history.add_token(element.id, is_vision=element.image is not None)
            else:
                self.history.add_image(pictures[element.index])
        counts = lengths.Limits(self.history.full.und_length, self._num_clean)
        lengths.check_counts(request.document.id, counts, limits)
        if self.options.draw_first:
            self.history.add_token(tokenizer.vision_start, is_vision=True)
            self.mode = Mode.DRAWING

    @property
    def _num_clean(self) -> int:
        """Clean VAE tokens that something will read."""
        return self.history.full.clean_length(waiting=self.may_draw)

    # ----------------------------------------------------------------------------------- text

    @property
    def may_draw(self) -> bool:
        return self.options.allow_images and self._num_drawn < self.options.max_images

    @property
    def token_limit(self) -> int:
        """Tokens that may still be written."""
        return min(self._tokens_left, self._limits.und - self.history.full.und_length)

    def check_limits(self) -> None:
        """Ends a session that is to write and may not."""
        if self.mode is Mode.WRITING and self.token_limit <= 0:
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
                self.mode = Mode.DRAWING
            else:
                chunk += self._text.push(token)
        self._emit(chunk)
        if self.mode is Mode.DRAWING:
            self._finish_text()
        if self.mode is Mode.DONE:
            self._end("end")
        self.check_limits()

    def _emit(self, text: str) -> None:
        if text:
            self._tell(TextChunk(text))

    def _finish_text(self) -> None:
        text, rest = self._text.finish()
        self._emit(rest)
        if text:
            self._items.append(Text(text, role=self._role))

    # -------------------------------------------------------------------------------- pictures

    @property
    def picture_index(self) -> int:
        """Of the next picture, among those of the document."""
        return len(self.history.sizes)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the next picture."""
        if self.options.size is not None:
            height, width = self.options.size
            return int(height), int(width)
        if self.history.sizes:
            return self.history.sizes[-1]
        images = self._config.images
        side = min(images.max_side, int(np.sqrt(images.max_pixels))) // VAE_GRID * VAE_GRID
        return max(side, VAE_GRID), max(side, VAE_GRID)

    def _weights(self, has_image: bool) -> dict[int, float]:
        o = self.options
        return guidance.context_weights(
            o.guidance_scale, o.image_guidance_scale, has_image=has_image
        )

    def start_picture(self) -> tuple[dict[int, CachedSequence], dict[int, float]]:
        """The contexts that the next picture is predicted in, and their weights."""
        self._tell(PictureStarted(self.size))
        history = self.history
        weights = self._weights(bool(history.sizes))
        contexts = {FULL: history.full, IMAGE_ONLY: history.image_only}
        if EMPTY in weights:
            contexts[EMPTY] = history.empty(self._tokenizer.vision_start)
        return {name: contexts[name] for name in weights}, weights

    def finish_picture(self, pixels: np.ndarray) -> None:
        """Hands the picture over; it joins the history by `resume`, unless all is done."""
        image = Image(pixels=pixels, role=self._role)
        self._items.append(image)
        self._tell(GeneratedImage(image))
        self._num_drawn += 1
        if self._num_drawn >= self.options.max_images:
            self._end("max_images")
        elif self._tokens_left <= 0:
            self._end("max_tokens")

    def resume(self, picture: EncodedImage) -> None:
        """The drawn picture joins the history, and text goes on."""
        self.mode = Mode.WRITING
        full = self.history.full
        num_vit = picture.vit_grid[0] * picture.vit_grid[1] if picture.features is not None else 0
        und, clean = full.und_length + num_vit + 1, self._num_clean + len(picture.latents)
        if und > self._limits.und or clean > self._limits.clean:
            self._end("cache_full")
            return
        self.history.add_image(picture)
        self.history.add_token(self._tokenizer.vision_end, is_vision=True)
        self.check_limits()

    def tell(self, event: Event) -> None:
        self._tell(event)

    # ------------------------------------------------------------------------------------- end

    def _end(self, stop: Stop) -> None:
        self._finish_text()
        self.mode, self.stop = Mode.DONE, stop
        self._tell(Finished(self.result()))

    def result(self) -> Result:
        assert self.stop is not None
        items = tuple(self._items)
        document = self.request.document
        continued = dataclasses.replace(
            document, items=(*document.items, *items), complete=self.stop == "end"
        )
        return Result(items, self.stop, continued)
