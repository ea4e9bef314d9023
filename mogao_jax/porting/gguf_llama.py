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
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from mogao_jax.atomic import atomic_file, write_file
from mogao_jax.errors import CheckpointError
from mogao_jax.key_tables import Rule, Shape, compress, match
from mogao_jax.porting.gguf import GgufFile

# Old name -> new name of a control token.
VISION_TOKENS = {
    "<jupyter_start>": "<|vision_start|>",
    "<jupyter_script>": "<|vision_end|>",
    "<jupyter_output>": "<|image_pad|>",
}
_CONTROL = 3  # token type in "tokenizer.ggml.token_type"

# llama.cpp's name -> Hugging Face's, and the axes: d the width, f the FFN's, k all keys of a
# position, v the vocabulary.
_TENSORS = {
    "token_embd": ("model.embed_tokens", "vd"),
    "output_norm": ("model.norm", "d"),
    "output": ("lm_head", "vd"),
    "blk.{i}.attn_norm": ("model.layers.{i}.input_layernorm", "d"),
    "blk.{i}.attn_q": ("model.layers.{i}.self_attn.q_proj", "dd"),
    "blk.{i}.attn_k": ("model.layers.{i}.self_attn.k_proj", "kd"),
    "blk.{i}.attn_v": ("model.layers.{i}.self_attn.v_proj", "kd"),
    "blk.{i}.attn_output": ("model.layers.{i}.self_attn.o_proj", "dd"),
    "blk.{i}.ffn_norm": ("model.layers.{i}.post_attention_layernorm", "d"),
    "blk.{i}.ffn_gate": ("model.layers.{i}.mlp.gate_proj", "fd"),
    "blk.{i}.ffn_up": ("model.layers.{i}.mlp.up_proj", "fd"),
    "blk.{i}.ffn_down": ("model.layers.{i}.mlp.down_proj", "df"),
}
_TABLE = tuple(Rule(f"{key}.weight", f"{name}.weight") for key, (name, _) in _TENSORS.items())
_PER_LAYER = 9
_REAL = ("rms_norm_eps", "rope_theta")
# Field of a Qwen2 config.json -> of the metadata, after "llama.".
_FIELDS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
}


