"""TAEF1 in both of its layouts: the author's two files, and diffusers' AutoencoderTiny.

The author's folder holds `taef1_encoder.safetensors` and `taef1_decoder.safetensors`, two chains
whose layers are numbered. diffusers joins both, and counts the decoder's layers from one lower
(its clamp, the original's layer 0, is no layer there).
"""

from __future__ import annotations

from mogao_jax.models.taef1 import FILES, key_table
from mogao_jax.porting.formats.fields import Field, compare
from mogao_jax.porting.tables import Rule
from mogao_jax.porting.tensor_sources import TensorSource
from mogao_jax.porting.transforms import CONV, SAME

NAME = "TAEF1"
LAYOUTS = ("original", "diffusers")

__all__ = ["FILES", "LAYOUTS", "NAME", "check_config", "layout_of", "table", "to_config"]


def table(layout: str) -> tuple[Rule, ...]:
    """The rules of one of LAYOUTS; the original's keys have their half in front."""
    rules = []
    for ours, theirs in key_table().items():
        if layout == "diffusers":
            half, index, rest = theirs.split(".", 2)
            index = str(int(index) - (half == "decoder"))
            theirs = f"{half}.layers.{index}.{rest}"
        rules.append(Rule(theirs, ours, CONV if ours.endswith("kernel") else SAME))
    return tuple(rules)


def layout_of(source: TensorSource) -> str:
    """Which layout a source has."""
    is_diffusers = any(key.startswith("encoder.layers.") for key in source.shapes)
    return "diffusers" if is_diffusers else "original"


def check_config(source: TensorSource) -> None:
    """Raises CheckpointError with every field of diffusers' config.json that is not TAEF1's."""
    fields = [
        Field("_class_name", "", "AutoencoderTiny"),
        Field("latent_channels", "", 16, 4),
        Field("encoder_block_out_channels", "", (64,) * 4, (64,) * 4),
        Field("decoder_block_out_channels", "", (64,) * 4, (64,) * 4),
        Field("num_encoder_blocks", "", (1, 3, 3, 3), (1, 3, 3, 3)),
        Field("num_decoder_blocks", "", (3, 3, 3, 1), (3, 3, 3, 1)),
        Field("act_fn", "", "relu", "relu"),
    ]
    compare(source.config, fields, place=source.place, what=NAME)


def to_config() -> dict:
    """A config.json that diffusers reads."""
    return {
        "_class_name": "AutoencoderTiny",
        "act_fn": "relu",
        "encoder_block_out_channels": [64] * 4,
        "decoder_block_out_channels": [64] * 4,
        "in_channels": 3,
        "latent_channels": 16,
        "num_decoder_blocks": [3, 3, 3, 1],
        "num_encoder_blocks": [1, 3, 3, 3],
        "out_channels": 3,
        "scaling_factor": 1.0,
        "shift_factor": 0.0,
    }
