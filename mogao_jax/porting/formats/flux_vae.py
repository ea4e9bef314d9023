"""FLUX's autoencoder in both of its layouts.

`bfl`: Black Forest Labs' `ae.safetensors`; levels of the decoder are counted from the finest, and
the attention's projections are 1x1 convolutions. `diffusers`: AutoencoderKL without quantisation
convolutions; levels are counted in the order they run, and the projections are linear layers.
"""

from __future__ import annotations

from mogao_jax.config.schema import VaeConfig
from mogao_jax.porting.formats.fields import Field, compare
from mogao_jax.porting.tables import Rule
from mogao_jax.porting.tensor_sources import TensorSource
from mogao_jax.porting.transforms import CONV, LINEAR, POINTWISE, SAME, Transform

NAME = "FLUX's autoencoder"
LAYOUTS = ("bfl", "diffusers")


def table(vae: VaeConfig, layout: str) -> tuple[Rule, ...]:
    """The rules for a config and one of LAYOUTS."""
    return tuple(_bfl(vae) if layout == "bfl" else _diffusers(vae))


def layout_of(source: TensorSource) -> str:
    """Which layout a file has: only Black Forest Labs' names have the part "mid."."""
    return "bfl" if any(key.startswith("encoder.mid.") for key in source.shapes) else "diffusers"


def check_config(source: TensorSource, vae: VaeConfig) -> None:
    """Raises CheckpointError with every field of diffusers' config.json that does not fit ours."""
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
    compare(source.config, fields, place=source.place, what=NAME)


def to_config(vae: VaeConfig) -> dict:
    """A config.json that diffusers reads."""
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


def _conv(theirs: str, ours: str, transform: Transform = CONV) -> list[Rule]:
    return [
        Rule(f"{theirs}.weight", f"{ours}.kernel", transform),
        Rule(f"{theirs}.bias", f"{ours}.bias"),
    ]


def _norm(theirs: str, ours: str) -> list[Rule]:
    return [Rule(f"{theirs}.weight", f"{ours}.scale", SAME), Rule(f"{theirs}.bias", f"{ours}.bias")]


def _resnet(theirs: str, ours: str, shortcut: str) -> list[Rule]:
    rules = _conv(f"{theirs}.{shortcut}", f"{ours}.conv_shortcut")
    for i in (1, 2):
        rules += _norm(f"{theirs}.norm{i}", f"{ours}.norm{i}")
        rules += _conv(f"{theirs}.conv{i}", f"{ours}.conv{i}")
    return rules


def _bfl(vae: VaeConfig) -> list[Rule]:
    levels = len(vae.block_channels)
    rules: list[Rule] = []
    for half in ("encoder", "decoder"):
        mid, ours = f"{half}.mid", f"{half}.mid_block"
        rules += _conv(f"{half}.conv_in", f"{half}.conv_in")
        rules += _norm(f"{half}.norm_out", f"{half}.conv_norm_out")
        rules += _conv(f"{half}.conv_out", f"{half}.conv_out")
        for i in (0, 1):
            rules += _resnet(f"{mid}.block_{i + 1}", f"{ours}.resnets_{i}", "nin_shortcut")
        rules += _norm(f"{mid}.attn_1.norm", f"{ours}.attentions_0.group_norm")
        for theirs, name in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out")):
            rules += _conv(f"{mid}.attn_1.{theirs}", f"{ours}.attentions_0.{name}", POINTWISE)
    for level in range(levels):
        down, up = f"encoder.down_blocks_{level}", f"decoder.up_blocks_{levels - 1 - level}"
        theirs_down, theirs_up = f"encoder.down.{level}", f"decoder.up.{level}"
        rules += _resnet(f"{theirs_down}.block.{{i}}", f"{down}_resnets_{{i}}", "nin_shortcut")
        rules += _resnet(f"{theirs_up}.block.{{i}}", f"{up}_resnets_{{i}}", "nin_shortcut")
        rules += _conv(f"{theirs_down}.downsample.conv", f"{down}_downsamplers_0")
        rules += _conv(f"{theirs_up}.upsample.conv", f"{up}_upsamplers_0")
    return rules


def _diffusers(vae: VaeConfig) -> list[Rule]:
    rules: list[Rule] = []
    for half in ("encoder", "decoder"):
        mid = f"{half}.mid_block"
        attention = f"{mid}.attentions.0", f"{mid}.attentions_0"
        for name in ("conv_in", "conv_out"):
            rules += _conv(f"{half}.{name}", f"{half}.{name}")
        rules += _norm(f"{half}.conv_norm_out", f"{half}.conv_norm_out")
        rules += _resnet(f"{mid}.resnets.{{i}}", f"{mid}.resnets_{{i}}", "conv_shortcut")
        rules += _norm(f"{attention[0]}.group_norm", f"{attention[1]}.group_norm")
        for theirs, ours in (("to_q",) * 2, ("to_k",) * 2, ("to_v",) * 2, ("to_out.0", "to_out")):
            rules += _conv(f"{attention[0]}.{theirs}", f"{attention[1]}.{ours}", LINEAR)
    for level in range(len(vae.block_channels)):
        for theirs, sampler in (
            (f"encoder.down_blocks.{level}", "downsamplers"),
            (f"decoder.up_blocks.{level}", "upsamplers"),
        ):
            ours = theirs.replace("blocks.", "blocks_")
            rules += _resnet(f"{theirs}.resnets.{{i}}", f"{ours}_resnets_{{i}}", "conv_shortcut")
            rules += _conv(f"{theirs}.{sampler}.0.conv", f"{ours}_{sampler}_0")
    return rules
