"""What recipes on the embedded world share: mixtures of its sources, and its tiny encoders."""

from __future__ import annotations

from collections.abc import Mapping

from ml_collections import ConfigDict

from mogao_jax.config import source
from mogao_jax.worlds.shapes.scene import WORLDS


def mixture(
    weights: Mapping[str, float],
    *,
    world: str,
    ntp_weights: Mapping[str, float] | None = None,
    prefix: str = "",
) -> dict[str, ConfigDict]:
    """Data sources of kind "shapes".

    Args:
      weights: share in the mixture by name, TASK or TASK_CATEGORY: "t2i", "t2i_counting".
      world: of all of them (WORLDS of mogao_jax/worlds/shapes/scene.py).
      prefix: of the sources' names, where a mixture has several worlds.
      ntp_weights: loss weight of text tokens by name, or else by task; 1 where it has neither.
    """
    ntp_weights = ntp_weights or {}
    made = {}
    for name, weight in weights.items():
        task, _, category = name.partition("_")
        made[prefix + name] = source(
            kind="shapes",
            task=task,
            category=category,
            world=world,
            weight=weight,
            ntp_weight=ntp_weights.get(name, ntp_weights.get(task, 1.0)),
        )
    return made


def about(*worlds: str) -> str:
    """What a model that was trained on these worlds knows, for `config.about`."""
    shapes = dict.fromkeys(shape for world in worlds for shape in WORLDS[world].shapes)
    return f"colored shapes on a plain background ({', '.join(shapes)})"


def tiny_vae(c: ConfigDict) -> None:
    """The embedded autoencoder, with the scaling and shift measured on it."""
    c.vae.weights = "embedded"
    c.vae.block_channels = (8, 16, 32, 64)
    c.vae.layers_per_block = 1
    c.vae.norm_groups = 4
    c.vae.scaling_factor = 1.5948
    c.vae.shift_factor = 0.0201
    c.vae.sample_posterior = False


def tiny_vit(c: ConfigDict) -> None:
    """The embedded vision tower, trained on coloured shapes."""
    c.vit.weights = "embedded"
    c.vit.depth = 4
    c.vit.embed_dim = 96
    c.vit.num_heads = 4
    c.vit.mlp_dim = 384
