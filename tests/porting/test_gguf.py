"""GGUF: every block type against arithmetic by hand, llama's permuted rows, damaged files."""

from __future__ import annotations

import json
import math
import struct

import numpy as np
import pytest
import safetensors.numpy
import tokenizers

from mogao_jax.errors import CheckpointError
from mogao_jax.porting import gguf, gguf_llama

# ------------------------------------------------------------- files made by hand, from the format

TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 8}
U32, F32, BOOL, STRING, ARRAY, U64 = 4, 6, 7, 8, 9, 10


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def value(kind: int, x) -> bytes:
    if kind == STRING:
        return string(x)
    if kind == ARRAY:
        of, entries = x
        return struct.pack("<IQ", of, len(entries)) + b"".join(value(of, e) for e in entries)
    codes = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # fmt: skip  # noqa: E501
    return struct.pack("<" + codes[kind], x)


def build(fields: dict, tensors: dict, *, version: int = 3, alignment: int = 32) -> bytes:
    """fields: name -> (type, value); tensors: name -> (type name, numpy shape, raw bytes)."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(fields))
    for name, (kind, x) in fields.items():
        head += string(name) + struct.pack("<I", kind) + value(kind, x)
    data = b""
    for name, (kind, shape, raw) in tensors.items():
        data += b"\0" * (-len(data) % alignment)
        dims = tuple(reversed(shape))  # the file has the fastest axis first
        head += string(name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        head += struct.pack("<IQ", TYPES.get(kind, kind), len(data))
        data += raw
    return head + b"\0" * (-len(head) % alignment) + data


def half(x: float) -> bytes:
    return struct.pack("<e", x)


def random_blocks(kind: str, num_blocks: int, rng) -> tuple[bytes, list[float]]:
    """Blocks as bytes, and their numbers one by one, in Python's own arithmetic."""
    raw, numbers = b"", []
    for _ in range(num_blocks):
        scale, least = (float(np.float16(x)) for x in rng.normal(size=2))
        if kind in ("F32", "F16"):
            code = {"F32": "f", "F16": "e"}[kind]
            packed = [struct.pack("<" + code, x) for x in rng.normal(size=32)]
            raw += b"".join(packed)
            numbers += [struct.unpack("<" + code, x)[0] for x in packed]
        elif kind == "Q8_0":
            whole = [int(x) for x in rng.integers(-128, 128, 32)]
            raw += half(scale) + struct.pack("<32b", *whole)
            numbers += [scale * x for x in whole]
        else:
            nibbles = [int(x) for x in rng.integers(0, 16, 32)]
            raw += half(scale) + (half(least) if kind == "Q4_1" else b"")
            raw += bytes(nibbles[i] + 16 * nibbles[i + 16] for i in range(16))
            offset = (lambda q, m=least: m) if kind == "Q4_1" else (lambda q, d=scale: -8 * d)
            numbers += [scale * q + offset(q) for q in nibbles]
    return raw, numbers


def write(path, *arguments, **kwargs):
    path.write_bytes(build(*arguments, **kwargs))
    return path


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("kind", TYPES)
def test_every_block_type(kind, version, tmp_path):
    rng = np.random.default_rng(TYPES[kind])
    raw, numbers = random_blocks(kind, 6, rng)
    other, others = random_blocks("F32", 1, rng)
    tensors = {"first": ("F32", (32,), other), "it": (kind, (3, 64), raw)}
    path = write(tmp_path / "a.gguf", {}, tensors, version=version)
    with gguf.GgufFile(path) as file:
        assert file.entries["it"].encoding.name == kind
        read = file.tensor("it")
        assert read.dtype == np.float32 and read.shape == (3, 64)
        # Q4_1 is a product and a sum, each rounded to float32; all else is exact.
        np.testing.assert_allclose(read.ravel(), numbers, rtol=1e-6, atol=1e-6)
        if kind != "Q4_1":
            np.testing.assert_array_equal(read.ravel(), np.float32(numbers))
        np.testing.assert_array_equal(file.tensor("first"), np.float32(others))
        with pytest.raises(CheckpointError, match="holds no tensor 'that'"):
            file.tensor("that")


def test_a_block_by_hand(tmp_path):
    """Q4_0: scale 0.5; the first byte 0x1F holds number 0 (15) and number 16 (1)."""
    raw = half(0.5) + bytes([0x1F]) + bytes([0x88] * 15)
    path = write(tmp_path / "a.gguf", {}, {"x": ("Q4_0", (32,), raw)})
    wanted = np.zeros(32)
    wanted[0], wanted[16] = 3.5, -3.5
    np.testing.assert_array_equal(gguf.GgufFile(path).tensor("x"), wanted)


