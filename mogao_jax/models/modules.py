"""Putting a config's modules together: the model, the frozen encoders, initial parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mogao_jax.config.schema import MogaoConfig
from mogao_jax.errors import ConfigError
from mogao_jax.models.encoder_weights import load_vae, load_vit, vae_template, vit_template
from mogao_jax.models.mogao import Mogao, example_inputs
from mogao_jax.models.taef1 import Taef1
from mogao_jax.models.vae import FluxVae
from mogao_jax.models.vit import VisionTower, stacked
from mogao_jax.ops.attention.api import resolve
from mogao_jax.sharding import rules

# Parts that parameters are counted by, in the order of a report.
PARTS = {
    "embedding": ("token_embedding",),
    "und branch": ("und",),
    "gen branch": ("gen",),
    "AdaLN": ("adaln",),
}


class EncoderParams(NamedTuple):
    """Frozen parameters; `vit` is None where understanding goes through the VAE.

    With `model.scan_layers` the ViT's blocks are `stacked` too (models/vit.py).
    """

    vae: Any
    vit: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Modules:
    """The modules that a config describes. Compared by identity, so that jit can close over it."""

    config: MogaoConfig
    model: Mogao
    vae: nn.Module
    vit: nn.Module | None
    sources: tuple[str, ...]  # names of the data sources, for metrics


def load_modules(
    config: MogaoConfig, vocab_size: int, platform: str | None = None
) -> tuple[Modules, EncoderParams]:
    """The modules of a config, and its frozen encoders' parameters.

    Args:
      platform: see `make_model`.
    Raises:
      CheckpointError, ConfigError: weights that are missing, damaged or of another shape.
    """
    modules = make_modules(config, vocab_size, platform)
    return modules, load_encoders(modules)


def load_encoders(modules: Modules) -> EncoderParams:
    """The frozen encoders' parameters; raises as `load_modules`."""
    config = modules.config
    vit = load_vit(config.vit).params if modules.vit else None
    vit = stacked(vit) if vit and config.model.scan_layers else vit
    return EncoderParams(load_vae(config.vae).params, vit)


def encoder_shapes(modules: Modules) -> EncoderParams:
    """As `load_encoders`, as ShapeDtypeStructs; no file is read."""
    config = modules.config
    vit = vit_template(config.vit) if modules.vit else None
    if vit and config.model.scan_layers:
        vit = jax.eval_shape(lambda vit: stacked(vit, jnp.stack), vit)
    return EncoderParams(vae_template(config.vae), vit)


def make_modules(config: MogaoConfig, vocab_size: int, platform: str | None = None) -> Modules:
    """The modules of a config alone; no weights are read. `platform`: see `make_model`."""
    model = make_model(config, vocab_size, platform)
    vit = VisionTower(config.vit, attention=model.config.attention.implementation)
    return Modules(
        config=config,
        model=model,
        vae=Taef1(config.vae) if config.vae.kind == "taef1" else FluxVae(config.vae),
        vit=vit if config.layout.understanding_encoder == "vit" else None,
        sources=tuple(config.data.sources),
    )


def make_model(config: MogaoConfig, vocab_size: int, platform: str | None = None) -> Mogao:
    """The trainable model of a config; `vocab_size` is the tokenizer's.

    Args:
      platform: of the devices it is compiled for ("cpu", "gpu", "tpu"), which settles what the
        config leaves open (`model.config.attention` has nothing left to choose); None: those of
        this process.
    """
    rows = config.model.vocab_size or vocab_size
    if rows < vocab_size:
        raise ConfigError(
            f"config.model.vocab_size is {rows}, but the tokenizer has {vocab_size} tokens; "
            "set it to 0 (as many as the tokenizer has) or higher."
        )
    attention = resolve(config.model.attention, platform or jax.default_backend())
    return Mogao(
        dataclasses.replace(config.model, attention=attention),
        config.vae,
        config.vit,
        vocab_size=rows,
        text_reads_vae=config.layout.understanding_encoder == "vae",
    )


def init_params(config: MogaoConfig, model: Mogao, key: jax.Array) -> Any:
    """Initial parameters, boxed with logical axis names. Parameters know no sequence length."""
    return model.init(key, example_inputs(model, (1, 4, 4, 4, 1)))["params"]


def param_shapes(config: MogaoConfig, model: Mogao) -> Any:
    """The parameters' names, shapes and dtypes (ShapeDtypeStructs, unboxed); nothing computed."""
    return rules.unbox(jax.eval_shape(lambda: init_params(config, model, jax.random.key(0))))


def part_of(names: Sequence[str]) -> str:
    """The part that a parameter counts to, by the names on its path."""
    return next((p for p, keys in PARTS.items() if set(keys) & set(names)), names[0])


def is_of_llm(names: Sequence[str]) -> bool:
    """Whether a parameter comes with a language model, by the names on its path."""
    return part_of(names) in ("embedding", "und branch", "final_norm", "lm_head")


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
