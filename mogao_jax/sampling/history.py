"""What a request's history is made of, in each guidance context, as tokens for the model.

A *context* (docs/method.md section 6) is a history of its own: `full` holds everything, `image
only` the pictures with their vision tokens, `empty` a single <|vision_start|>. Tokens, T ids and
orders are exactly those that the forms of training have (sequence/forms.py, layout.py).
A history is numpy on the host: some of its tokens have been computed and lie in the cache, the
rest is pending.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from typing import NamedTuple

import numpy as np

from mogao_jax.config.geometry import VAE_GRID
from mogao_jax.config.schema import LayoutConfig
from mogao_jax.sequence.geometry import text_positions, vae_positions, vit_positions


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedImage:
    """A finished picture, as its later readers need it.

    Attributes:
      size: (height, width) in pixels.
      latents: float32[tokens, 64], model-scaled, t = 1.
      features: the ViT's, float32[patches, C] (or [tokens, C] after its own merger); None where
        there is no ViT.
      vit_grid: (rows, columns) of merged ViT tokens.
    """

    size: tuple[int, int]
    latents: np.ndarray
    features: np.ndarray | None = None
    vit_grid: tuple[int, int] = (0, 0)

    @property
    def vae_grid(self) -> tuple[int, int]:
        return self.size[0] // VAE_GRID, self.size[1] // VAE_GRID


class TokenSpan(NamedTuple):
    """Tokens that are computed together: a text token, or a picture's ViT or clean VAE tokens."""

    token: int  # vocabulary id, for the und stream
    orders: np.ndarray  # int32[n] as TokenMeta.order
    positions: np.ndarray  # float32[n, 3]
    features: np.ndarray | None = None  # of ViT tokens
    latents: np.ndarray | None = None  # of clean VAE tokens

    def __len__(self) -> int:
        return len(self.orders)


class Context:
    """One history: how much of it is in the cache, what is pending, and what comes next.

    Attributes:
      slot: its row of the cache.
      next_order: the order of what comes next.
      next_t: its T id.
      num_und, num_clean: tokens in the cache.
      pending: pieces to be computed, in reading order.
      pending_clean: clean VAE tokens, apart from those where text does not read them: they are
        computed only if another picture is to be drawn.
    """

    def __init__(self, layout: LayoutConfig, image_pad: int):
        self._layout, self._image_pad = layout, image_pad
        self.slot = -1
        self.next_order = self.next_t = 0
        self.num_und = self.num_clean = 0
        self.pending: deque[TokenSpan] = deque()
        self.pending_clean: deque[TokenSpan] = deque()

    @property
    def und_length(self) -> int:
        """Text and ViT tokens, pending ones included."""
        return self.num_und + sum(len(p) for p in self.pending if p.latents is None)

    def clean_length(self, *, waiting: bool = True) -> int:
        """Clean VAE tokens, pending ones included; `waiting`: also those that wait apart."""
        pending = (*self.pending, *self.pending_clean) if waiting else self.pending
        return self.num_clean + sum(len(p) for p in pending if p.latents is not None)

    def add_token(self, token: int, t: int | None = None) -> None:
        """A text token; `t` is its T id if it is not simply the next one."""
        t = self.next_t if t is None else t
        positions = text_positions(np.array([t]), self._layout.text_positions)
        self.pending.append(TokenSpan(token, np.array([self.next_order], np.int32), positions))
        self.next_order += 1
        self.next_t = t + 1

    def add_picture(self, picture: EncodedImage, t: int | None = None) -> None:
        """A finished picture: its ViT tokens, then its clean VAE tokens."""
        t = self.next_t if t is None else t
        span, reads_vit = 1, picture.features is not None
        if reads_vit:
            n = picture.vit_grid[0] * picture.vit_grid[1]
            is_causal = self._layout.vit_attention == "causal"
            span = n if is_causal else 1
            steps = np.arange(n) if is_causal else np.zeros(n)
            orders = (self.next_order + steps).astype(np.int32)
            positions = vit_positions(t, picture.vit_grid, picture.vae_grid)
            self.pending.append(TokenSpan(self._image_pad, orders, positions, picture.features))
        last = np.full(len(picture.latents), self.next_order + span - 1, np.int32)
        clean = TokenSpan(0, last, vae_positions(t, picture.vae_grid), latents=picture.latents)
        (self.pending_clean if reads_vit else self.pending).append(clean)
        self.next_order += span
        self.next_t = t + 1

    def take_pending(self, limit: int, keep_last: bool) -> list[TokenSpan]:
        """The first pending pieces, of up to `limit` tokens (but at least one piece)."""
        return _take(self.pending, limit, 1 if keep_last else 0)

    def take_clean(self, limit: int) -> list[TokenSpan]:
        """The same of clean tokens that were kept apart."""
        return _take(self.pending_clean, limit, 0)

    def wrote(self, num_tokens: int) -> None:
        """Pending text tokens have been computed and are in the cache now."""
        for _ in range(num_tokens):
            self.pending.popleft()
        self.num_und += num_tokens


def _take(pieces: deque[TokenSpan], limit: int, keep: int) -> list[TokenSpan]:
    taken: list[TokenSpan] = []
    room = limit
    while len(pieces) > keep and (not taken or len(pieces[0]) <= room):
        taken.append(pieces.popleft())
        room -= len(taken[-1])
    return taken


class History:
    """A request's history in its contexts, kept in step.

    Attributes:
      full, image_only: the contexts; `image_only` is filled always and computed only if needed.
      sizes: of the pictures in it, in order.
    """

    def __init__(self, layout: LayoutConfig, image_pad: int):
        self._layout, self._image_pad = layout, image_pad
        self.full = Context(layout, image_pad)
        self.image_only = Context(layout, image_pad)
        self.sizes: list[tuple[int, int]] = []

    def _reduced_t(self, t: int) -> int | None:
        """The T id in a reduced context: counted anew, or that of the full one."""
        return t if self._layout.drop_positions == "keep" else None

    def add_token(self, token: int, *, is_vision: bool) -> None:
        """Appends a token; vision tokens (around pictures) stand in the image-only context too."""
        t = self.full.next_t
        self.full.add_token(token)
        if is_vision:
            self.image_only.add_token(token, self._reduced_t(t))

    def add_picture(self, picture: EncodedImage) -> None:
        t = self.full.next_t
        self.full.add_picture(picture)
        self.image_only.add_picture(picture, self._reduced_t(t))
        self.sizes.append(picture.size)

    def empty(self, vision_start: int) -> Context:
        """The empty context of the picture that is about to be drawn."""
        context = Context(self._layout, self._image_pad)
        context.add_token(vision_start, self._reduced_t(self.full.next_t - 1))
        return context
