"""`mogao port`: what it prints, what it refuses, and its exit status."""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import shutil

import numpy as np
import pytest
import tiny_files as files

from mogao_jax.cli.main import main
from mogao_jax.config.convert import to_dict
from mogao_jax.errors import CheckpointError
from mogao_jax.porting.mogao_checkpoint import MogaoCheckpoint

MODEL = dataclasses.replace(files.MODEL, num_layers=2)
DEMO = importlib.resources.files("mogao_jax") / "worlds" / "shapes" / "assets" / "demo.safetensors"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """llm/, other/ (an LLM that differs in three tensors), config.json and a checkpoint."""
    folder = tmp_path_factory.mktemp("port")
    values = files.values(files.qwen2_shapes(MODEL), "bfloat16")
    files.write(folder / "llm", values, files.qwen2_config(MODEL))
    other = dict(values)
    other["model.layers.1.mlp.up_proj.weight"] = values["model.layers.1.mlp.up_proj.weight"] * 2
    other["model.norm.weight"] = values["model.norm.weight"].astype(np.float32)
    other["model.extra"] = np.zeros(3, np.float32)
    del other["model.layers.0.mlp.up_proj.weight"]
    other["model.layers.0.mlp.down_proj.weight"] = np.zeros((2, 2), files.DTYPES["bfloat16"])
    files.write(folder / "other", other, files.qwen2_config(MODEL))
    config = dataclasses.replace(files.CONFIG, model=MODEL)
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    return folder


@pytest.fixture(scope="module")
def checkpoint(place):
    flags = [f"--config={place / 'config.json'}", "--llm", str(place / "llm")]
    assert main(["port", "from-hf", *flags, "--out", str(place / "ckpt")]) == 0
    return place / "ckpt"


def run(capsys, *arguments) -> tuple[int, str, str]:
    status = main(["port", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_from_hf_says_what_it_made(place, capsys):
    flags = [f"--config={place / 'config.json'}", "--llm", place / "llm"]
    status, out, err = run(capsys, "from-hf", *flags, "--out", place / "said")
    assert status == 0
    for part in ("und branch", "gen branch", "AdaLN", "GB in", "peak memory"):
        assert part in out
    assert "100%" in err  # the bar
    status, _, err = run(capsys, "from-hf", *flags, "--out", place / "said")
    assert status == 2 and "exists already" in err and "Traceback" not in err


def test_from_hf_needs_a_config(place, capsys):
    status, _, err = run(capsys, "from-hf", "--llm", place / "llm", "--out", place / "x")
    assert status == 2 and "--config" in err


def test_to_hf_writes_files_and_names_them(place, checkpoint, capsys):
    status, out, _ = run(capsys, "to-hf", checkpoint, "--part", "llm", "--out", place / "back")
    assert status == 0 and str(place / "back" / "model.safetensors") in out
    status, out, _ = run(capsys, "diff", place / "llm", place / "back")
    assert status == 0 and "26 tensors have equal values" in out and out.endswith("equal\n")


def test_inspect_a_checkpoint(checkpoint, capsys):
    status, out, _ = run(capsys, "inspect", checkpoint)
    assert status == 0
    lines = [line.split() for line in out.splitlines()]
    row = ["und", "branch", "layers.{0-1}.und.query.kernel", "2", "32", "x", "4", "x", "8",
           "float32", "2,048"]  # fmt: skip
    assert row in lines
    assert next(line[:2] for line in lines if line[:1] == ["from"]) == ["from", "llm"]
    data = json.loads(run(capsys, "inspect", checkpoint, "--json")[1])
    shapes = [line for part in data["parts"].values() for line in part]
    total = sum(line["count"] * int(np.prod(line["shape"])) for line in shapes)
    assert data["parameters"] == total and f"{total:,} parameters" in out
    assert data["fingerprint"] in out and len(data["fingerprint"]) == 16


def test_inspect_a_folder(place, capsys):
    first = json.loads(run(capsys, "inspect", place / "llm", "--json")[1])
    assert first["title"] == "safetensors of Qwen2ForCausalLM"
    sizes = files.qwen2_shapes(MODEL).values()
    assert first["parameters"] == sum(int(np.prod(shape)) for shape in sizes)
    again = json.loads(run(capsys, "inspect", place / "llm", "--json")[1])
    other = json.loads(run(capsys, "inspect", place / "other", "--json")[1])
    assert first["fingerprint"] == again["fingerprint"] != other["fingerprint"]


def test_diff_says_everything_that_differs(place, capsys):
    status, out, _ = run(capsys, "diff", place / "llm", place / "other")
    assert status == 1
    for part in (
        "1 tensors are bfloat16 in A, float32 in B",
        "1 tensors are in A alone: model.layers.0.mlp.up_proj.weight",
        "1 tensors are in B alone: model.extra",
        "model.layers.0.mlp.down_proj.weight: shape [32, 48] in A, [2, 2] in B",
        "1 tensors have other values",
        "model.layers.1.mlp.up_proj.weight: relative 1,",
        "different",
    ):
        assert part in out, out


def test_a_damaged_checkpoint_is_noticed(checkpoint, place, capsys, tmp_path):
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    # A whole chunk of one array in place of another's: readable, and wrong.
    chunk = "state/params.layers_{}.und.up.kernel/0.0"
    shutil.copyfile(copy / chunk.format(0), copy / chunk.format(1))
    status, _, err = run(capsys, "to-hf", copy, "--part", "llm", "--out", tmp_path / "out")
    assert status == 2 and "damaged" in err and "layers_1/und/up/kernel" in err
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()
    (copy / chunk.format(1)).write_bytes(b"nonsense")
    status, _, err = run(capsys, "to-hf", copy, "--part", "llm", "--out", tmp_path / "out")
    assert status == 2 and "damaged" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["from-hf", "--out"], ["--out"]),
        (["sideways"], ["sideways", "from-hf"]),
        (["inspect", "/nowhere/at/all"], ["/nowhere/at/all"]),
        (["to-hf", "/nowhere", "--out", "/tmp/x"], ["/nowhere"]),
    ],
)
def test_refusals(capsys, arguments, words):
    status, _, err = run(capsys, *arguments)
    assert status == 2 and "Traceback" not in err
    for word in words:
        assert word in err


