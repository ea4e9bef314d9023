"""Exported models: what is written is what is read, and anything else is refused by name."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import tiny_checkpoint as checkpoint

import mogao_jax
from mogao_jax.checkpoints import exported
from mogao_jax.errors import CheckpointError, EnvironmentProblem
from mogao_jax.tokenizer import BpeTokenizer, ByteTokenizer, load_tokenizer


@pytest.fixture
def path(tmp_path):
    return checkpoint.write_file(tmp_path / "model.safetensors", dtype="float32")


def rewrite(path, change):
    """Changes (tensors, metadata) of a file and gives it a fitting digest."""
    with safetensors.safe_open(path, "np") as f:
        metadata, tensors = f.metadata(), {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    change(tensors, metadata)
    if "digest" in metadata:
        metadata["digest"] = exported.content_digest(metadata, tensors, tensors.__getitem__)
    safetensors.numpy.save_file(tensors, path, metadata)


def refused(path, error=CheckpointError) -> str:
    with pytest.raises(error) as caught:
        exported.read_header(path)
        exported.read_params(path, checkpoint.shapes())
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 0.0), ("float16", 2**-11), ("bfloat16", 2**-8)]
)
def test_round_trip(tmp_path, dtype, tolerance):
    path = checkpoint.write_file(tmp_path / "new" / "model.safetensors", dtype=dtype)
    header = exported.read_header(path)
    assert (header.config, header.step, header.weights) == (
        checkpoint.config(),
        checkpoint.STEP,
        "ema",
    )
    assert header.tokenizer == exported.tokenizer_digest(ByteTokenizer())
    read = exported.read_params(path, checkpoint.shapes())
    assert jax.tree.structure(read) == jax.tree.structure(checkpoint.params())
    for a, b in zip(jax.tree.leaves(read), jax.tree.leaves(checkpoint.params()), strict=True):
        assert isinstance(a, jax.Array) and a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, tolerance, 1e-7 if tolerance else 0)
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing temporary left


def test_every_wrong_tensor_is_listed(path):
    def change(tensors, metadata):
        names = sorted(tensors)
        tensors["surplus"] = tensors.pop(names[0])
        tensors["token_embedding"] = tensors["token_embedding"][:, :5].copy()
        change.missing = names[0]

    rewrite(path, change)
    message = refused(path)
    assert "3 problem(s)" in message
    assert f"{change.missing} is missing" in message
    assert "surplus is not expected" in message
    assert "token_embedding has shape [262, 5], the config wants [262, 32]" in message


def test_a_flipped_bit_is_noticed_everywhere(path):
    """One bit in a tensor, one in the config: safetensors itself notices neither."""
    original = path.read_bytes()
    start = 8 + int.from_bytes(original[:8], "little")
    data = bytearray(original)
    data[start + 1001] ^= 4
    path.write_bytes(data)
    assert "checksum" in refused(path)
    path.write_bytes(original.replace(b'\\"warmup_steps\\": 100', b'\\"warmup_steps\\": 101'))
    assert path.read_bytes() != original
    assert "checksum" in refused(path)


@pytest.mark.parametrize("kept", [0, 5, 300, -1])
def test_files_cut_short(path, kept):
    data = path.read_bytes()
    path.write_bytes(data[:kept])
    assert "safetensors" in refused(path)


def test_foreign_files(path):
    path.write_bytes(b"\x80\x04\x95 a pickle, say" * 50)
    assert "safetensors" in refused(path)
    safetensors.numpy.save_file({"x": np.zeros(3)}, path)
    assert "mogao export" in refused(path)
    path.unlink()
    assert "no file" in refused(path)


def test_versions_and_configs_from_the_future(path):
    rewrite(path, lambda tensors, metadata: metadata.update(version="7"))
    assert "version 7" in refused(path)
    rewrite(path, lambda tensors, metadata: metadata.update(version="1", config="{}}"))
    assert "damaged" in refused(path)
    later = json.dumps({"model": {"num_experts": 8}})
    rewrite(path, lambda tensors, metadata: metadata.update(config=later, written_by="9.0"))
    message = refused(path)
    assert "9.0" in message and "num_experts" in message
    rewrite(path, lambda tensors, metadata: metadata.pop("step"))
    assert "step" in refused(path)


def test_values_that_are_not_finite(tmp_path, path):
    values = checkpoint.params()
    values["token_embedding"][3, 4] = np.nan
    with pytest.raises(CheckpointError, match="token_embedding"):
        checkpoint.write_file(tmp_path / "nan.safetensors", values)
    assert not (tmp_path / "nan.safetensors").exists()
    rewrite(path, lambda tensors, _: tensors["token_embedding"].__setitem__((1, 1), np.inf))
    assert "token_embedding" in refused(path)


def test_float16_refuses_what_it_cannot_hold(tmp_path):
    values = checkpoint.params()
    values["token_embedding"][3, 4] = -7e4
    with pytest.raises(CheckpointError, match=r"token_embedding reaches 7e\+04.*bfloat16"):
        checkpoint.write_file(tmp_path / "large.safetensors", values, dtype="float16")
    checkpoint.write_file(tmp_path / "large.safetensors", values, dtype="bfloat16")


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EnvironmentProblem, match="in|cannot be written"):
        checkpoint.write_file(tmp_path / "file" / "model.safetensors")
    with pytest.raises(CheckpointError, match="safetensors"):
        checkpoint.write_file(tmp_path / "model.bin")


def test_tokenizer_digest_tells_vocabularies_apart(tmp_path):
    config = dataclasses.replace(checkpoint.config().tokenizer, kind="shapes")
    shapes = load_tokenizer(config)
    assert exported.tokenizer_digest(shapes) == exported.tokenizer_digest(load_tokenizer(config))
    assert exported.tokenizer_digest(shapes) != exported.tokenizer_digest(ByteTokenizer())
    file = pathlib.Path(mogao_jax.__file__).parent / "worlds" / "shapes" / "tokenizer.json"
    spec = json.loads(file.read_text(encoding="utf-8"))
    last = spec["model"]["merges"].pop()  # the same vocabulary, but other ids for one word
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    other = BpeTokenizer(tmp_path)
    word = "".join(last).replace("Ġ", " ")
    assert other.vocab_size == shapes.vocab_size
    assert other.encode(word) != shapes.encode(word)
    assert exported.tokenizer_digest(other) != exported.tokenizer_digest(shapes)
