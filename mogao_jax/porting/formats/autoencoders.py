"""FLUX's autoencoder and TAEF1, each in both of its layouts.

FLUX. `bfl`: Black Forest Labs' `ae.safetensors`; levels of the decoder are counted from the
finest, and the attention's projections are 1x1 convolutions. `diffusers`: AutoencoderKL without
quantisation convolutions; levels are counted in the order they run, and the projections are
linear layers.

TAEF1. `original`: a folder with `taef1_encoder.safetensors` and `taef1_decoder.safetensors`, two
chains whose layers are numbered. `diffusers`: AutoencoderTiny, both in one file, with the
decoder's layers counted from one lower (its clamp, the original's layer 0, is no layer there).
"""

from __future__ import annotations

from typing import Any

from mogao_jax.config.schema import VaeConfig
from mogao_jax.key_tables import LINEAR, POINTWISE, SAME, Rule
from mogao_jax.models.taef1 import key_table
from mogao_jax.porting.formats.fields import Field, compare, layer_rules
from mogao_jax.porting.tensor_sources import TensorSource

NAMES = {"flux": "FLUX's autoencoder", "taef1": "TAEF1"}
LAYOUTS = {"flux": ("bfl", "diffusers"), "taef1": ("original", "diffusers")}
# What the two layouts of FLUX's autoencoder call the same things.
_BFL = {
    "norm_out": "norm_out",
    "shortcut": "nin_shortcut",
    "middle": ("mid.block_1", "mid.block_2"),
    "attention": "mid.attn_1",
    "projections": ("norm", "q", "k", "v", "proj_out"),
    "down": "encoder.down.{}",
    "up": "decoder.up.{}",
    "block": "block.{i}",
    "samplers": ("downsample.conv", "upsample.conv"),
}
_DIFFUSERS = {
    "norm_out": "conv_norm_out",
    "shortcut": "conv_shortcut",
    "middle": ("mid_block.resnets.0", "mid_block.resnets.1"),
    "attention": "mid_block.attentions.0",
    "projections": ("group_norm", "to_q", "to_k", "to_v", "to_out.0"),
    "down": "encoder.down_blocks.{}",
    "up": "decoder.up_blocks.{}",
    "block": "resnets.{i}",
    "samplers": ("downsamplers.0.conv", "upsamplers.0.conv"),
}


def table(vae: VaeConfig, layout: str) -> tuple[Rule, ...]:
    """The rules for a config and one of its kind's LAYOUTS.

    TAEF1's original keys have "encoder." or "decoder." in front.
    """
    if vae.kind == "taef1":
        return tuple(
            rule._replace(theirs=_in_diffusers(rule.theirs)) if layout == "diffusers" else rule
            for rule in key_table()
        )
    return tuple(_flux(vae, layout))


def layout_of(source: TensorSource, vae: VaeConfig) -> str:
    """Which of its kind's LAYOUTS a source has."""
    if vae.kind == "taef1":
        is_diffusers = any(key.startswith("encoder.layers.") for key in source.shapes)
        return "diffusers" if is_diffusers else "original"
    return "bfl" if any(key.startswith("encoder.mid.") for key in source.shapes) else "diffusers"


def check_config(source: TensorSource, vae: VaeConfig) -> None:
    """Raises CheckpointError with every field of diffusers' config.json that does not fit ours."""
    if vae.kind == "taef1":
        fields = [
            Field("_class_name", "", "AutoencoderTiny"),
            Field("latent_channels", "", 16, 4),
            Field("encoder_block_out_channels", "", (64,) * 4, (64,) * 4),
            Field("decoder_block_out_channels", "", (64,) * 4, (64,) * 4),
            Field("num_encoder_blocks", "", (1, 3, 3, 3), (1, 3, 3, 3)),
            Field("num_decoder_blocks", "", (3, 3, 3, 1), (3, 3, 3, 1)),
            Field("act_fn", "", "relu", "relu"),
        ]
    else:
        fields = [
            Field("_class_name", "", "AutoencoderKL"),
            Field("in_channels", "", 3, 3),
            Field("out_channels", "", 3, 3),
            Field("block_out_channels", "vae.block_channels", vae.block_channels),
            Field("layers_per_block", "vae.layers_per_block", vae.layers_per_block, 1),
            Field("latent_channels", "vae.latent_channels", vae.latent_channels, 4),
            Field("norm_num_groups", "vae.norm_groups", vae.norm_groups, 32),
            Field("act_fn", "", "silu", "silu"),
            Field("scaling_factor", "vae.scaling_factor", vae.scaling_factor, 0.18215),
            Field("shift_factor", "vae.shift_factor", vae.shift_factor, 0.0),
            Field("use_quant_conv", "", False, True),
            Field("use_post_quant_conv", "", False, True),
            Field("mid_block_add_attention", "", True, True),
        ]
    compare(source.config, fields, place=source.place, what=NAMES[vae.kind])


