"""Qwen2-VL's vision tower, alone or inside a Qwen2-VL checkpoint.

A tower without its merger (`vit.merger_dim` 0) leaves the merger's tensors aside; `port from-hf`
keeps them in a file of their own, so that the way back is whole.
"""

from __future__ import annotations

from mogao_jax.config.schema import VitConfig
from mogao_jax.key_tables import LINEAR, SAME, Rule, patch_embedding
from mogao_jax.porting.formats.fields import Field, compare, layer_rules
from mogao_jax.porting.tensor_sources import TensorSource, prefixed

NAME = "Qwen2-VL's vision tower"
PREFIXES = ("visual.", "model.visual.")  # inside a whole Qwen2-VL; the second since 2025
_KEY = "patch_embed.proj.weight"


def table(vit: VitConfig) -> tuple[Rule, ...]:
    """The rules for a config."""
    patches = patch_embedding(vit.temporal_patch_size, vit.patch_size)
    block, ours = "blocks.{i}", "blocks_{i}"
    rules = [Rule(_KEY, "patch_embed.proj.kernel", patches)]
    for name in ("norm1", "norm2"):
        rules += layer_rules(f"{block}.{name}", f"{ours}.{name}", SAME)
    for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
        rules += layer_rules(f"{block}.{name}", f"{ours}.{name.replace('.', '_')}", LINEAR)
    for theirs in ("ln_q", "mlp.0", "mlp.2"):
        name = theirs.replace(".", "_")
        transform = SAME if name == "ln_q" else LINEAR
        merger = layer_rules(f"merger.{theirs}", f"merger.{name}", transform)
        rules += merger if vit.merger_dim else [Rule(rule.theirs, None) for rule in merger]
    return tuple(rules)


def tower(source: TensorSource) -> TensorSource:
    """The tower's tensors and config, out of whatever holds them."""
    if _KEY in source.shapes:
        return source
    for prefix in PREFIXES:
        if prefix + _KEY in source.shapes:
            inner = source.config.get("vision_config", {})
            return prefixed(source, inner if isinstance(inner, dict) else {}, strip=prefix)
    return source  # matching says what is missing


def check_config(source: TensorSource, vit: VitConfig) -> None:
    """Raises CheckpointError with every field of its config.json that does not fit ours."""
    config = source.config
    kind = str(config.get("model_type", ""))
    ratio, width = config.get("mlp_ratio", 4), config.get("embed_dim", 1280)
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (ratio, width))
    fields = [
        Field("model_type", "", "qwen2_vl_vision" if "vision" in kind else "qwen2_vl"),
        Field("depth", "vit.depth", vit.depth),
        Field("embed_dim", "vit.embed_dim", vit.embed_dim),
        Field("num_heads|num_attention_heads", "vit.num_heads", vit.num_heads),
        Field("hidden_act", "", "quick_gelu", "quick_gelu"),
        Field("in_channels|in_chans", "", 3, 3),
        Field("patch_size|spatial_patch_size", "vit.patch_size", vit.patch_size, 14),
        Field("spatial_merge_size", "vit.merge_size", vit.merge_size, 2),
        Field("temporal_patch_size", "vit.temporal_patch_size", vit.temporal_patch_size, 2),
    ]
    if numbers:
        config = {**config, "mlp_ratio": int(width * ratio)}
        fields.append(Field("mlp_ratio", "vit.mlp_dim", vit.mlp_dim))
    if vit.merger_dim:
        fields.append(Field("hidden_size", "vit.merger_dim", vit.merger_dim))
    compare(config if source.config else {}, fields, place=source.place, what=NAME)


def to_config(vit: VitConfig, *, hidden_size: int, dtype: str) -> dict:
    """A config.json that transformers reads.

    `hidden_size` is the merger's output width; 0: it has none, and the field is left out.
    """
    ratio = vit.mlp_dim / vit.embed_dim  # transformers takes whole numbers, as released ones are
    return {
        "architectures": ["Qwen2VisionTransformerPretrainedModel"],
        "model_type": "qwen2_vl_vision",
        "depth": vit.depth,
        "embed_dim": vit.embed_dim,
        "hidden_act": "quick_gelu",
        **({"hidden_size": hidden_size} if hidden_size else {}),
        "in_channels": 3,
        "mlp_ratio": int(ratio) if ratio.is_integer() else ratio,
        "num_heads": vit.num_heads,
        "patch_size": vit.patch_size,
        "spatial_merge_size": vit.merge_size,
        "temporal_patch_size": vit.temporal_patch_size,
        "torch_dtype": dtype,
    }