def test_metadata_of_every_type_and_another_alignment(tmp_path):
    fields = {
        "general.alignment": (U32, 64),
        "u8": (0, 200), "i8": (1, -3), "u16": (2, 60000), "i16": (3, -3), "i32": (5, -7),
        "f32": (F32, 0.5), "yes": (BOOL, True), "text": (STRING, "π"), "u64": (U64, 2**40),
        "i64": (11, -(2**40)), "f64": (12, 1e-300), "numbers": (ARRAY, (F32, [1.0, 2.5])),
        "words": (ARRAY, (STRING, ["a", "", "Ġb"])), "none": (ARRAY, (U32, [])),
    }  # fmt: skip
    tensors = {"a": ("F32", (1,), struct.pack("<f", 1)), "b": ("F32", (1,), struct.pack("<f", 2))}
    file = gguf.GgufFile(write(tmp_path / "a.gguf", fields, tensors, alignment=64))
    wanted = {k: x[1] if kind == ARRAY else x for k, (kind, x) in fields.items()}
    assert dict(file.metadata) == wanted
    assert [float(file.tensor(k)[0]) for k in "ab"] == [1, 2]
    assert {e.start % 64 for e in file.entries.values()} == {0}


def test_the_package_of_llama_cpp_reads_the_same(tmp_path):
    theirs = pytest.importorskip("gguf")
    rng = np.random.default_rng(4)
    tensors = {kind: (kind, (2, 64), random_blocks(kind, 4, rng)[0]) for kind in TYPES}
    path = write(tmp_path / "a.gguf", {"text": (STRING, "π"), "n": (ARRAY, (U32, [1]))}, tensors)
    reader = theirs.GGUFReader(path)
    with gguf.GgufFile(path) as file:
        for tensor in reader.tensors:
            wanted = theirs.dequantize(tensor.data, tensor.tensor_type)
            np.testing.assert_allclose(file.tensor(tensor.name), wanted.reshape(2, 64), rtol=1e-6)
        assert {k: reader.fields[k].contents() for k in file.metadata} == dict(file.metadata)


# --------------------------------------------------------------------------------------- bad input


def test_what_is_no_gguf_is_refused_with_the_reason(tmp_path):
    path = tmp_path / "a.gguf"
    cases = {
        "no GGUF file": None,
        "cannot be read": b"",
        "does not begin with 'GGUF'": b"PK\3\4" + bytes(40),
        "version 1;": b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
        "version 50331648": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),  # the other byte order
        "claims to hold": b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0),
        "metadata type 77": build({}, {})[:16] + struct.pack("<Q", 1) + string("a")
        + struct.pack("<I", 77),
        "array of 1152921504606846976": build({}, {})[:16] + struct.pack("<Q", 1) + string("a")
        + struct.pack("<IIQ", ARRAY, U32, 2**60),
        "not UTF-8": build({"a": (STRING, b"\xff\xfe")}, {}),
        "general.alignment is 0": build({"general.alignment": (U32, 0)}, {}),
    }  # fmt: skip
    for message, content in cases.items():
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            gguf.GgufFile(path)


def test_all_bad_tensors_are_listed(tmp_path):
    tensors = {
        "good": ("F32", (2,), bytes(8)),
        "k_quant": (14, (256,), bytes(210)),
        "odd": ("Q8_0", (33,), bytes(68)),
        "long": ("F32", (1000,), bytes(4)),
    }
    path = write(tmp_path / "a.gguf", {}, tensors)
    with pytest.raises(CheckpointError, match="3 tensor") as error:
        gguf.GgufFile(path)
    for part in ("k_quant is of ggml type 14", "odd has rows", "long ends behind the end"):
        assert part in str(error.value)


