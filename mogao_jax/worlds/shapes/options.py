"""The embedded world as the core's tables know it: the kind "shapes" of sources and tokenizers."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, Literal

from mogao_jax.config.schema import ImageConfig, MogaoConfig, SourceConfig, TokenizerConfig, field
from mogao_jax.registry import Contents, SourceKind
from mogao_jax.tokenizer import BpeTokenizer

_GENERATING = ("t2i", "edit", "story", "clip")
# Tasks in which something follows an image.
_READING = ("qa", "describe", "state", "quiz", "edit", "story", "clip")
_READING_BACK = ("edit", "story", "clip")  # tasks whose images are history of later images


@dataclasses.dataclass(frozen=True)
class ShapesOptions:
    """`config.data.sources.NAME.options` of kind "shapes"."""

    task: Literal["text", "qa", "t2i", "edit", "story", "clip", "describe", "state", "quiz"]
    category: str = field(
        "", "t2i, qa, state and quiz: only documents of this category, for example 'position'"
    )
    world: Literal["free", "grid", "primer", "novel"] = field(
        "free",
        "free: objects anywhere; grid: each inside one VAE token, which small models learn sooner; "
        "primer: a grid with half of the colors and shapes, which is learned in minutes; novel: a "
        "grid of three other shapes",
    )


def _open(config: SourceConfig, *, seed: int, split: str, images: ImageConfig) -> Any:
    from mogao_jax.worlds.shapes.scene import fitting_world
    from mogao_jax.worlds.shapes.world import ShapesSource

    options = ShapesOptions(**config.options)
    world = fitting_world(options.world, images.max_pixels, images.max_side)
    return ShapesSource(options.task, seed, split, world=world, category=options.category)


def _contents(config: SourceConfig) -> Contents:
    task = config.options["task"]
    return Contents(task in _GENERATING, task in _READING, task in _READING_BACK)


SHAPES = SourceKind(ShapesOptions, _open, _contents, needs_path=False, is_endless=True)


def load_tokenizer(config: TokenizerConfig) -> BpeTokenizer:
    """The embedded BPE of 768 tokens (tokenizer.kind="shapes")."""
    del config
    return BpeTokenizer(pathlib.Path(__file__).with_name("tokenizer.json"))


def world_name(config: MogaoConfig) -> str:
    """The world that a model was trained on: of its first source of kind "shapes"."""
    sources = config.data.sources.values()
    found = [ShapesOptions(**s.options).world for s in sources if s.kind == "shapes"]
    return found[0] if found else ShapesOptions.world
