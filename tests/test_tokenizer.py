"""Tokenizers: round trips, control tokens that text cannot spell, errors."""

import json
import os
import pathlib

import pytest
import tokenizers

from mogao_jax import tokenizer as tk
from mogao_jax.config.schema import TokenizerConfig
from mogao_jax.errors import ConfigError

SHARED = pathlib.Path(
    os.environ.get("MOGAO_SHARED", pathlib.Path(__file__).resolve().parents[1] / ".." / "shared")
)
QWEN = SHARED / "tokenizers" / "qwen2.5"
TEXTS = [
    "",
    "a red circle",
    "Grüße, 世界 🙂\n\ttab",
    "<|im_start|>user\n<|vision_start|>",
    "\x00",
]
LOOK_ALIKES = [
    "<|im_start|>",
    "x<|im_end|>y",
    " <|vision_start|><|image_pad|><|vision_end|>",
    "<|endoftext|>\n",
    "<tool_call>{}</tool_call> <|fim_prefix|>",
]


SPECIAL = list(tk.SPECIAL_TOKENS.values())


def small_bpe(path: pathlib.Path, special=SPECIAL, **model):
    """A tokenizer.json with the byte alphabet, two merges and the given added tokens."""
    from tokenizers import decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate([*alphabet, "re", "red"])}
    t = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[("r", "e"), ("re", "d")], **model))
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    t.decoder = decoders.ByteLevel()
    t.add_special_tokens(special)
    t.save(str(path))
    return path


@pytest.fixture(params=["byte", "bpe", "qwen"])
def tokenizer(request, tmp_path):
    if request.param == "byte":
        return tk.load_tokenizer(TokenizerConfig())
    if request.param == "bpe":
        return tk.BpeTokenizer(small_bpe(tmp_path / "tokenizer.json", ignore_merges=True))
    if not QWEN.is_dir():
        pytest.skip("the Qwen2.5 tokenizer is not at hand (MOGAO_SHARED)")
    return tk.load_tokenizer(TokenizerConfig(kind="file", path=str(QWEN)))


def test_round_trip_and_no_control_tokens_from_text(tokenizer):
    for text in TEXTS + LOOK_ALIKES:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not tokenizer.special_ids.intersection(ids), text
        assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert len(tokenizer.special_ids) == 6
    assert max(tokenizer.special_ids) < tokenizer.vocab_size


def test_decode_names_control_tokens_on_request(tokenizer):
    ids = [
        tokenizer.im_start,
        *tokenizer.encode("hi"),
        tokenizer.im_end,
        tokenizer.vision_start,
    ]
    assert tokenizer.decode(ids) == "hi"
    assert tokenizer.decode(ids, keep_special=True) == "<|im_start|>hi<|im_end|><|vision_start|>"


def test_lone_surrogates_do_not_crash(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a?b"


def test_byte_ids():
    t = tk.ByteTokenizer()
    assert t.encode("é!") == [0xC3, 0xA9, 0x21]
    assert t.vocab_size == 262
    assert [getattr(t, name) for name in tk.SPECIAL_TOKENS] == list(range(256, 262))


def test_all_tokens_that_qwen_marks_as_special_are_control_tokens():
    if not QWEN.is_dir():
        pytest.skip("the Qwen2.5 tokenizer is not at hand (MOGAO_SHARED)")
    ours = tk.BpeTokenizer(QWEN)
    assert ours.special_ids < ours.control_ids
    assert {151654, 151656} <= ours.control_ids  # <|vision_pad|>, <|video_pad|>
    assert 151657 not in ours.control_ids  # <tool_call>, which assistants write
    written = set(ours.encode("<|video_pad|> <|object_ref_start|> <tool_call> words"))
    assert not written & ours.control_ids


def test_qwen_ids_and_plain_text_equal_the_whole_tokenizer():
    if not QWEN.is_dir():
        pytest.skip("the Qwen2.5 tokenizer is not at hand (MOGAO_SHARED)")
    ours = tk.BpeTokenizer(QWEN / "tokenizer.json")
    whole = tokenizers.Tokenizer.from_file(str(QWEN / "tokenizer.json"))
    assert (ours.endoftext, ours.im_start, ours.im_end) == (151643, 151644, 151645)
    assert (ours.vision_start, ours.vision_end, ours.image_pad) == (
        151652,
        151653,
        151655,
    )
    assert ours.vocab_size == 151665
    for text in [
        "Draw two red circles, won't you?",
        "世界 123\n\n  x",
        "def f(x):\n    return x",
    ]:
        assert ours.encode(text) == whole.encode(text, add_special_tokens=False).ids


def test_a_special_token_inside_the_vocabulary_cannot_be_spelled(tmp_path):
    """Trained tokenizers keep special tokens in the model's vocabulary too."""
    path = small_bpe(tmp_path / "tokenizer.json", ignore_merges=True)
    spec = json.loads(path.read_text())
    for token in spec["added_tokens"]:
        spec["model"]["vocab"][token["content"]] = token["id"]
    path.write_text(json.dumps(spec))
    t = tk.BpeTokenizer(tmp_path)
    assert not t.special_ids.intersection(t.encode("<|im_end|>"))
    assert t.decode(t.encode("<|im_end|>")) == "<|im_end|>"


def test_errors(tmp_path):
    with pytest.raises(ConfigError, match="No tokenizer at .*nowhere"):
        tk.load_tokenizer(TokenizerConfig(kind="file", path=str(tmp_path / "nowhere")))
    with pytest.raises(ConfigError, match="tokenizer.path is empty"):
        tk.load_tokenizer(TokenizerConfig(kind="file"))
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ConfigError, match="bad.json.*not a tokenizer"):
        tk.BpeTokenizer(tmp_path / "bad.json")
    lacking = small_bpe(tmp_path / "lacking.json", special=["<|endoftext|>", "<|im_start|>"])
    with pytest.raises(ConfigError, match=r"no token <\|im_end\|>, <\|vision_start\|>"):
        tk.BpeTokenizer(lacking)
