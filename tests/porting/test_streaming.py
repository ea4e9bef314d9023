"""Checkpoints written piece by piece: whole, or not there at all."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny_files as files

from mogao_jax.checkpoints import chunked_io
from mogao_jax.checkpoints.files import load_params
from mogao_jax.config.convert import to_dict
from mogao_jax.errors import CheckpointError, ConfigError, EnvironmentProblem
from mogao_jax.porting import from_hf, streaming, tensor_sources
from mogao_jax.porting.streaming import stream_checkpoint
from mogao_jax.porting.to_hf import export
from mogao_jax.tokenizer import ByteTokenizer

MODEL = dataclasses.replace(files.MODEL, num_layers=2, scan_layers=True)
CONFIG = dataclasses.replace(files.CONFIG, model=MODEL)


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    values = files.values(files.qwen2_shapes(MODEL), "bfloat16")
    return files.write(tmp_path_factory.mktemp("llm"), values, files.qwen2_config(MODEL))


def broken(llm, folder, change):
    """The LLM with something done to its tensors."""
    values = files.values(files.qwen2_shapes(MODEL), "bfloat16")
    change(values)
    return files.write(folder, values, json.loads((llm / "config.json").read_text()))


def left_in(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_pieces_smaller_than_arrays(llm, tmp_path, monkeypatch):
    """Embeddings read by rows, arrays of several files: the numbers are the same."""
    monkeypatch.setattr(tensor_sources, "PART_BYTES", 1000)
    monkeypatch.setattr(chunked_io, "PART_BYTES", 3000)
    stream_checkpoint(tmp_path / "out", CONFIG, llm=llm)
    files_of_one = list((tmp_path / "out" / "state" / "params.token_embedding").iterdir())
    assert len(files_of_one) > 10
    params, meta = load_params(tmp_path / "out")
    assert meta["porting"]["missing"] == []
    monkeypatch.undo()
    built = from_hf.build_mogao(llm, CONFIG, jax.random.key(CONFIG.seed))
    jax.tree.map(np.testing.assert_array_equal, params, built)


def test_all_wrong_keys_at_once_and_nothing_written(llm, tmp_path):
    def change(values):
        del values["model.layers.0.mlp.up_proj.weight"], values["model.layers.1.mlp.up_proj.weight"]
        values["model.norm.weight"] = values["model.norm.weight"][:5]
        values["model.layers.7.mlp.up_proj.weight"] = np.zeros(1, np.float32)

    folder = broken(llm, tmp_path / "llm", change)
    with pytest.raises(CheckpointError) as error:
        stream_checkpoint(tmp_path / "out", CONFIG, llm=folder)
    for part in (
        "model.layers.{0-1}.mlp.up_proj.weight is missing",
        "model.norm.weight has shape [5], the config wants [32]",
        "model.layers.7.mlp.up_proj.weight is not expected",
    ):
        assert part in str(error.value)
    assert left_in(tmp_path) == ["llm"]


def test_missing_keys_are_allowed_out_loud_and_recorded(llm, tmp_path):
    def change(values):
        del values["model.layers.1.mlp.up_proj.weight"]

    folder = broken(llm, tmp_path / "llm", change)
    ported = stream_checkpoint(
        tmp_path / "out", CONFIG, llm=folder, allow_missing=["*.1.mlp.up_proj.weight"]
    )
    assert any("layers.1.und.up.kernel" in note for note in ported.notes)
    params, meta = load_params(tmp_path / "out")
    assert meta["porting"]["allow_missing"] == ["*.1.mlp.up_proj.weight"]
    assert meta["porting"]["missing"] == ["layers.1.und.up.kernel"]
    fresh = from_hf.build_mogao(None, CONFIG, jax.random.key(CONFIG.seed))
    whole = from_hf.build_mogao(llm, CONFIG, jax.random.key(CONFIG.seed))
    for branch in ("und", "gen"):
        found = params["layers"]["block"][branch]["up"]["kernel"]
        wanted = [whole["layers"]["block"][branch]["up"]["kernel"][0],
                  fresh["layers"]["block"][branch]["up"]["kernel"][1]]  # fmt: skip
        np.testing.assert_array_equal(found, np.stack(wanted))


def test_another_architecture(llm, tmp_path):
    config = json.loads((llm / "config.json").read_text())
    config |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rope_theta": 1e4,
               "hidden_act": "gelu", "num_hidden_layers": 4}  # fmt: skip
    folder = shutil.copytree(llm, tmp_path / "llm")
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as error:
        stream_checkpoint(tmp_path / "out", CONFIG, llm=folder)
    for part in ("LlamaForCausalLM", "model_type", "hidden_act", "num_hidden_layers is 4",
                 "config.model.rope_theta is 1000000.0", "5 field(s)"):  # fmt: skip
        assert part in str(error.value)


def test_not_a_number_ends_it_without_a_trace(llm, tmp_path):
    def change(values):
        values["model.layers.1.mlp.down_proj.weight"][3, 3] = np.nan

    folder = broken(llm, tmp_path / "llm", change)
    with pytest.raises(CheckpointError, match=r"model.layers.1.mlp.down_proj.weight"):
        stream_checkpoint(tmp_path / "out", CONFIG, llm=folder)
    assert left_in(tmp_path) == ["llm"]
    ported = stream_checkpoint(tmp_path / "out", CONFIG, llm=folder, allow_non_finite=True)
    params, meta = load_params(ported.path)
    assert meta["porting"]["allow_nan"] is True
    down = np.asarray(params["layers"]["block"]["und"]["down"]["kernel"])
    assert np.isnan(down[1, 3, 3]) and np.isnan(down).sum() == 1
    export(ported.path, tmp_path / "back", part="llm")  # as it was allowed on the way in
    with pytest.raises(CheckpointError, match=r"1.mlp.down_proj.weight .*--allow-nan"):
        export(ported.path, tmp_path / "no", part="llm", allow_non_finite=False)
    assert not (tmp_path / "no").exists()


def test_nothing_is_overwritten(llm, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    with pytest.raises(EnvironmentProblem, match="exists already"):
        stream_checkpoint(tmp_path / "out", CONFIG, llm=llm)
    assert left_in(tmp_path / "out") == ["precious"]


def test_no_room_is_noticed_beforehand(llm, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=64 * 2**20 + 1000))
    with pytest.raises(EnvironmentProblem, match="GB of room"):
        stream_checkpoint(tmp_path / "out", CONFIG, llm=llm)
    assert left_in(tmp_path) == []


def test_no_room_in_the_middle(llm, tmp_path, monkeypatch):
    whole = chunked_io.PartWriter.write
    calls = []

    def write(self, name, start, rows):
        calls.append(name)
        if len(calls) == 9:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(self, name, start, rows)

    monkeypatch.setattr(chunked_io.PartWriter, "write", write)
    with pytest.raises(EnvironmentProblem, match="No space left"):
        stream_checkpoint(tmp_path / "out", CONFIG, llm=llm)
    assert len(calls) == 9 and left_in(tmp_path) == []


_TOO_LARGE = """
import json, resource, sys
from mogao_jax.config.convert import from_dict
from mogao_jax.errors import EnvironmentProblem
from mogao_jax.porting import streaming
resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
try:
    streaming.stream_checkpoint(sys.argv[2], from_dict(json.loads(sys.argv[3])), llm=sys.argv[1])
