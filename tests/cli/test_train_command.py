"""What `mogao train` refuses, before time is spent: one message, with the place and the remedy."""

from __future__ import annotations

import pathlib

import pytest

from mogao_jax.cli.main import main

QUICKSTART = pathlib.Path(__file__).resolve().parents[2] / "configs" / "quickstart.py"


def refused(capsys, *arguments: str) -> str:
    # Rows for the eight simulated devices of the tests, unless the case is about that.
    rows = "--config.train.global_batch_rows=8"
    assert main(["train", f"--config={QUICKSTART}", rows, *arguments]) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("--config.model.num_layer=3", ["model.num_layer", "num_layers"]),
        ("--config.model.num_layers=many", ["model.num_layers", "many"]),
        ("--config.train.global_batch_rows=0", ["train.global_batch_rows", "1"]),
        ("--config.model.num_kv_heads=3", ["num_heads", "num_kv_heads"]),
        ("--config.model.fusion=deeper", ["model.fusion", "deep", "shared"]),
        ("--config.packing.noised_tokens=4", ["packing.noised_tokens"]),
        (
            "--config.data.sources.t2i.options.task=paint",
            ["data.sources.t2i.options.task", "paint"],
        ),
        (
            "--config.data.sources.t2i.options.category=shapes",
            ["data source 't2i'", "category", "counting"],
        ),
        (
            "--config.data.sources.edit.options.category=move",
            ["data source 'edit'", "category", "leave it empty"],
        ),
        ("--config.model.vocab_size=100", ["model.vocab_size", "768"]),
        ("--config.vae.weights=/nowhere/vae.safetensors", ["/nowhere/vae.safetensors"]),
        ("--config.vit.depth=5", ["vit.depth"]),
        ("--config.mesh.fsdp=3", ["mesh", "8 devices"]),
        ("--config.train.global_batch_rows=3", ["train.global_batch_rows", "8"]),
    ],
)
def test_impossible_configs(capsys, tmp_path, flag, named):
    message = refused(capsys, "--workdir", str(tmp_path / "run"), flag)
    for word in named:
        assert word in message, message


def test_missing_documents(capsys, tmp_path):
    message = refused(
        capsys,
        "--workdir",
        str(tmp_path / "run"),
        "--config.data.sources.t2i.kind=documents",
        f"--config.data.sources.t2i.path={tmp_path}/none.jsonl",
    )
    assert "t2i" in message and "none.jsonl" in message


def test_a_workdir_that_cannot_be_made(capsys, tmp_path):
    (tmp_path / "file").write_text("in the way")
    message = refused(capsys, "--workdir", str(tmp_path / "file" / "run"))
    assert str(tmp_path / "file") in message and "--workdir" in message
