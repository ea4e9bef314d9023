"""The whole model as Hugging Face lays checkpoints out: shards, index, config.json, model card.

One tensor per parameter and layer, in our own shapes, named by slots (`slots.py`), so that a file
can be read with and without `model.scan_layers`. config.json holds our whole config.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import mogao_jax
from mogao_jax.config.convert import to_dict
from mogao_jax.config.schema import MogaoConfig
from mogao_jax.porting.formats.fields import Field, compare
from mogao_jax.porting.sources import TensorSource
from mogao_jax.porting.tables import Rule

MODEL_TYPE = "mogao"
NAME = "a Mogao model"
# Fields of `model` that decide what the parameters mean (the others: how they are computed).
_MEANING = (
    "num_layers",
    "embed_dim",
    "mlp_dim",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "rms_norm_eps",
    "tie_embeddings",
    "fusion",
    "rope",
    "rope_theta",
    "rope_tail",
    "timestep_embed_dim",
    "timestep_scale",
    "velocity_head",
    "connector",
)


def table(names: Iterable[str]) -> tuple[Rule, ...]:
    """The rules: every parameter under its own name."""
    return tuple(Rule(name, name) for name in names)


def is_mogao(source: TensorSource) -> bool:
    """Whether a source holds a whole model of ours."""
    return source.config.get("model_type") == MODEL_TYPE or "latent_in.kernel" in source.shapes


def check_config(source: TensorSource, config: MogaoConfig) -> None:
    """Raises CheckpointError with every field of its config that makes it another model."""
    fields = [
        Field(f"config.model.{name}", f"model.{name}", getattr(config.model, name))
        for name in _MEANING
    ]
    compare(source.config, fields, place=source.place, what=NAME)


def to_config(config: MogaoConfig, *, dtype: str) -> dict[str, Any]:
    """The config.json."""
    return {
        "architectures": ["Mogao"],
        "model_type": MODEL_TYPE,
        "torch_dtype": dtype,
        "mogao_jax_version": mogao_jax.__version__,
        "config": to_dict(config),
    }
