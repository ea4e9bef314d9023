"""What is measured: a model, trained or of random parameters, and what it is asked.

Speed depends on the shapes of parameters alone, so that a config is enough to measure it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from mogao_jax.config.schema import MogaoConfig
from mogao_jax.models.modules import load_modules, param_shapes
from mogao_jax.sampling.loading import Model
from mogao_jax.sampling.options import SamplingOptions
from mogao_jax.sampling.prompts import fitting_size
from mogao_jax.sampling.requests import Request
from mogao_jax.sampling.sampler import Sampler
from mogao_jax.sequence.document import Document
from mogao_jax.tokenizer import Tokenizer, load_tokenizer
from mogao_jax.worlds.shapes.scene import WORLDS, World
from mogao_jax.worlds.shapes.tasks import make_document

RANDOM = "random"  # what `Model.weights` says of random parameters
# Of random parameters only this many text tokens may be written, the end and <|vision_start|>
# beside them: all three kinds come up often then.
_FEW_TOKENS = 12


def random_model(config: MogaoConfig, seed: int = 0) -> Model:
    """A model of a config with random parameters, none of them zero: it writes and draws noise."""
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


def write_few_tokens(sampler: Sampler, tokenizer: Tokenizer) -> None:
    """Lets a sampler of random parameters come to pictures and to an end soon."""
    special = (tokenizer.vision_start, tokenizer.im_end, tokenizer.endoftext)
    text = [int(i) for i in np.nonzero(sampler.allowed)[0] if i not in special]
    few = text[:: max(1, len(text) // _FEW_TOKENS)][:_FEW_TOKENS]
    sampler.allowed[:] = False
    sampler.allowed[[*few, *special]] = True


def world_of(config: MogaoConfig) -> World:
    """The shapes world, with pictures as large as the model sees them."""
    images = config.images
    area = min(images.max_pixels, images.max_side**2)
    world = WORLDS[config.data.world]
    world = world.scaled(max(math.isqrt(area // world.max_pixels), 1))
    return world.fitting(images.max_pixels, images.max_side)


def picture_requests(config: MogaoConfig, count: int, num_steps: int) -> list[Request]:
    """Edits: a picture and an instruction, and another of the same size to be drawn at once.

    All three contexts differ: everything, the picture alone, nothing.
    """
    world = world_of(config)
    canvas = max(world.canvases, key=math.prod)
    world = dataclasses.replace(world, canvases=(canvas,))
    size = fitting_size(*canvas, config.images)
    options = SamplingOptions(num_steps=num_steps, draw_first=True, max_images=1, size=size)
    requests = []
    for seed in range(count):
        document, _ = make_document("edit", np.random.default_rng(seed), world, id=f"edit-{seed}")
        prompt = Document(document.items[:-1], id=document.id)
        requests.append(Request(prompt, seed, options))
    return requests


def text_requests(count: int, num_tokens: int) -> list[Request]:
    """Questions of pure text to be answered in exactly so many tokens, if nothing ends them."""
    options = SamplingOptions(max_tokens=num_tokens, allow_images=False)
    requests = []
    for seed in range(count):
        document, _ = make_document("text", np.random.default_rng(seed), id=f"text-{seed}")
        prompt = Document(document.items[:1], id=document.id)
        requests.append(Request(prompt, seed, options))
    return requests
