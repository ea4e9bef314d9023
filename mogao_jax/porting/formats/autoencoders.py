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
# What the two layouts of FLUX's autoencoder, bfl and diffusers, call the same things.
_PARTS = {
    "norm_out": ("norm_out", "conv_norm_out"),
    "shortcut": ("nin_shortcut", "conv_shortcut"),
    "middle": ("mid.block_{}", "mid_block.resnets.{}"),
    "attention": ("mid.attn_1", "mid_block.attentions.0"),
    "group_norm": ("norm", "group_norm"),
    "to_q": ("q", "to_q"),
    "to_k": ("k", "to_k"),
    "to_v": ("v", "to_v"),
    "to_out": ("proj_out", "to_out.0"),
    "down_blocks": ("down.{}", "down_blocks.{}"),
    "up_blocks": ("up.{}", "up_blocks.{}"),
    "block": ("block.{i}", "resnets.{i}"),
    "downsamplers": ("downsample.conv", "downsamplers.0.conv"),
    "upsamplers": ("upsample.conv", "upsamplers.0.conv"),
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
    compare(source.config, _fields(vae), place=source.place, what=NAMES[vae.kind])


def to_config(vae: VaeConfig) -> dict[str, Any]:
    """A config.json that diffusers reads."""
    fields = {field.theirs: field.wanted for field in _fields(vae)}
    if vae.kind == "taef1":
        return fields | {"scaling_factor": 1.0, "shift_factor": 0.0}
    levels = len(vae.block_channels)
    fields |= {
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "force_upcast": True,
        "sample_size": 1024,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }
    return dict(sorted(fields.items()))


def _fields(vae: VaeConfig) -> list[Field]:
    """What diffusers' config.json must say."""
    if vae.kind == "taef1":
        return [
            Field("_class_name", "", "AutoencoderTiny"),
            Field("act_fn", "", "relu", "relu"),
            Field("encoder_block_out_channels", "", (64,) * 4, (64,) * 4),
            Field("decoder_block_out_channels", "", (64,) * 4, (64,) * 4),
            Field("in_channels", "", 3, 3),
            Field("latent_channels", "", 16, 4),
            Field("num_decoder_blocks", "", (3, 3, 3, 1), (3, 3, 3, 1)),
            Field("num_encoder_blocks", "", (1, 3, 3, 3), (1, 3, 3, 3)),
            Field("out_channels", "", 3, 3),
        ]
    return [
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
    bfl = layout == "bfl"
    names = {part: theirs[not bfl] for part, theirs in _PARTS.items()}
    rules: list[Rule] = []
    for half in ("encoder", "decoder"):
        rules += layer_rules(f"{half}.conv_in", f"{half}.conv_in")
        rules += layer_rules(f"{half}.{names['norm_out']}", f"{half}.conv_norm_out", SAME)
        rules += layer_rules(f"{half}.conv_out", f"{half}.conv_out")
        for i in range(2):
            block = f"{half}.{names['middle'].format(i + bfl)}"
            rules += _resnet(block, f"{half}.mid_block.resnets_{i}", names["shortcut"])
        for ours in ("group_norm", "to_q", "to_k", "to_v", "to_out"):
            rules += layer_rules(
                f"{half}.{names['attention']}.{names[ours]}",
                f"{half}.mid_block.attentions_0.{ours}",
                SAME if ours == "group_norm" else POINTWISE if bfl else LINEAR,
            )
    levels = len(vae.block_channels)
    for level in range(levels):
        up = levels - 1 - level if bfl else level
        for half, way, number in (("encoder", "down", level), ("decoder", "up", up)):
            theirs = f"{half}.{names[f'{way}_blocks'].format(number)}"
            ours = f"{half}.{way}_blocks_{level}"
            rules += _resnet(
                f"{theirs}.{names['block']}", f"{ours}_resnets_{{i}}", names["shortcut"]
            )
            rules += layer_rules(f"{theirs}.{names[f'{way}samplers']}", f"{ours}_{way}samplers_0")
    return rules