def qwen2_config(file: GgufFile) -> dict[str, Any]:
    """The config.json of the Qwen2 model that the file's tensors make.

    Raises CheckpointError for another architecture, a missing field, or a rope that Qwen2 has not.
    """
    found = file.metadata.get("general.architecture")
    if found != "llama":
        raise CheckpointError(
            f"{file.path} holds a model of architecture {found!r}; only 'llama' is read from GGUF."
        )
    missing = [f"llama.{k}" for k in _FIELDS.values() if f"llama.{k}" not in file.metadata]
    if "token_embd.weight" not in file.entries:
        missing.append("token_embd.weight")
    if missing:
        raise CheckpointError(f"{file.path} does not say {', '.join(missing)}: it is damaged.")
    config = {ours: file.metadata[f"llama.{theirs}"] for ours, theirs in _FIELDS.items()}
    wrong = _unsound_numbers(config) or _contradictions(file, config)
    if wrong:
        raise CheckpointError(f"{file.path}: {'; '.join(wrong)}: the file is damaged.")
    for field in _REAL:
        config[field] = float(str(np.float32(config[field])))  # 1e-05, not 9.99999974738e-06
    _check_rope(file, config["hidden_size"] // config["num_attention_heads"])
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


def _check_rope(file: GgufFile, head_dim: int) -> None:
    scaled = sorted(k for k in file.metadata if k.startswith("llama.rope.scaling"))
    if scaled or "rope_freqs.weight" in file.entries:
        raise CheckpointError(
            f"{file.path} stretches its rotary embedding ({', '.join(scaled) or 'rope_freqs'}), "
            "which Qwen2's does not do: it cannot be copied."
        )
    rotated = file.metadata.get("llama.rope.dimension_count", head_dim)
    key_dim = file.metadata.get("llama.attention.key_length", head_dim)
    if (rotated, key_dim) != (head_dim, head_dim):
        raise CheckpointError(
            f"{file.path} has heads of {key_dim} numbers of which {rotated} are rotated; Qwen2's "
            f"have hidden_size / num_attention_heads = {head_dim}, and all are rotated."
        )


def _unsound_numbers(config: Mapping[str, Any]) -> list[str]:
    """What a damaged file may say, and would divide by zero or never end."""

    def is_sound(field: str, number: Any) -> bool:
        kind, limit = (float, 1e30) if field in _REAL else (int, 1 << 31)
        return type(number) is kind and 0 < number < limit  # a bool is no number

    return [f"llama.{_FIELDS[k]} = {v!r}" for k, v in config.items() if not is_sound(k, v)]


def _contradictions(file: GgufFile, config: Mapping[str, Any]) -> list[str]:
    wrong = []
    heads, width = config["num_attention_heads"], config["hidden_size"]
    if config["num_hidden_layers"] * _PER_LAYER > len(file.entries):
        layers, tensors = config["num_hidden_layers"], len(file.entries)
        wrong.append(f"llama.block_count = {layers} with {tensors} tensors in all")
    if heads % config["num_key_value_heads"] or width % heads or width // heads % 2:
        wrong.append(f"{width} numbers in {heads} heads with {config['num_key_value_heads']} keys")
    if len(file.entries["token_embd.weight"].shape) != 2:
        wrong.append("token_embd.weight is no matrix")
    return wrong


def qwen2_tensors(file: GgufFile) -> Iterator[tuple[str, np.ndarray]]:
    """(Hugging Face's name, float32 tensor) of a Qwen2 model, one after another.

    Before the first, a CheckpointError lists every tensor that is missing, left over or of a shape
    that does not fit the metadata.
    """
    config = qwen2_config(file)
    shapes = {key: entry.shape for key, entry in file.entries.items()}
    remedy = "It is not the llama that its metadata describes."
    plan = match(_TABLE, shapes, _shapes(config), place=str(file.path), remedy=remedy)
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    for key, name, _ in plan.pairs:
        tensor, part = file.tensor(key), name.split(".")[-2]
        yield name, unpermute(tensor, config[heads[part]]) if part in heads else tensor
        if part in ("q_proj", "k_proj", "v_proj"):
            yield name.replace("weight", "bias"), np.zeros(tensor.shape[0], np.float32)


def unpermute(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of q or k [N * H, D] from llama.cpp's order, pairs (2i, 2i + 1), to (i, i + H / 2)."""
    rows, columns = weight.shape
    pairs = weight.reshape(num_heads, rows // num_heads // 2, 2, columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows, columns))


def _shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Hugging Face's name -> shape of all tensors but the biases."""
    d, heads = config["hidden_size"], config["num_attention_heads"]
    sizes = {"d": d, "f": config["intermediate_size"], "v": config["vocab_size"]}
    sizes["k"] = d // heads * config["num_key_value_heads"]
    shapes: dict[str, Shape] = {}
    for name, axes in _TENSORS.values():
        for i in range(config["num_hidden_layers"] if "{i}" in name else 1):
            shapes[f"{name}.weight".replace("{i}", str(i))] = tuple(sizes[axis] for axis in axes)
    if config["tie_word_embeddings"]:
        del shapes["lm_head.weight"]
    return shapes


def tokenizer_spec(file: GgufFile, renamed: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The contents of a tokenizer.json for the file's byte-level BPE, each digit by itself.

    Args:
      file: its metadata holds tokens, their types and merges ("gpt2", pre-tokenizer "smollm").
      renamed: old -> new names of control tokens; None: VISION_TOKENS.
    Raises:
      CheckpointError: another kind of tokenizer, or a control token to be renamed is not there.
    """
    renamed = VISION_TOKENS if renamed is None else renamed
    tokens, control, merges = _tokens(file)
    absent = sorted(set(renamed) - set(control))
    if absent:
        raise CheckpointError(
            f"{file.path} has no control token {', '.join(absent)} to make a vision token of; it "
            f"has {', '.join(control) or 'none'}."
        )
    vocab = {renamed.get(token, token): i for i, token in enumerate(tokens)}
    try:
        pairs = [(left, right) for left, right in (m.split(" ") for m in merges)]
        made = tokenizers.Tokenizer(models.BPE(vocab, pairs))
    except Exception as e:  # noqa: BLE001  (the library raises no narrower one)
        raise CheckpointError(f"{file.path}: its merges do not fit its tokens ({e}).") from None
    digits = pre_tokenizers.Digits(individual_digits=True)
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([digits, in_bytes])
    made.decoder = decoders.ByteLevel()
    special = [AddedToken(renamed.get(t, t), normalized=False, special=True) for t in control]
    made.add_special_tokens(special)
    return json.loads(made.to_str())


def _tokens(file: GgufFile) -> tuple[list[str], list[str], list[str]]:
    """(tokens, control tokens, merges) of a tokenizer of the kind that is read."""
    kind = tuple(file.metadata.get(f"tokenizer.ggml.{k}") for k in ("model", "pre"))
    if kind != ("gpt2", "smollm"):
        raise CheckpointError(
            f"{file.path} has a tokenizer of kind {kind}; only ('gpt2', 'smollm') is read. Use "
            "the tokenizer.json of the model's own release."
        )
    tokens, merges = _list(file, "tokens", str), _list(file, "merges", str)
    types = _list(file, "token_type", int)
    if not tokens or len(types) != len(tokens) or not merges:
        raise CheckpointError(
            f"{file.path}: its tokenizer has {len(tokens)} tokens, {len(types)} types and "
            f"{len(merges)} merges: the metadata is damaged."
        )
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL]
    return tokens, control, merges


def _list(file: GgufFile, name: str, of: type) -> list[Any]:
    found = file.metadata.get(f"tokenizer.ggml.{name}", [])
    if not isinstance(found, list) or not all(isinstance(x, of) for x in found):
        raise CheckpointError(
            f"{file.path}: tokenizer.ggml.{name} is no list of {of.__name__}: the metadata is "
            "damaged."
        )
    return found


def write_qwen2_folder(gguf: str | pathlib.Path, folder: str | pathlib.Path) -> pathlib.Path:
    """Writes config.json, tokenizer.json and model.safetensors (float32); returns the folder.

    All tensors are in memory once: this is for small models. The weights come last and under their
    final name only when whole. Raises CheckpointError as the functions above.
    """
    folder = pathlib.Path(folder)
    with GgufFile(gguf) as file:
        config, spec = qwen2_config(file), tokenizer_spec(file)
        tensors = dict(qwen2_tensors(file))
    bad = [k for k, v in tensors.items() if not np.isfinite(v).all()]
    if bad:
        raise CheckpointError(
            f"{gguf} holds values that are not finite in {'; '.join(compress(bad))}."
        )
    for name, content in (("config.json", config), ("tokenizer.json", spec)):
        write_file(folder / name, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    with atomic_file(folder / "model.safetensors") as partial:
        safetensors.numpy.save_file(tensors, partial, {"format": "pt"})
    return folder
