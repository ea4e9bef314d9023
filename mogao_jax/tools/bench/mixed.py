"""Requests of every kind at once: prompts of the shapes world, cut anywhere, with any options."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mogao_jax.config.geometry import VAE_GRID
from mogao_jax.config.schema import MogaoConfig
from mogao_jax.sampling.lengths import count_tokens
from mogao_jax.sampling.loading import Model
from mogao_jax.sampling.options import SamplingOptions
from mogao_jax.sampling.prompts import fitting_size
from mogao_jax.sampling.requests import Request
from mogao_jax.sequence.document import Document, Item
from mogao_jax.tools.bench.fixtures import world_of
from mogao_jax.worlds.shapes.scene import World
from mogao_jax.worlds.shapes.tasks import TASKS, make_document


def mixed_requests(
    config: MogaoConfig, count: int, *, seed: int, num_steps: int, max_tokens: int
) -> list[Request]:
    """Random requests, the same for a seed.

    Args:
      num_steps: most steps of a picture.
      max_tokens: most tokens that a request may ask for.
    """
    world = world_of(config)
    rngs = [np.random.default_rng([seed, i]) for i in range(count)]
    return [
        Request(
            _prompt(rng, world, f"mixed-{i}"),
            int(rng.integers(2**31)),
            _options(rng, config, num_steps, max_tokens),
        )
        for i, rng in enumerate(rngs)
    ]


def longest(model: Model, requests: Sequence[Request]) -> int:
    """Tokens of the longest prompt, of the kind that it has more of."""
    counts = [count_tokens(r.document, model.config, model.tokenizer) for r in requests]
    return max(max(both) for both in counts)


def _prompt(rng: np.random.Generator, world: World, id: str) -> Document:
    """One to three documents of one form (chats, or plain), the last of them cut."""
    chats, plain = [t for t in TASKS if t != "clip"], ["clip"]
    tasks = plain if rng.random() < 0.15 else chats
    items: list[Item] = []
    for _ in range(int(rng.choice([1, 2, 3], p=[0.6, 0.25, 0.15]))):
        items += make_document(str(rng.choice(tasks)), rng, world)[0].items
    roles = [item for item in items if item.role is not None]
    items = roles or items  # facts may be plain or a chat: one form per document
    return Document(tuple(items[: int(rng.integers(1, len(items) + 1))]), id=id)


def _options(
    rng: np.random.Generator, config: MogaoConfig, num_steps: int, max_tokens: int
) -> SamplingOptions:
    def one_of(*values):
        return values[rng.integers(len(values))]

    draw_first = bool(rng.random() < 0.3)
    low = float(one_of(0.0, 0.0, 0.2))
    return SamplingOptions(
        num_steps=int(rng.integers(1, num_steps + 1)),
        solver=one_of("euler", "euler", "euler", "heun"),
        guidance_scale=one_of(1.0, 2.5, 7.5, 7.5),
        image_guidance_scale=one_of(1.0, 1.5, 1.5, 7.5),
        guidance_interval=(low, one_of(1.0, 1.0, 0.8)),
        timestep_shift=one_of(None, None, 3.0),
        temperature=one_of(0.0, 0.7, 1.0, 1.0),
        top_p=one_of(1.0, 0.9),
        top_k=one_of(0, 0, 5),
        size=one_of(None, _size(rng, config)),
        max_images=int(rng.integers(1, 4)),
        max_tokens=int(rng.integers(1, max_tokens + 1)),
        draw_first=draw_first,
        allow_images=draw_first or bool(rng.random() < 0.8),
    )


def _size(rng: np.random.Generator, config: MogaoConfig) -> tuple[int, int]:
    """Any shape from 1:3 to 3:1, as large as the model draws or down to half of that."""
    shape = float(np.exp(rng.uniform(-1, 1) * np.log(3)))
    height, width = fitting_size(shape, 1.0, config.images)
    if rng.random() < 0.5:
        height, width = (
            max(VAE_GRID, side // 2 // VAE_GRID * VAE_GRID) for side in (height, width)
        )
    return height, width