except EnvironmentProblem as e:
    print("refused:", e)
"""


def test_what_the_system_says_of_a_write_reaches_people(llm, tmp_path):
    """A real refusal, deep in the library that writes: files may not grow past 6000 bytes."""
    out = tmp_path / "out"
    arguments = [str(llm), str(out), json.dumps(to_dict(CONFIG))]
    result = subprocess.run(
        [sys.executable, "-c", _TOO_LARGE, *arguments], capture_output=True, text=True, timeout=600
    )
    assert "refused:" in result.stdout and "cannot be written" in result.stdout, result.stderr
    assert left_in(tmp_path) == []


_PEAK = """
import json, sys
from mogao_jax.checkpoints import chunked_io
from mogao_jax.config.convert import from_dict
from mogao_jax.porting import params, streaming, tensor_sources
from mogao_jax.process_memory import peak_bytes
tensor_sources.PART_BYTES = chunked_io.PART_BYTES = params.LARGE_BYTES = 4 * 2**20
seen = []
for llm, out, config in json.loads(sys.argv[1]):
    ported = streaming.stream_checkpoint(out, from_dict(config), llm=llm)
    seen.append([ported.num_bytes, peak_bytes()])
print(json.dumps(seen))
"""


def test_memory_does_not_grow_with_the_model(tmp_path):
    """What keeps the 7B under 6 GB: four times the layers take hardly more memory."""
    cases = []
    for layers in (4, 16):
        model = dataclasses.replace(
            MODEL, num_layers=layers, embed_dim=512, mlp_dim=1536, num_heads=8, head_dim=64
        )
        values = files.values(files.qwen2_shapes(model), "float32")
        llm = files.write(tmp_path / f"llm{layers}", values, files.qwen2_config(model))
        config = to_dict(dataclasses.replace(CONFIG, model=model))
        cases.append([str(llm), str(tmp_path / f"out{layers}"), config])
    result = subprocess.run(
        [sys.executable, "-c", _PEAK, json.dumps(cases)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},  # what each thread keeps would be counted
    )
    assert result.returncode == 0, result.stderr
    (small, less), (large, more) = json.loads(result.stdout)
    assert large - small > 250e6
    assert more - less < (large - small) / 8


def test_what_a_killed_process_left_is_taken_away(llm, tmp_path):
    partial = tmp_path / "out.partial"
    (partial / "state").mkdir(parents=True)
    (partial / "state" / "half").write_text("x")
    with pytest.raises(CheckpointError):  # never taken for a checkpoint
        load_params(partial)
    said: list[str] = []
    stream_checkpoint(tmp_path / "out", CONFIG, llm=llm, say=said.append)
    assert any("interrupted" in message for message in said)
    assert left_in(tmp_path) == ["out"]
    assert not (tmp_path / "out" / ".in-progress").exists()


def test_two_processes_do_not_write_the_same(llm, tmp_path):
    partial = tmp_path / "out.partial"
    partial.mkdir()
    with open(partial / ".in-progress", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(EnvironmentProblem, match="another process"):
            stream_checkpoint(tmp_path / "out", CONFIG, llm=llm)
    assert partial.is_dir()


def test_an_error_in_the_middle_leaves_nothing(llm, tmp_path, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(streaming, "copy_files", stop)
    with pytest.raises(KeyboardInterrupt):
        stream_checkpoint(tmp_path / "out", CONFIG, llm=llm)
    assert left_in(tmp_path) == []


def test_a_tokenizer_with_more_tokens_than_rows(llm, tmp_path):
    rows = ByteTokenizer().vocab_size - 1
    model = dataclasses.replace(MODEL, vocab_size=rows)
    values = files.values(files.qwen2_shapes(MODEL, vocab=rows))
    folder = files.write(tmp_path / "llm", values, files.qwen2_config(MODEL, vocab=rows))
    with pytest.raises(CheckpointError, match=f"262 tokens, but the embedding has {rows} rows"):
        stream_checkpoint(tmp_path / "out", dataclasses.replace(CONFIG, model=model), llm=folder)


def test_a_vision_tower_that_nobody_uses(llm, tmp_path):
    layout = dataclasses.replace(CONFIG.layout, understanding_encoder="vae")
    vit = files.write(tmp_path / "vit", files.values(files.vision_shapes()))
    with pytest.raises(ConfigError, match="understanding_encoder"):
        stream_checkpoint(
            tmp_path / "out", dataclasses.replace(CONFIG, layout=layout), llm=llm, vit=vit
        )


def test_without_a_config_json_it_is_said_what_was_not_checked(llm, tmp_path):
    shutil.copytree(llm, tmp_path / "bare")
    (tmp_path / "bare" / "config.json").unlink()
    ported = stream_checkpoint(tmp_path / "out", CONFIG, llm=tmp_path / "bare")
    notes = load_params(ported.path)[1]["porting"]["notes"]
    assert notes == ported.notes
    assert any("no config.json" in note and "rope_theta" in note for note in notes)
    assert any("no tokenizer.json" in note for note in notes)


def test_a_config_json_is_read_beside_a_file_of_any_name(llm, tmp_path):
    config = json.loads((llm / "config.json").read_text()) | {"rope_theta": 5.0}
    folder = files.write(
        tmp_path / "llm", files.values(files.qwen2_shapes(MODEL)), config, stem="weights"
    )
    with pytest.raises(CheckpointError, match="rope_theta is 5.0"):
        stream_checkpoint(tmp_path / "out", CONFIG, llm=folder / "weights.safetensors")


def test_a_head_that_is_not_the_embedding_is_not_dropped(llm, tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_sources, "PART_BYTES", 1000)  # in several parts

    def tied(values):
        values["lm_head.weight"] = values["model.embed_tokens.weight"].astype(np.float32)

    def differs(values):
        tied(values)
        values["lm_head.weight"][-1, -1] += 1

    source = from_hf.open_llm(broken(llm, tmp_path / "tied", tied))
    assert from_hf.plan_model(source, CONFIG).missing == []
    folder = broken(llm, tmp_path / "differs", differs)
    with pytest.raises(CheckpointError, match=r"lm_head.weight that is not its model.embed_tokens"):
        stream_checkpoint(tmp_path / "out", CONFIG, llm=folder)


def test_a_headless_model_with_its_own_config(llm, tmp_path):
    values = files.values(files.qwen2_shapes(MODEL), "bfloat16")
    config = files.qwen2_config(MODEL) | {"architectures": ["Qwen2Model"]}
    whole = files.write(tmp_path / "whole", values, config)
    with pytest.raises(CheckpointError, match="Qwen2Model"):
        from_hf.plan_model(from_hf.open_llm(whole), CONFIG)
    bare = {key.removeprefix("model."): value for key, value in values.items()}
    source = from_hf.open_llm(files.write(tmp_path / "bare", bare, config))
    assert len(from_hf.plan_model(source, CONFIG).pairs) == len(values)


def test_rows_of_new_tokens_are_not_for_load_llm(llm):
    model = dataclasses.replace(MODEL, vocab_size=309)
    porting = dataclasses.replace(CONFIG.porting, vocabulary="extend")
    config = dataclasses.replace(CONFIG, model=model, porting=porting)
    with pytest.raises(ConfigError, match=r"309 rows, .* has 300, .* build_mogao"):
        from_hf.load_llm(llm, config)
