"""Qwen2 and Qwen2.5 language models of any size, as transformers' Qwen2ForCausalLM.

Every layer's projections q, k and v have biases, the output projection has none; RMS norms;
SwiGLU; the rotary embedding turns pairs (i, i + head_dim / 2), as ours does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mogao_jax.config.schema import LayoutConfig, ModelConfig
from mogao_jax.errors import CheckpointError, ConfigError
from mogao_jax.key_tables import HEADS_BIAS, INTO_HEADS, LINEAR, OUT_OF_HEADS, Rule
from mogao_jax.models import modules
from mogao_jax.porting.formats.fields import Field, compare
from mogao_jax.porting.tensor_sources import TensorSource, prefixed, read_in_parts

ARCHITECTURE = "Qwen2ForCausalLM"
HEADLESS = "Qwen2Model"  # the same without lm_head, its keys without "model."
NAME = "a Qwen2 language model"

_LAYER = "model.layers.{i}"
_BRANCH = "layers.{i}.und"
TABLE = (
    Rule("model.embed_tokens.weight", "token_embedding"),
    Rule("model.norm.weight", "final_norm.scale"),
    Rule(f"{_LAYER}.input_layernorm.weight", f"{_BRANCH}.attention_norm.scale"),
    Rule(f"{_LAYER}.post_attention_layernorm.weight", f"{_BRANCH}.mlp_norm.scale"),
    Rule(f"{_LAYER}.self_attn.q_proj.weight", f"{_BRANCH}.query.kernel", INTO_HEADS),
    Rule(f"{_LAYER}.self_attn.q_proj.bias", f"{_BRANCH}.query.bias", HEADS_BIAS),
    Rule(f"{_LAYER}.self_attn.k_proj.weight", f"{_BRANCH}.key.kernel", INTO_HEADS),
    Rule(f"{_LAYER}.self_attn.k_proj.bias", f"{_BRANCH}.key.bias", HEADS_BIAS),
    Rule(f"{_LAYER}.self_attn.v_proj.weight", f"{_BRANCH}.value.kernel", INTO_HEADS),
    Rule(f"{_LAYER}.self_attn.v_proj.bias", f"{_BRANCH}.value.bias", HEADS_BIAS),
    Rule(f"{_LAYER}.self_attn.o_proj.weight", f"{_BRANCH}.output.kernel", OUT_OF_HEADS),
    Rule(f"{_LAYER}.mlp.gate_proj.weight", f"{_BRANCH}.gate.kernel", LINEAR),
    Rule(f"{_LAYER}.mlp.up_proj.weight", f"{_BRANCH}.up.kernel", LINEAR),
    Rule(f"{_LAYER}.mlp.down_proj.weight", f"{_BRANCH}.down.kernel", LINEAR),
    # Frequencies that old versions of transformers saved; they follow from rope_theta.
    Rule(f"{_LAYER}.self_attn.rotary_emb.inv_freq", None),
)
HEAD = Rule("lm_head.weight", "lm_head")
# With tied embeddings the head is the embedding; some writers save it all the same
# (`check_tied_head`).
_TIED_HEAD = Rule("lm_head.weight", None)


def table(model: ModelConfig) -> tuple[Rule, ...]:
    """The rules for a config."""
    return (*TABLE, _TIED_HEAD if model.tie_embeddings else HEAD)


def is_of_llm(name: str) -> bool:
    """Whether one of our parameters (by its name) comes from the language model."""
    return modules.is_of_llm(name.split("."))


def check_config(source: TensorSource, model: ModelConfig) -> None:
    """Raises CheckpointError with every field of its config.json that does not fit ours."""
    config = source.config
    fields = [
        Field("model_type", "", "qwen2"),
        *([Field("architectures", "", (ARCHITECTURE,))] if config.get("architectures") else []),
        Field("hidden_act", "", "silu", "silu"),
        Field("num_hidden_layers", "model.num_layers", model.num_layers),
        Field("hidden_size", "model.embed_dim", model.embed_dim),
        Field("intermediate_size", "model.mlp_dim", model.mlp_dim),
        Field("num_attention_heads", "model.num_heads", model.num_heads),
        Field("num_key_value_heads", "model.num_kv_heads", model.num_kv_heads),
        Field("head_dim", "model.head_dim", model.head_dim, _head_dim(config)),
        Field("rms_norm_eps", "model.rms_norm_eps", model.rms_norm_eps, 1e-6),
        Field("rope_parameters.rope_theta|rope_theta", "model.rope_theta", model.rope_theta, 1e4),
        Field("rope_parameters.rope_type|rope_scaling.rope_type", "", "default", "default"),
        Field("rope_scaling.type", "", "default", "default"),
        Field("tie_word_embeddings", "model.tie_embeddings", model.tie_embeddings, False),
        Field("use_sliding_window", "", False, False),
    ]
    compare(config, fields, place=source.place, what=NAME)


def check_positions(layout: LayoutConfig) -> None:
    """Raises ConfigError unless text is rotated as Qwen2 rotates it (IL-RoPE with H = W = T)."""
    if layout.text_positions != "thw":
        raise ConfigError(
            f"layout.text_positions is {layout.text_positions!r} (text at H = W = 0), which is not "
            f"the 1-D RoPE of {NAME}: the same weights would say something else. It must be 'thw'."
        )


def _head_dim(config: Mapping[str, Any]) -> Any:
    hidden, heads = config.get("hidden_size", 0), config.get("num_attention_heads", 0)
    return hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads else 0


def of_the_model_alone(source: TensorSource) -> TensorSource:
    """Keys as Qwen2ForCausalLM has them, also where the headless Qwen2Model was saved."""
    if "embed_tokens.weight" not in source.shapes:
        return source
    config = dict(source.config)
    if config.get("architectures") == [HEADLESS]:
        config["architectures"] = [ARCHITECTURE]
    return prefixed(source, config, prefix="model.")


def check_tied_head(source: TensorSource, model: ModelConfig) -> None:
    """Raises CheckpointError if a head is there, and would be dropped, that is not the embedding.

    Reads both, in parts, where the config ties them and the file has a head all the same.
    """
    head, embedding = HEAD.theirs, TABLE[0].theirs
    if not model.tie_embeddings or not {head, embedding} <= set(source.shapes):
        return
    if source.shapes[head] != source.shapes[embedding] or not all(
        _same_values(rows, source.read_rows(embedding, start, start + len(rows)))
        for start, rows in read_in_parts(source, head)
    ):
        raise CheckpointError(
            f"{source.place!r} has a {head} that is not its {embedding}, though the config ties "
            "them (model.tie_embeddings): the head would be lost. Set model.tie_embeddings=False "
            "(and tie_word_embeddings in its config.json), or take the tensor out of the file if "
            "it means nothing."
        )


def _same_values(a: np.ndarray, b: np.ndarray) -> bool:
    if a.dtype == b.dtype:
        return a.tobytes() == b.tobytes()
    return np.array_equal(a.astype(np.float32), b.astype(np.float32), equal_nan=True)


def to_config(model: ModelConfig, *, rows: int, dtype: str, special: Mapping[str, int]) -> dict:
    """A config.json that transformers reads; `special`: the tokenizer's bos and eos token ids."""
    usual = model.head_dim * model.num_heads == model.embed_dim
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "qwen2",
        "attention_dropout": 0.0,
        **({} if usual else {"head_dim": model.head_dim}),
        "hidden_act": "silu",
        "hidden_size": model.embed_dim,
        "initializer_range": 0.02,
        "intermediate_size": model.mlp_dim,
        "max_position_embeddings": 32768,
        "num_attention_heads": model.num_heads,
        "num_hidden_layers": model.num_layers,
        "num_key_value_heads": model.num_kv_heads,
        "rms_norm_eps": model.rms_norm_eps,
        "rope_theta": model.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
        "tie_word_embeddings": model.tie_embeddings,
        "torch_dtype": dtype,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": rows,
        **special,
    }