def test_help(capsys):
    assert main(["port"]) == 2 and main(["port", "--help"]) == 0
    assert "from-hf" in capsys.readouterr().out


def test_inspect_says_whether_the_fingerprint_was_checked(checkpoint, capsys, tmp_path):
    assert "(saved, not checked)" in run(capsys, "inspect", checkpoint)[1]
    assert "(saved, and checked)" in run(capsys, "inspect", checkpoint, "--verify")[1]
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    chunk = "state/params.layers_{}.gen.up.kernel/0.0"
    shutil.copyfile(copy / chunk.format(0), copy / chunk.format(1))
    status, _, err = run(capsys, "inspect", copy, "--verify")
    assert status == 2 and "damaged" in err and "layers_1/gen/up/kernel" in err
    (copy / chunk.format(1)).write_bytes(b"nonsense")
    status, _, err = run(capsys, "inspect", copy, "--verify")
    assert status == 2 and "damaged" in err and "Traceback" not in err


def test_an_older_checkpoint_in_place_of_a_damaged_one_is_said(checkpoint, tmp_path, caplog):
    for step in ("10", "20"):
        shutil.copytree(checkpoint, tmp_path / "checkpoints" / step)
    meta = tmp_path / "checkpoints" / "20" / "meta" / "metadata"
    meta.write_text(meta.read_text().replace('"step": 0', '"step": 1'))
    assert MogaoCheckpoint(tmp_path).folder.name == "10"
    assert "Damaged checkpoint left out" in caplog.text and "meta file is damaged" in caplog.text


def test_an_average_that_nobody_kept(checkpoint):
    with pytest.raises(CheckpointError, match="has no moving average"):
        MogaoCheckpoint(checkpoint, weights="ema")
    with importlib.resources.as_file(DEMO) as file:
        kept = MogaoCheckpoint(file).weights
        other = {"ema": "raw", "raw": "ema"}[kept]
        with pytest.raises(CheckpointError, match=f"holds {kept} parameters only"):
            MogaoCheckpoint(file, weights=other)


def test_a_damaged_exported_file_is_noticed_on_opening(tmp_path, capsys):
    data = bytearray(DEMO.read_bytes())
    data[-5001] ^= 0x44
    (tmp_path / "demo.safetensors").write_bytes(data)
    status, _, err = run(capsys, "to-hf", tmp_path / "demo.safetensors", "--out", tmp_path / "out")
    assert status == 2 and "checksum is wrong" in err
    assert not (tmp_path / "out").exists()


def test_a_folder_of_ours_with_a_broken_config(place, tmp_path, capsys):
    shutil.copy(place / "llm" / "model.safetensors", tmp_path)
    for fields, words in (({}, "no config of the model"), ({"config": {}, "step": "x"}, "'x'")):
        fields = {"model_type": "mogao", **fields}
        (tmp_path / "config.json").write_text(json.dumps(fields))
        with pytest.raises(CheckpointError, match=words):
            MogaoCheckpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mogao"}))
    status, _, err = run(capsys, "from-hf", "--llm", tmp_path, "--out", tmp_path / "out")
    assert status == 2 and "no config of the model" in err


def test_files_of_no_end(checkpoint, capsys, tmp_path):
    status, _, err = run(capsys, "to-hf", checkpoint, "--out", tmp_path / "x", "--shard-gb", "inf")
    assert status == 2 and "above 0" in err
