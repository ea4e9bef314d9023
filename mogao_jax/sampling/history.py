"""What a request's history is made of, in each guidance context, as tokens for the model.

A guidance context (docs/method.md section 6) is a sequence of its own: `full` holds everything,
`image_only` the images with their vision tokens, `empty` a single <|vision_start|>. A cursor places
their tokens (sequence/cursor.py), as it places those of the forms of training (sequence/layout.py).
A sequence is numpy on the host: some of its tokens have been computed and lie in the cache, the
rest is pending.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from typing import Literal, NamedTuple

import numpy as np

from mogao_jax.config.geometry import VAE_GRID
from mogao_jax.config.schema import LayoutConfig
from mogao_jax.sequence.cursor import Cursor, Placed


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedImage:
    """A finished image, as later tokens read it."""

    size: tuple[int, int]  # (height, width) in pixels
    latents: np.ndarray  # float32[tokens, 64], model-scaled, t = 1
    # The ViT's, float32[patches, C], or [tokens, C] after its own merger; None without a ViT.
    features: np.ndarray | None = None
    vit_grid: tuple[int, int] = (0, 0)  # (rows, columns) of merged ViT tokens

    @property
    def num_vit_tokens(self) -> int:
        return 0 if self.features is None else self.vit_grid[0] * self.vit_grid[1]

    @property
    def vae_grid(self) -> tuple[int, int]:
        return self.size[0] // VAE_GRID, self.size[1] // VAE_GRID


class TokenSpan(NamedTuple):
    """Tokens that are computed together: a text token, or an image's ViT or clean VAE tokens."""

    token: int  # vocabulary id, for the und stream
    placed: Placed  # order and positions of n tokens
    features: np.ndarray | None = None  # of ViT tokens
    latents: np.ndarray | None = None  # of clean VAE tokens

    def __len__(self) -> int:
        return len(self.placed)

    @property
    def part(self) -> Literal["und", "clean"]:
        """The part of the cache that it goes to."""
        return "und" if self.latents is None else "clean"


class CachedSequence:
    """The tokens of one guidance context: how many are in the cache, and which are pending.

    Attributes:
      slot: its row of the cache.
      cursor: where the next token stands.
      written: tokens in each part of the cache.
      pending: spans to be computed, in reading order.
      pending_clean: clean VAE tokens, apart from those where text does not read them: they are
        computed only if another image is to be drawn.
    """

    def __init__(self, layout: LayoutConfig, image_pad: int, cursor: Cursor | None = None):
        self._layout, self._image_pad = layout, image_pad
        self.slot = -1
        self.cursor = cursor or Cursor()
        self.written = {"und": 0, "clean": 0}
        self.pending: deque[TokenSpan] = deque()
        self.pending_clean: deque[TokenSpan] = deque()

    @property
    def und_length(self) -> int:
        """Text and ViT tokens, pending ones included."""
        return self.written["und"] + sum(len(s) for s in self.pending if s.part == "und")

    def clean_length(self, *, waiting: bool = True) -> int:
        """Clean VAE tokens, pending ones included; `waiting`: also those that wait apart."""
        pending = (*self.pending, *self.pending_clean) if waiting else self.pending
        return self.written["clean"] + sum(len(s) for s in pending if s.part == "clean")

    def add_token(self, token: int) -> None:
        placed, self.cursor = self.cursor.text(1, self._layout)
        self.pending.append(TokenSpan(token, placed))

    def add_image(self, image: EncodedImage) -> None:
        """A finished image: its ViT tokens, then its clean VAE tokens."""
        vit_grid = image.vit_grid if image.features is not None else None
        placed, self.cursor = self.cursor.image(image.vae_grid, vit_grid, self._layout)
        if placed.vit is not None:
            self.pending.append(TokenSpan(self._image_pad, placed.vit, image.features))
        clean = TokenSpan(0, placed.clean, latents=image.latents)
        (self.pending if placed.vit is None else self.pending_clean).append(clean)

    def skip(self) -> None:
        """Passes an element that stands in the full context alone."""
        self.cursor = self.cursor.skip(self._layout)

    def wrote(self, num_tokens: int) -> None:
        """Pending text tokens have been computed and are in the cache now."""
        for _ in range(num_tokens):
            self.pending.popleft()
        self.written["und"] += num_tokens


def take(spans: deque[TokenSpan], limit: int, keep: int = 0) -> list[TokenSpan]:
    """The first spans, of up to `limit` tokens (but at least one span); the last `keep` stay."""
    taken: list[TokenSpan] = []
    while len(spans) > keep and (not taken or len(spans[0]) <= limit):
        taken.append(spans.popleft())
        limit -= len(taken[-1])
    return taken


class History:
    """A request's history in its guidance contexts, kept in step.

    Attributes:
      full, image_only: the contexts; `image_only` is filled always and computed only if needed.
      sizes: of the images in it, in order.
    """

    def __init__(self, layout: LayoutConfig, image_pad: int):
        self._layout, self._image_pad = layout, image_pad
        self._num_elements = 0
        self.full = CachedSequence(layout, image_pad)
        self.image_only = CachedSequence(layout, image_pad)
        self.sizes: list[tuple[int, int]] = []

    def add_token(self, token: int, *, is_vision: bool) -> None:
        """Appends a token; vision tokens (around images) stand in the image-only context too."""
        self._num_elements += 1
        self.full.add_token(token)
        if is_vision:
            self.image_only.add_token(token)
        else:
            self.image_only.skip()

    def add_image(self, image: EncodedImage) -> None:
        self._num_elements += 1
        self.full.add_image(image)
        self.image_only.add_image(image)
        self.sizes.append(image.size)

    def empty(self, vision_start: int) -> CachedSequence:
        """The empty context of the next image: of all elements it has the last one alone."""
        cursor = Cursor().skip(self._layout, self._num_elements - 1)
        context = CachedSequence(self._layout, self._image_pad, cursor)
        context.add_token(vision_start)
        return context
