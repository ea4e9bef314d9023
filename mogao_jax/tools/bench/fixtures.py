"""What is measured: a model, trained or of random parameters, and the requests it is given.

Speed depends on the shapes of parameters alone, so a config is enough to measure it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from mogao_jax.config.geometry import VAE_GRID
from mogao_jax.config.schema import MogaoConfig
from mogao_jax.models.modules import load_modules, param_shapes
from mogao_jax.sampling import pipeline
from mogao_jax.sampling.loading import Model
from mogao_jax.sampling.options import SamplingOptions, fitting_size
from mogao_jax.sampling.requests import Limits, Request, count_tokens, load_images
from mogao_jax.sampling.sampler import Sampler
from mogao_jax.sequence.document import Document, Item
from mogao_jax.sequence.elements import apply_chat_template
from mogao_jax.tokenizer import load_tokenizer
from mogao_jax.worlds.shapes.options import world_name
from mogao_jax.worlds.shapes.scene import DEFAULT_WORLD, WORLDS, World
from mogao_jax.worlds.shapes.tasks import TASKS, make_document

RANDOM = "random"  # `Model.weights` of random parameters
# With random parameters only this many text tokens may be sampled, beside the end of a turn and
# <|vision_start|>: texts, images and ends then all come up often.
_FEW_TOKENS = 12


def random_model(config: MogaoConfig, seed: int = 0) -> Model:
    """A model of a config with random parameters, none of them zero; its outputs are noise."""
    tokenizer = load_tokenizer(config.tokenizer)
    modules, encoders = load_modules(config, tokenizer.vocab_size)
    rng = np.random.default_rng(seed)

    def draw(path: Any, shape: jax.ShapeDtypeStruct) -> jax.Array:
        name, normal = path[-1].key, rng.standard_normal(shape.shape, np.float32)
        if name == "kernel":
            value = normal * max(shape.shape[:-1]) ** -0.5
        else:
            value = 0.1 * normal + (name == "scale")
        return jax.device_put(value.astype(shape.dtype))

    params = jax.tree_util.tree_map_with_path(draw, param_shapes(config, modules.model))
    return Model(modules, params, encoders, tokenizer, config.name, 0, RANDOM)


def make_sampler(
    model: Model, max_length: int | None, batch_size: int, *, few_tokens: bool = False
) -> Sampler:
    """A sampler of the model; `few_tokens` lets random parameters come to images and ends soon."""
    sampler = pipeline.make_sampler(model, batch_size, max_length)
    if few_tokens and model.weights == RANDOM:
        allow_few_tokens(sampler.allowed, model.tokenizer)
    return sampler


def allow_few_tokens(allowed: np.ndarray, tokenizer: Any) -> None:
    """Leaves some text tokens, the ends and <|vision_start|> in bool[V], in place."""
    special = (tokenizer.vision_start, tokenizer.im_end, tokenizer.endoftext)
    text = np.setdiff1d(np.flatnonzero(allowed), special)
    few = text[:: max(1, len(text) // _FEW_TOKENS)][:_FEW_TOKENS]
    allowed[:] = False
    allowed[[*few, *special]] = True


# ----------------------------------------------------------------------------- requests of one kind


def image_requests(config: MogaoConfig, count: int, num_steps: int) -> list[Request]:
    """Edits: an image and an instruction; an image of the same size is generated at once.

    All three contexts differ: everything, the image alone, nothing.
    """
    world = _world(config)
    canvas = max(world.canvases, key=math.prod)
    world = dataclasses.replace(world, canvases=(canvas,))
    size = fitting_size(*canvas, config.images)
    options = SamplingOptions(num_steps=num_steps, draw_first=True, max_images=1, size=size)
    return [_request("edit", world, seed, slice(-1), options) for seed in range(count)]


def text_requests(count: int, num_tokens: int) -> list[Request]:
    """Questions of pure text, answered in exactly so many tokens if nothing ends them."""
    options = SamplingOptions(max_tokens=num_tokens, allow_images=False)
    return [_request("text", DEFAULT_WORLD, seed, slice(1), options) for seed in range(count)]


def _request(
    task: str, world: World, seed: int, prompt: slice, options: SamplingOptions
) -> Request:
    document, _ = make_document(task, np.random.default_rng(seed), world, id=f"{task}-{seed}")
    return Request(Document(document.items[prompt], id=document.id), seed, options)


def _world(config: MogaoConfig) -> World:
    """The shapes world, with images as large as the model sees them."""
    images = config.images
    area = min(images.max_pixels, images.max_side**2)
    world = WORLDS[world_name(config)]
    world = world.scaled(max(math.isqrt(area // world.max_pixels), 1))
    return world.fitting(images.max_pixels, images.max_side)


# --------------------------------------------------------------------------- requests of every kind


def mixed_requests(
    config: MogaoConfig, count: int, *, seed: int, num_steps: int, max_tokens: int
) -> list[Request]:
    """Random prompts of the shapes world, cut anywhere, with random options; fixed by the seed.

    An image has at most `num_steps` steps, and a request asks for at most `max_tokens` tokens.
    """
    world, requests = _world(config), []
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        prompt, new_seed = _mixed_prompt(rng, world, f"mixed-{i}"), int(rng.integers(2**31))
        options = _mixed_options(rng, config, num_steps, max_tokens)
        requests.append(Request(prompt, new_seed, options))
    return requests


def longest(model: Model, requests: Sequence[Request]) -> int:
    """Tokens of the longest prompt: the und or the clean tokens, whichever are more."""

    def count(document: Document) -> Limits:
        document, _ = load_images(document, model.config)
        elements = apply_chat_template(document, model.tokenizer, add_generation_prompt=True)
        return count_tokens(document, elements, model.config)

    return max(max(count(r.document)) for r in requests)


def _mixed_prompt(rng: np.random.Generator, world: World, id: str) -> Document:
    """One to three documents of one form (chats, or plain), the last of them cut."""
    chats, plain = [t for t in TASKS if t != "clip"], ["clip"]
    tasks = plain if rng.random() < 0.15 else chats
    items: list[Item] = []
    for _ in range(int(rng.choice([1, 2, 3], p=[0.6, 0.25, 0.15]))):
        items += make_document(str(rng.choice(tasks)), rng, world)[0].items
    roles = [item for item in items if item.role is not None]
    items = roles or items  # facts may be plain or a chat: one form per document
    return Document(tuple(items[: int(rng.integers(1, len(items) + 1))]), id=id)


def _mixed_options(
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
        size=one_of(None, _mixed_size(rng, config)),
        max_images=int(rng.integers(1, 4)),
        max_tokens=int(rng.integers(1, max_tokens + 1)),
        draw_first=draw_first,
        allow_images=draw_first or bool(rng.random() < 0.8),
    )


def _mixed_size(rng: np.random.Generator, config: MogaoConfig) -> tuple[int, int]:
    """Any shape from 1:3 to 3:1, of the model's full area or down to half of each side."""
    shape = float(np.exp(rng.uniform(-1, 1) * np.log(3)))
    height, width = fitting_size(shape, 1.0, config.images)
    if rng.random() < 0.5:
        height, width = (max(VAE_GRID, n // 2 // VAE_GRID * VAE_GRID) for n in (height, width))
    return height, width
