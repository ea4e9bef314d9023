"""The embedded world: coloured shapes on canvases of many sizes, with the truth known.

from mogao_jax.worlds.shapes.placement import random_scene
from mogao_jax.worlds.shapes.render import render
from mogao_jax.worlds.shapes.world import ShapesSource
"""

import pathlib

from mogao_jax import registry

_HERE = pathlib.Path(__file__).resolve().parent

registry.SOURCES.register("shapes", "mogao_jax.worlds.shapes.options:SHAPES")
registry.TOKENIZERS.register("shapes", "mogao_jax.worlds.shapes.options:load_tokenizer")
registry.EMBEDDED_WEIGHTS.register("vae", _HERE / "assets/tiny_vae.safetensors")
registry.EMBEDDED_WEIGHTS.register("vit", _HERE / "assets/tiny_vit.safetensors")
registry.CHECKPOINTS.register("demo", _HERE / "assets/demo.safetensors")
registry.COMMANDS.register(
    "encoders",
    registry.Command(
        "train the tiny encoders that ship with the package",
        "mogao_jax.worlds.shapes.commands.encoders:main",
    ),
)
registry.EVALS.register(
    "shapes",
    registry.Command(
        "exact scores on held-out prompts of the embedded world; --validate checks the scorer",
        "mogao_jax.worlds.shapes.commands.eval:main",
    ),
)