def to_config(vae: VaeConfig) -> dict[str, Any]:
    """A config.json that diffusers reads."""
    if vae.kind == "taef1":
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
    levels = len(vae.block_channels)
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": list(vae.block_channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "force_upcast": True,
        "in_channels": 3,
        "latent_channels": vae.latent_channels,
        "layers_per_block": vae.layers_per_block,
        "mid_block_add_attention": True,
        "norm_num_groups": vae.norm_groups,
        "out_channels": 3,
        "sample_size": 1024,
        "scaling_factor": vae.scaling_factor,
        "shift_factor": vae.shift_factor,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "use_post_quant_conv": False,
        "use_quant_conv": False,
    }


# ---------------------------------------------------------------------------------------- helpers


def _in_diffusers(theirs: str) -> str:
    half, index, rest = theirs.split(".", 2)
    return f"{half}.layers.{int(index) - (half == 'decoder')}.{rest}"


def _resnet(theirs: str, ours: str, shortcut: str) -> list[Rule]:
    rules = layer_rules(f"{theirs}.{shortcut}", f"{ours}.conv_shortcut")
    for i in (1, 2):
        rules += layer_rules(f"{theirs}.norm{i}", f"{ours}.norm{i}", SAME)
        rules += layer_rules(f"{theirs}.conv{i}", f"{ours}.conv{i}")
    return rules


def _flux(vae: VaeConfig, layout: str) -> list[Rule]:
    names: dict[str, Any] = _BFL if layout == "bfl" else _DIFFUSERS
    rules: list[Rule] = []
    for half in ("encoder", "decoder"):
        rules += layer_rules(f"{half}.conv_in", f"{half}.conv_in")
        rules += layer_rules(f"{half}.{names['norm_out']}", f"{half}.conv_norm_out", SAME)
        rules += layer_rules(f"{half}.conv_out", f"{half}.conv_out")
        for i, block in enumerate(names["middle"]):
            rules += _resnet(f"{half}.{block}", f"{half}.mid_block.resnets_{i}", names["shortcut"])
        theirs, ours = f"{half}.{names['attention']}", f"{half}.mid_block.attentions_0"
        norm, *projections = names["projections"]
        rules += layer_rules(f"{theirs}.{norm}", f"{ours}.group_norm", SAME)
        linear = POINTWISE if layout == "bfl" else LINEAR
        for name, to in zip(projections, ("to_q", "to_k", "to_v", "to_out"), strict=True):
            rules += layer_rules(f"{theirs}.{name}", f"{ours}.{to}", linear)
    levels = len(vae.block_channels)
    for level in range(levels):
        up = levels - 1 - level if layout == "bfl" else level
        for theirs, ours, sampler, ours_sampler in (
            (names["down"].format(level), f"encoder.down_blocks_{level}", 0, "downsamplers_0"),
            (names["up"].format(up), f"decoder.up_blocks_{level}", 1, "upsamplers_0"),
        ):
            block = f"{theirs}.{names['block']}"
            rules += _resnet(block, f"{ours}_resnets_{{i}}", names["shortcut"])
            rules += layer_rules(f"{theirs}.{names['samplers'][sampler]}", f"{ours}_{ours_sampler}")
    return rules
