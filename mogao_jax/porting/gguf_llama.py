"""A llama-shaped GGUF, such as SmolLM2's, as a Qwen2 checkpoint in Hugging Face's layout.

Llama's layer is Qwen2's without biases on q, k and v: with zero biases a llama copies exactly.
Two things differ. llama.cpp turns neighbouring numbers of a head, Hugging Face number i and
i + head_dim / 2; its converter permutes the rows of q and k accordingly, which is undone here.
And the tokenizer lies in the metadata; it is written as a tokenizer.json.

SmolLM2 has no vision tokens. Three of its control tokens that stand for parts of notebooks, and
in no conversation, give their rows to them: ids, and the rows of all others, stay as they are.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from mogao_jax.atomic import atomic_file, write_file
from mogao_jax.errors import CheckpointError
from mogao_jax.porting.gguf import GgufFile

# Old name -> new name of a control token.
VISION_TOKENS = {
    "<jupyter_start>": "<|vision_start|>",
    "<jupyter_script>": "<|vision_end|>",
    "<jupyter_output>": "<|image_pad|>",
}
_CONTROL = 3  # token type in "tokenizer.ggml.token_type"

_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
_REAL = ("rms_norm_eps", "rope_theta")


def qwen2_config(file: GgufFile) -> dict[str, Any]:
    """The config.json of the Qwen2 model that the file's tensors make.

    Raises:
      CheckpointError: another architecture, a field missing, or a rope that Qwen2 has not.
    """
    found = file.metadata.get("general.architecture")
    if found != "llama":
        raise CheckpointError(
            f"{file.path} holds a model of architecture {found!r}; only 'llama' is read from GGUF."
        )
    scaled = sorted(k for k in file.metadata if k.startswith("llama.rope.scaling"))
    if scaled or "rope_freqs.weight" in file.entries:
        raise CheckpointError(
            f"{file.path} stretches its rotary embedding ({', '.join(scaled) or 'rope_freqs'}), "
            "which Qwen2's does not do: it cannot be copied."
        )
    names = {
        "hidden_size": "embedding_length",
        "intermediate_size": "feed_forward_length",
        "num_hidden_layers": "block_count",
        "num_attention_heads": "attention.head_count",
        "num_key_value_heads": "attention.head_count_kv",
        "max_position_embeddings": "context_length",
        "rms_norm_eps": "attention.layer_norm_rms_epsilon",
        "rope_theta": "rope.freq_base",
    }
    missing = [f"llama.{k}" for k in names.values() if f"llama.{k}" not in file.metadata]
    missing += [k for k in ("token_embd.weight",) if k not in file.entries]
    if missing:
        raise CheckpointError(f"{file.path} does not say {', '.join(missing)}: it is damaged.")
    config = {ours: file.metadata[f"llama.{theirs}"] for ours, theirs in names.items()}
    _check_numbers(file, config, names)
    for field in _REAL:
        config[field] = float(str(np.float32(config[field])))  # 1e-05, not 9.99999974738e-06
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    turned = file.metadata.get("llama.rope.dimension_count", head_dim)
    key_dim = file.metadata.get("llama.attention.key_length", head_dim)
    if (turned, key_dim) != (head_dim, head_dim):
        raise CheckpointError(
            f"{file.path} has heads of {key_dim} numbers of which {turned} are turned; Qwen2's "
            f"have hidden_size / num_attention_heads = {head_dim}, and all are turned."
        )
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "tie_word_embeddings": "output.weight" not in file.entries,
        "vocab_size": file.entries["token_embd.weight"].shape[0],
        "rope_parameters": {"rope_type": "default", "rope_theta": config["rope_theta"]},
        "bos_token_id": file.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": file.metadata.get("tokenizer.ggml.eos_token_id"),
        "dtype": "float32",
        **config,
    }


def _check_numbers(file: GgufFile, config: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """A damaged file may say anything: refuses what would divide by zero or never end."""

    def is_sound(field: str, number: Any) -> bool:
        if field in _REAL:
            return isinstance(number, float) and 0 < number < 1e30
        return isinstance(number, int) and not isinstance(number, bool) and 0 < number < 1 << 31

    wrong = [f"llama.{names[k]} = {v!r}" for k, v in config.items() if not is_sound(k, v)]
    if not wrong:
        heads, width = config["num_attention_heads"], config["hidden_size"]
        if config["num_hidden_layers"] * len(_LAYER) > len(file.entries):
            wrong.append(
                f"llama.block_count = {config['num_hidden_layers']} with {len(file.entries)} "
                "tensors in all"
            )
        if heads % config["num_key_value_heads"] or width % heads or width // heads % 2:
            wrong.append(
                f"{width} numbers in {heads} heads with {config['num_key_value_heads']} keys"
            )
        if len(file.entries["token_embd.weight"].shape) != 2:
            wrong.append("token_embd.weight is no matrix")
    if wrong:
        raise CheckpointError(f"{file.path}: {'; '.join(wrong)}: the file is damaged.")


def qwen2_tensors(file: GgufFile) -> Iterator[tuple[str, np.ndarray]]:
    """(Hugging Face's name, float32 tensor) of a Qwen2 model, one after another.

    Raises:
      CheckpointError: before the first, listing every tensor that is missing, left over or of a
        shape that does not fit the metadata.
    """
    config = qwen2_config(file)
    table = {k: v for k, v in _TOP.items() if k != "output.weight" or k in file.entries}
    for i in range(config["num_hidden_layers"]):
        table |= {f"blk.{i}.{k}": f"model.layers.{i}.{v}" for k, v in _LAYER.items()}
    shapes = {name: _shape(name, config) for name in table}
    problems = [f"{k} is missing" for k in table if k not in file.entries]
    problems += [f"{k} is not expected" for k in file.entries if k not in table]
    problems += [
        f"{k} has shape {list(file.entries[k].shape)}, not {list(shape)}"
        for k, shape in shapes.items()
        if k in file.entries and file.entries[k].shape != shape
    ]
    if problems:
        rest = f"; and {len(problems) - 12} more" if len(problems) > 12 else ""
        raise CheckpointError(
            f"{file.path} is not the llama that its metadata describes, {len(problems)} "
            f"problem(s): {'; '.join(problems[:12])}{rest}."
        )
    heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
    for theirs, ours in table.items():
        tensor, part = file.tensor(theirs), theirs.split(".")[-2]
        yield ours, unpermute(tensor, config[heads[part]]) if part in heads else tensor
        if part in ("attn_q", "attn_k", "attn_v"):
            yield ours.replace("weight", "bias"), np.zeros(tensor.shape[0], np.float32)


def unpermute(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of q or k [N * H, D] from llama.cpp's order, pairs (2i, 2i + 1), to (i, i + H / 2)."""
    rows, columns = weight.shape
    pairs = weight.reshape(num_heads, rows // num_heads // 2, 2, columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows, columns))


def _shape(name: str, config: Mapping[str, Any]) -> tuple[int, ...]:
    d, f, rows = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = d // config["num_attention_heads"] * config["num_key_value_heads"]
    part = name.split(".")[-2]
    return {
        "token_embd": (rows, d), "output": (rows, d), "output_norm": (d,),
        "attn_norm": (d,), "ffn_norm": (d,),
        "attn_q": (d, d), "attn_k": (kv, d), "attn_v": (kv, d), "attn_output": (d, d),
        "ffn_gate": (f, d), "ffn_up": (f, d), "ffn_down": (d, f),
    }[part]  # fmt: skip


def tokenizer_spec(file: GgufFile, renamed: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The contents of a tokenizer.json for the file's byte-level BPE, each digit by itself.

    Args:
      file: its metadata holds tokens, their types and merges ("gpt2", pre-tokenizer "smollm").
      renamed: old -> new names of control tokens; None: VISION_TOKENS.
    Raises:
      CheckpointError: another kind of tokenizer, or a control token to be renamed is not there.
    """
    renamed = VISION_TOKENS if renamed is None else renamed
    kind = tuple(file.metadata.get(f"tokenizer.ggml.{k}") for k in ("model", "pre"))
    if kind != ("gpt2", "smollm"):
        raise CheckpointError(
            f"{file.path} has a tokenizer of kind {kind}; only ('gpt2', 'smollm') is read. Use "
            "the tokenizer.json of the model's own release."
        )
    tokens, types, merges = (
        _list(file, name, of)
        for name, of in (("tokens", str), ("token_type", int), ("merges", str))
    )
    if not tokens or len(types) != len(tokens) or not merges:
        raise CheckpointError(
            f"{file.path}: its tokenizer has {len(tokens)} tokens, {len(types)} types and "
            f"{len(merges)} merges: the metadata is damaged."
        )
    control = {tokens[i]: i for i, t in enumerate(types) if t == _CONTROL}
    absent = sorted(set(renamed) - set(control))
    if absent:
        raise CheckpointError(
            f"{file.path} has no control token {', '.join(absent)} to make a vision token of; it "
            f"has {', '.join(control) or 'none'}."
        )
    for old, new in renamed.items():
        tokens[control[old]] = new
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    byte_level = {"add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": tokens[i], "special": True, **flags} for i in control.values()
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {"type": "ByteLevel", **byte_level},
            ],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", **byte_level},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [m.split(" ") for m in merges],
        },
    }


def _list(file: GgufFile, name: str, of: type) -> list[Any]:
    found = file.metadata.get(f"tokenizer.ggml.{name}", [])
    if not isinstance(found, list) or not all(isinstance(x, of) for x in found):
        raise CheckpointError(
            f"{file.path}: tokenizer.ggml.{name} is no list of {of.__name__}: the metadata is "
            "damaged."
        )
    return list(found)


def write_qwen2_folder(gguf: str | pathlib.Path, folder: str | pathlib.Path) -> pathlib.Path:
    """Writes config.json, tokenizer.json and model.safetensors (float32); returns the folder.

    All tensors are in memory once: this is for small models. The weights come last and under
    their final name only when whole.

    Raises:
      CheckpointError: as the functions above.
    """
    folder = pathlib.Path(folder)
    with GgufFile(gguf) as file:
        config, spec = qwen2_config(file), tokenizer_spec(file)
        tensors = dict(qwen2_tensors(file))
    bad = [k for k, v in tensors.items() if not np.isfinite(v).all()]
    if bad:
        raise CheckpointError(f"{gguf} holds values that are not finite in {', '.join(bad[:12])}.")
    for name, content in (("config.json", config), ("tokenizer.json", spec)):
        write_file(folder / name, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    with atomic_file(folder / "model.safetensors") as partial:
        safetensors.numpy.save_file(tensors, partial, {"format": "pt"})
    return folder
