"""The whole model as Hugging Face lays checkpoints out: shards, index, config.json, model card.

One tensor per parameter and layer, in our own shapes, named as in `params.py`, so that a file
can be read with and without `model.scan_layers`. config.json holds our whole config.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import mogao_jax
from mogao_jax.config.convert import to_dict
from mogao_jax.config.schema import MogaoConfig, VaeConfig, VitConfig
from mogao_jax.models.encoder_weights import EMBEDDED
from mogao_jax.porting.formats.fields import Field, compare
from mogao_jax.porting.tensor_sources import TensorSource

MODEL_TYPE = "mogao"
NAME = "a Mogao model"
ENCODERS = ("vit", "vae")  # folders below it, too
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
_LAYOUT = ("text_positions", "understanding_encoder")
# Fields of the encoders that say how weights are used or where they lie, not what they are.
_FREE = ("weights", "sample_posterior")


def is_mogao(source: TensorSource) -> bool:
    """Whether a source holds a whole model of ours."""
    return source.config.get("model_type") == MODEL_TYPE or "latent_in.kernel" in source.shapes


def check_config(source: TensorSource, config: MogaoConfig) -> None:
    """Raises CheckpointError with every field of its config that makes it another model.

    These also decide which features it learned with: the encoders', of images resized how, at
    which positions. A field that its config does not have has its default.
    """
    usual = MogaoConfig()
    sections: dict[str, tuple[str, ...]]
    sections = {"model": _MEANING, "layout": _LAYOUT, "vae": _fields(config.vae)}
    if config.layout.understanding_encoder == "vit":
        sections |= {"images": ("vit_resize",), "vit": _fields(config.vit)}
    fields = [
        Field(
            f"config.{section}.{name}",
            f"{section}.{name}",
            getattr(getattr(config, section), name),
            getattr(getattr(usual, section), name),
        )
        for section, names in sections.items()
        for name in names
    ]
    compare(source.config, fields, place=source.place, what=NAME)


def _fields(encoder: VaeConfig | VitConfig) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(encoder) if f.name not in _FREE)


def to_config(config: MogaoConfig, *, dtype: str) -> dict[str, Any]:
    """The config.json, which names no place outside its folder."""
    fields = _without_places(to_dict(config))
    for part in ENCODERS:
        if fields[part]["weights"] != EMBEDDED:
            fields[part]["weights"] = part  # the folder that it is written into
    return {
        "architectures": ["Mogao"],
        "model_type": MODEL_TYPE,
        "torch_dtype": dtype,
        "mogao_jax_version": mogao_jax.__version__,
        "config": fields,
    }


def _without_places(value: Any) -> Any:
    """A config with "" for whatever is an absolute path: it means nothing on another machine."""
    if isinstance(value, dict):
        return {key: _without_places(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [_without_places(x) for x in value]
    kinds = pathlib.PurePosixPath, pathlib.PureWindowsPath
    is_place = isinstance(value, str) and (
        value.startswith("~") or any(kind(value).is_absolute() for kind in kinds)
    )
    return "" if is_place else value
