"""Putting a config's modules together: the model, the frozen encoders, initial parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from mogao_jax.config.schema import MogaoConfig
from mogao_jax.errors import ConfigError
from mogao_jax.models.encoder_weights import load_vae, load_vit
from mogao_jax.models.mogao import LATENT_PATCH, Mogao, build, example_inputs, vit_feature_shape
from mogao_jax.sharding import rules

# Parts that parameters are counted by, in the order of a report.
PARTS = {
    "embedding": ("token_embedding",),
    "und branch": ("und",),
    "gen branch": ("gen",),
    "AdaLN": ("adaln",),
}


class EncoderParams(NamedTuple):
    """Frozen parameters; `vit` is None where understanding goes through the VAE."""

    vae: Any
    vit: Any


@dataclasses.dataclass(frozen=True, eq=False)
class System:
    """The modules that a config describes. Compared by identity, so that jit can close over it."""

    config: MogaoConfig
    model: Mogao
    vae: nn.Module
    vit: nn.Module | None
    sources: tuple[str, ...]  # names of the data sources, for metrics


def make_system(config: MogaoConfig, vocab_size: int) -> tuple[System, EncoderParams]:
    """The modules of a config, and its frozen encoders' parameters.

    Raises:
      CheckpointError, ConfigError: weights that are missing, damaged or of another shape.
    """
    uses_vit = config.layout.understanding_encoder == "vit"
    vae = load_vae(config.vae)
    vit = load_vit(config.vit) if uses_vit else None
    system = System(
        config=config,
        model=make_model(config, vocab_size),
        vae=vae.module,
        vit=vit.module if vit else None,
        sources=tuple(config.data.sources),
    )
    return system, EncoderParams(vae.params, vit.params if vit else None)


def make_model(config: MogaoConfig, vocab_size: int) -> Mogao:
    """The trainable model of a config; `vocab_size` is the tokenizer's."""
    rows = config.model.vocab_size or vocab_size
    if rows < vocab_size:
        raise ConfigError(
            f"config.model.vocab_size is {rows}, but the tokenizer has {vocab_size} tokens; "
            "set it to 0 (as many as the tokenizer has) or higher."
        )
    return build(
        config.model,
        config.vae,
        config.vit,
        vocab_size=rows,
        text_reads_vae=config.layout.understanding_encoder == "vae",
    )


def init_params(config: MogaoConfig, model: Mogao, key: jax.Array) -> Any:
    """Initial parameters, boxed with logical axis names. Parameters know no sequence length."""
    num_patches = config.vit.merge_size**2
    inputs = example_inputs(
        (1, 4, 4, 4, 1),
        config.vae.latent_channels * LATENT_PATCH**2,
        vit_feature_shape(config.vit, config.model.connector, num_patches),
    )
    return model.init(key, inputs)["params"]


def param_shapes(config: MogaoConfig, model: Mogao) -> Any:
    """The parameters' names, shapes and dtypes (ShapeDtypeStructs, unboxed); nothing computed."""
    return rules.unbox(jax.eval_shape(lambda: init_params(config, model, jax.random.key(0))))


def part_of(names: Sequence[str]) -> str:
    """The part that a parameter counts to, by the names on its path."""
    return next((p for p, keys in PARTS.items() if set(keys) & set(names)), names[0])


def count_parameters(params: Any) -> dict[str, int]:
    """Number of parameters per part: the first part whose module lies on the path, else by name.

    Args:
      params: arrays or their shapes, boxed or not.
    """
    counts: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(rules.unbox(params)):
        names = [str(k.key) for k in path if isinstance(k, jax.tree_util.DictKey)]
        part = part_of(names)
        counts[part] = counts.get(part, 0) + leaf.size
    return counts