def test_a_file_cut_anywhere_or_with_flipped_bytes_ends_in_an_error_for_people(tmp_path):
    whole = tiny_llama(np.random.default_rng(0))[0]
    path = tmp_path / "a.gguf"
    for length in [*range(0, 2000, 13), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            gguf_llama.write_qwen2_folder(path, tmp_path / "out")
        assert not (tmp_path / "out" / "model.safetensors").exists()
    rng = np.random.default_rng(1)
    head = whole.index(b"blk.1.ffn_down.weight") + 60
    for _ in range(150):
        flipped = bytearray(whole)
        flipped[rng.integers(head)] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        try:
            with gguf.GgufFile(path) as file:
                list(gguf_llama.qwen2_tensors(file))
                gguf_llama.tokenizer_spec(file)
        except CheckpointError:
            pass


# ---------------------------------------------------------------------------------- a llama inside

D, F, LAYERS, HEADS, KV, VOCAB = 64, 96, 2, 4, 2, 40
H = D // HEADS


def permute(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """What llama.cpp's converter does to rows of q and k: (half, i) -> (i, half) in each head."""
    out = np.empty_like(weight)
    size = len(weight) // num_heads
    for head in range(num_heads):
        for i in range(size):
            which, place = divmod(i, size // 2)
            out[head * size + 2 * place + which] = weight[head * size + i]
    return out


def tiny_llama(rng, **changed) -> tuple[bytes, dict[str, np.ndarray]]:
    """A GGUF of a random llama (float32), and its weights by Hugging Face's names."""
    shapes = {"self_attn.q_proj": (D, D), "self_attn.k_proj": (KV * H, D),
              "self_attn.v_proj": (KV * H, D), "self_attn.o_proj": (D, D),
              "mlp.gate_proj": (F, D), "mlp.up_proj": (F, D), "mlp.down_proj": (D, F),
              "input_layernorm": (D,), "post_attention_layernorm": (D,)}  # fmt: skip
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
             "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
             "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
             "input_layernorm": "attn_norm",
             "post_attention_layernorm": "ffn_norm"}  # fmt: skip
    weights = {"model.embed_tokens.weight": (VOCAB, D), "model.norm.weight": (D,)}
    theirs = {"model.embed_tokens.weight": "token_embd.weight",
              "model.norm.weight": "output_norm.weight"}  # fmt: skip
    for i in range(LAYERS):
        for name, shape in shapes.items():
            weights[f"model.layers.{i}.{name}.weight"] = shape
            theirs[f"model.layers.{i}.{name}.weight"] = f"blk.{i}.{names[name]}.weight"
    weights = {k: rng.normal(size=s).astype(np.float32) for k, s in weights.items()}
    tensors = {}
    for name, weight in weights.items():
        heads = HEADS if "q_proj" in name else KV if "k_proj" in name else 0
        stored = permute(weight, heads) if heads else weight
        tensors[theirs[name]] = ("F32", weight.shape, stored.tobytes())
    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *gguf_llama.VISION_TOKENS, "a", "b",
             "ab", "Ġ", "1", "2"]  # fmt: skip
    words += [f"w{i}" for i in range(VOCAB - len(words))]
    fields = {
        "general.architecture": (STRING, "llama"),
        "llama.embedding_length": (U32, D), "llama.feed_forward_length": (U32, F),
        "llama.block_count": (U32, LAYERS), "llama.attention.head_count": (U32, HEADS),
        "llama.attention.head_count_kv": (U32, KV), "llama.context_length": (U32, 128),
        "llama.attention.layer_norm_rms_epsilon": (F32, 1e-5),
        "llama.rope.freq_base": (F32, 1e5), "llama.rope.dimension_count": (U32, H),
        "tokenizer.ggml.model": (STRING, "gpt2"), "tokenizer.ggml.pre": (STRING, "smollm"),
        "tokenizer.ggml.tokens": (ARRAY, (STRING, words)),
        "tokenizer.ggml.token_type": (ARRAY, (5, [3] * 6 + [1] * (VOCAB - 6))),
        "tokenizer.ggml.merges": (ARRAY, (STRING, ["a b"])),
        "tokenizer.ggml.bos_token_id": (U32, 1), "tokenizer.ggml.eos_token_id": (U32, 2),
    }  # fmt: skip
    fields |= changed.pop("fields", {})
    tensors |= changed.pop("tensors", {})
    return build(
        {k: v for k, v in fields.items() if v}, {k: v for k, v in tensors.items() if v}
    ), weights


def test_llama_becomes_qwen2(tmp_path):
    content, weights = tiny_llama(np.random.default_rng(2))
    (tmp_path / "a.gguf").write_bytes(content)
    folder = gguf_llama.write_qwen2_folder(tmp_path / "a.gguf", tmp_path / "out")
    written = safetensors.numpy.load_file(folder / "model.safetensors")
    biases = {k for k in written if k.endswith(".bias")}
    assert biases == {
        f"model.layers.{i}.self_attn.{p}_proj.bias" for i in range(LAYERS) for p in "qkv"
    }
    assert all(not written[k].any() for k in biases)
    assert set(written) - biases == set(weights)
    for name, weight in weights.items():
        np.testing.assert_array_equal(written[name], weight)
    config = json.loads((folder / "config.json").read_text())
    wanted = {"hidden_size": D, "intermediate_size": F, "num_hidden_layers": LAYERS,
              "num_attention_heads": HEADS, "num_key_value_heads": KV, "vocab_size": VOCAB,
              "rms_norm_eps": 1e-5, "rope_theta": 1e5, "tie_word_embeddings": True}  # fmt: skip
    assert wanted.items() <= config.items()
    assert not list(folder.glob("*.partial"))


def test_unpermuting_is_what_the_two_ropes_need():
    """llama.cpp turns the pairs (2i, 2i + 1), Qwen2 the pairs (i, i + H / 2): equal scores."""
    rng = np.random.default_rng(3)
    q, k = rng.normal(size=(2, H, D))
    x, y = rng.normal(size=(2, D))

    def turned(head, position, neighbours):
        out = np.empty(H)
        for i in range(H // 2):
            a, b = (2 * i, 2 * i + 1) if neighbours else (i, i + H // 2)
            angle = position * 1e5 ** (-2 * i / H)
            out[a] = head[a] * math.cos(angle) - head[b] * math.sin(angle)
            out[b] = head[b] * math.cos(angle) + head[a] * math.sin(angle)
        return out

    stored_q, stored_k = permute(q, 1), permute(k, 1)
    for m, n in ((0, 0), (5, 2), (100, 37)):
        in_gguf = turned(stored_q @ x, m, True) @ turned(stored_k @ y, n, True)
        back_q, back_k = (gguf_llama.unpermute(w, 1) for w in (stored_q, stored_k))
        here = turned(back_q @ x, m, False) @ turned(back_k @ y, n, False)
        assert abs(here - in_gguf) < 1e-9 * abs(in_gguf)
        wrong = turned(stored_q @ x, m, False) @ turned(stored_k @ y, n, False)
        assert m == 0 or abs(wrong - in_gguf) > 1e-3


def test_the_tokenizer_of_the_metadata(tmp_path):
    (tmp_path / "a.gguf").write_bytes(tiny_llama(np.random.default_rng(0))[0])
    with gguf.GgufFile(tmp_path / "a.gguf") as file:
        spec = gguf_llama.tokenizer_spec(file)
        unchanged = gguf_llama.tokenizer_spec(file, {})
    whole = tokenizers.Tokenizer.from_str(json.dumps(spec))
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *gguf_llama.VISION_TOKENS.values())
    assert [whole.token_to_id(n) for n in names] == list(range(6))
    assert whole.encode("ab 12<|im_end|>").tokens == ["ab", "Ġ", "1", "2", "<|im_end|>"]
    words = list(unchanged["model"]["vocab"])
    assert set(gguf_llama.VISION_TOKENS) <= set(words) and len(words) == VOCAB


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"fields": {"general.architecture": (STRING, "mamba")}}, "architecture 'mamba'"),
        ({"fields": {"llama.rope.scaling.type": (STRING, "yarn")}}, "stretches its rotary"),
        ({"fields": {"llama.block_count": None}}, "does not say llama.block_count"),
        ({"fields": {"llama.block_count": (U32, 3)}}, "block_count = 3 with 20 tensors"),
        (
            {"tensors": {"blk.1.ffn_up.weight": None, "x": ("F32", (1,), bytes(4))}},
            "2 problem.*x is not expected; blk.1.ffn_up.weight is missing",
        ),
        ({"fields": {"llama.attention.head_count": (U32, 0)}}, "head_count = 0"),
        ({"fields": {"llama.attention.head_count": (U32, 3)}}, "64 numbers in 3 heads"),
        ({"fields": {"llama.rope.dimension_count": (U32, 8)}}, "of which 8 are rotated"),
        ({"fields": {"tokenizer.ggml.pre": (STRING, "gpt-2")}}, "only .*smollm.* is read"),
        ({"fields": {"tokenizer.ggml.merges": None}}, "0 merges"),
        ({"fields": {"tokenizer.ggml.merges": (ARRAY, (U32, [1, 2]))}}, "merges is no list of str"),
        ({"fields": {"tokenizer.ggml.tokens": (U32, 5)}}, "tokens is no list of str"),
        ({"fields": {"tokenizer.ggml.token_type": (U32, 5)}}, "token_type is no list of int"),
        (
            {"fields": {"tokenizer.ggml.token_type": (ARRAY, (5, [3] * 3 + [1] * 37))}},
            "no control token <jupyter_output>, <jupyter_script>, <jupyter_start>",
        ),
        ({"tensors": {"blk.0.attn_q.bias": ("F32", (D,), bytes(4 * D))}}, "is not expected"),
        ({"tensors": {"blk.1.attn_k.weight": ("F32", (D, D), bytes(4 * D * D))}}, "has shape"),
        (
            {"tensors": {"output_norm.weight": ("F32", (D,), np.full(D, np.nan, "<f4").tobytes())}},
            "not finite in model.norm.weight",
        ),
    ],
)
def test_other_models_are_refused(changed, message, tmp_path):
    (tmp_path / "a.gguf").write_bytes(tiny_llama(np.random.default_rng(0), **changed)[0])
    with pytest.raises(CheckpointError, match=message):
        gguf_llama.write_qwen2_folder(tmp_path / "a.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()
