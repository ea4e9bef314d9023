"""Tiny random checkpoints in others' layouts, written with the safetensors library itself.

Keys and shapes are spelled out here from the formats' own definitions (transformers' and
diffusers' module names), not from our tables.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping

import ml_dtypes
import numpy as np
import safetensors.numpy

from mogao_jax.config.schema import ModelConfig, MogaoConfig, VaeConfig, VitConfig

VOCAB = 300
MODEL = ModelConfig(num_layers=3, embed_dim=32, mlp_dim=48, num_heads=4, num_kv_heads=2,
                    head_dim=8, timestep_embed_dim=16, vocab_size=VOCAB)  # fmt: skip
VIT = VitConfig(depth=2, embed_dim=16, num_heads=2, mlp_dim=64)
VAE = VaeConfig(block_channels=(4, 4, 8, 8), layers_per_block=2, norm_groups=2)
CONFIG = MogaoConfig(name="tiny", model=MODEL, vit=VIT, vae=VAE)
VIT_OUT = 24  # the merger's width
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def values(shapes: dict[str, tuple[int, ...]], dtype: str = "float32", seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    return {
        key: rng.standard_normal(shape, np.float32).astype(DTYPES[dtype])
        for key, shape in shapes.items()
    }


def qwen2_shapes(model: ModelConfig = MODEL, vocab: int = VOCAB) -> dict[str, tuple[int, ...]]:
    d, f, h = model.embed_dim, model.mlp_dim, model.head_dim
    q, kv = model.num_heads * h, model.num_kv_heads * h
    shapes = {"model.embed_tokens.weight": (vocab, d), "model.norm.weight": (d,)}
    for i in range(model.num_layers):
        p = f"model.layers.{i}"
        shapes |= {
            f"{p}.self_attn.q_proj.weight": (q, d), f"{p}.self_attn.q_proj.bias": (q,),
            f"{p}.self_attn.k_proj.weight": (kv, d), f"{p}.self_attn.k_proj.bias": (kv,),
            f"{p}.self_attn.v_proj.weight": (kv, d), f"{p}.self_attn.v_proj.bias": (kv,),
            f"{p}.self_attn.o_proj.weight": (d, q),
            f"{p}.mlp.gate_proj.weight": (f, d), f"{p}.mlp.up_proj.weight": (f, d),
            f"{p}.mlp.down_proj.weight": (d, f),
            f"{p}.input_layernorm.weight": (d,), f"{p}.post_attention_layernorm.weight": (d,),
        }  # fmt: skip
    return shapes if model.tie_embeddings else {**shapes, "lm_head.weight": (vocab, d)}


def qwen2_config(model: ModelConfig = MODEL, vocab: int = VOCAB) -> dict:
    return {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu",
        "hidden_size": model.embed_dim, "intermediate_size": model.mlp_dim,
        "num_attention_heads": model.num_heads, "num_hidden_layers": model.num_layers,
        "num_key_value_heads": model.num_kv_heads, "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0, "tie_word_embeddings": model.tie_embeddings,
        "use_sliding_window": False, "vocab_size": vocab, "torch_dtype": "bfloat16",
    }  # fmt: skip


def vision_shapes(vit: VitConfig = VIT, out: int = VIT_OUT) -> dict[str, tuple[int, ...]]:
    d, f, wide = vit.embed_dim, vit.mlp_dim, vit.embed_dim * vit.merge_size**2
    shapes = {
        "patch_embed.proj.weight": (d, 3, vit.temporal_patch_size, vit.patch_size, vit.patch_size),
        "merger.ln_q.weight": (d,), "merger.ln_q.bias": (d,),
        "merger.mlp.0.weight": (wide, wide), "merger.mlp.0.bias": (wide,),
        "merger.mlp.2.weight": (out, wide), "merger.mlp.2.bias": (out,),
    }  # fmt: skip
    for i in range(vit.depth):
        for name, shape in {
            "norm1": (d,), "norm2": (d,), "attn.qkv": (3 * d, d), "attn.proj": (d, d),
            "mlp.fc1": (f, d), "mlp.fc2": (d, f),
        }.items():  # fmt: skip
            shapes[f"blocks.{i}.{name}.weight"] = shape
            shapes[f"blocks.{i}.{name}.bias"] = shape[:1]
    return shapes


def vision_config(vit: VitConfig = VIT, out: int = VIT_OUT) -> dict:
    return {
        "model_type": "qwen2_vl_vision", "depth": vit.depth, "embed_dim": vit.embed_dim,
        "hidden_act": "quick_gelu", "hidden_size": out, "in_channels": 3, "mlp_ratio": 4,
        "num_heads": vit.num_heads, "patch_size": 14, "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }  # fmt: skip


def vae_shapes(layout: str, vae: VaeConfig = VAE) -> dict[str, tuple[int, ...]]:
    """FLUX's autoencoder, layer by layer as it runs."""
    shapes: dict[str, tuple[int, ...]] = {}
    bfl = layout == "bfl"
    widths = vae.block_channels
    last = len(widths) - 1

    def layer(name, out, into=None, side=3):
        shapes[f"{name}.weight"] = (
            (out,) if into is None else (out, into, side, side)[: 2 + 2 * (side > 0)]
        )
        shapes[f"{name}.bias"] = (out,)

    def resnet(name, into, out):
        layer(f"{name}.norm1", into)
        layer(f"{name}.conv1", out, into)
        layer(f"{name}.norm2", out)
        layer(f"{name}.conv2", out, out)
        if into != out:
            layer(f"{name}.{'nin_shortcut' if bfl else 'conv_shortcut'}", out, into, side=1)

    def middle(half, c):
        if bfl:
            resnet(f"{half}.mid.block_1", c, c)
            layer(f"{half}.mid.attn_1.norm", c)
            for n in ("q", "k", "v", "proj_out"):
                layer(f"{half}.mid.attn_1.{n}", c, c, side=1)
            resnet(f"{half}.mid.block_2", c, c)
        else:
            resnet(f"{half}.mid_block.resnets.0", c, c)
            layer(f"{half}.mid_block.attentions.0.group_norm", c)
            for n in ("to_q", "to_k", "to_v", "to_out.0"):
                layer(f"{half}.mid_block.attentions.0.{n}", c, c, side=0)
            resnet(f"{half}.mid_block.resnets.1", c, c)

    norm_out = "norm_out" if bfl else "conv_norm_out"
    c = widths[0]
    layer("encoder.conv_in", c, 3)
    for level, width in enumerate(widths):
        for i in range(vae.layers_per_block):
            block = f"down.{level}.block.{i}" if bfl else f"down_blocks.{level}.resnets.{i}"
            resnet(f"encoder.{block}", c, width)
            c = width
        if level < last:
            down = f"down.{level}.downsample" if bfl else f"down_blocks.{level}.downsamplers.0"
            layer(f"encoder.{down}.conv", c, c)
    middle("encoder", c)
    layer(f"encoder.{norm_out}", c)
    layer("encoder.conv_out", 2 * vae.latent_channels, c)
    layer("decoder.conv_in", c, vae.latent_channels)
    middle("decoder", c)
    for step, width in enumerate(reversed(widths)):
        level = last - step if bfl else step  # BFL counts from the finest
        for i in range(vae.layers_per_block + 1):
            block = f"up.{level}.block.{i}" if bfl else f"up_blocks.{level}.resnets.{i}"
            resnet(f"decoder.{block}", c, width)
            c = width
        if step < last:
            up = f"up.{level}.upsample" if bfl else f"up_blocks.{level}.upsamplers.0"
            layer(f"decoder.{up}.conv", c, c)
    layer(f"decoder.{norm_out}", c)
    layer("decoder.conv_out", 3, c)
    return shapes


def write(
    folder: pathlib.Path, tensors: Mapping, config: dict | None = None, *, shards: int = 1,
    stem: str = "model",
) -> pathlib.Path:  # fmt: skip
    """A folder as save_pretrained writes it; of several shards, one in memory at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        safetensors.numpy.save_file(dict(tensors), folder / f"{stem}.safetensors")
        return folder
    keys, weight_map = list(tensors), {}
    for n in range(shards):
        name = f"{stem}-{n + 1:05}-of-{shards:05}.safetensors"
        part = {key: tensors[key] for key in keys[n::shards]}
        safetensors.numpy.save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    return folder
