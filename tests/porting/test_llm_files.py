"""The tokenizer beside a language model is found, and held against the config's, however given."""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import shutil

import pytest
import tiny_files as files

from mogao_jax.config.convert import to_dict
from mogao_jax.config.schema import TokenizerConfig
from mogao_jax.errors import CheckpointError
from mogao_jax.porting.llm_files import copy_files, settle_tokenizer
from mogao_jax.porting.tensor_sources import InMemory
from mogao_jax.tokenizer import ByteTokenizer, load_tokenizer

CONFIG = files.CONFIG  # of 300 rows, with the tokenizer of bytes
FOREIGN = importlib.resources.files("mogao_jax") / "worlds" / "shapes" / "tokenizer.json"
EOS = ByteTokenizer().im_end


@pytest.fixture
def llm(tmp_path):
    """A folder as an LLM's, with a tokenizer that is not the config's."""
    folder = tmp_path / "llm"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"")
    with importlib.resources.as_file(FOREIGN) as file:
        shutil.copy(file, folder / "tokenizer.json")
    return folder


@pytest.mark.parametrize(
    "place", ["llm", "llm/model.safetensors", "~/llm", "~/llm/model.safetensors"]
)
def test_another_tokenizer_is_refused_however_the_llm_is_given(llm, tmp_path, monkeypatch, place):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    source = InMemory({}, place=place)
    with pytest.raises(CheckpointError, match="another tokenizer"):
        settle_tokenizer(CONFIG, source, place, None)
    (llm / "generation_config.json").write_text("{}")
    (tmp_path / "out").mkdir()
    copy_files(tmp_path / "out", CONFIG, place)
    assert (tmp_path / "out" / "generation_config.json").is_file()


def test_its_own_tokenizer_is_taken_where_the_config_leaves_it_open(llm, tmp_path):
    model = dataclasses.replace(CONFIG.model, vocab_size=5000)
    config = dataclasses.replace(CONFIG, model=model, tokenizer=TokenizerConfig("file", ""))
    settled = settle_tokenizer(config, InMemory({}), llm / "model.safetensors", None)
    assert settled.config.tokenizer.path == str(llm / "tokenizer.json")
    assert settled.facts["vocab_size"] == load_tokenizer(TokenizerConfig("shapes")).vocab_size
    assert settled.notes == []


def test_an_llm_without_a_tokenizer_is_said(llm, tmp_path):
    (llm / "tokenizer.json").unlink()
    for config in ({}, {"eos_token_id": EOS}, {"eos_token_id": [EOS, EOS - 1]}):
        settled = settle_tokenizer(CONFIG, InMemory({}, config=config, place="x"), llm, None)
        (note,) = settled.notes
        assert "no tokenizer.json" in note and "300 rows" in note and "262 tokens" in note
    assert settle_tokenizer(CONFIG, None, None, None).notes == []


def test_ids_of_its_config_belong_to_another_tokenizer(llm):
    file = llm / "tokenizer.json"
    elsewhere = shutil.move(file, llm.parent / "elsewhere.json")
    source = InMemory({}, config={"bos_token_id": None, "eos_token_id": [EOS, 7]}, place="x")
    with pytest.raises(CheckpointError, match=r"eos_token_id 7, .* no control token"):
        settle_tokenizer(CONFIG, source, llm, None)
    model = dataclasses.replace(CONFIG.model, vocab_size=5000)
    source = InMemory({}, config={"eos_token_id": 4999}, place="x")
    wide = dataclasses.replace(CONFIG, model=model)
    (note,) = settle_tokenizer(wide, source, llm, elsewhere).notes  # a person said so
    assert "eos_token_id 4999" in note and "--tokenizer" in note


def test_a_whole_model_says_which_embedded_tokenizer_it_has(llm):
    (llm / "tokenizer.json").unlink()
    fields = json.loads(json.dumps(to_dict(CONFIG)))
    source = InMemory({}, config={"model_type": "mogao", "config": fields}, place="x")
    assert settle_tokenizer(CONFIG, source, llm, None).notes == []
    model = dataclasses.replace(CONFIG.model, vocab_size=5000)
    other = dataclasses.replace(CONFIG, model=model, tokenizer=TokenizerConfig("shapes"))
    with pytest.raises(CheckpointError, match=r"'byte' is another tokenizer .*kind=byte"):
        settle_tokenizer(other, source, llm, None)
