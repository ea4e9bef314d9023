"""`mogao export`: a run becomes a file that holds the same numbers."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
import tiny_checkpoint as checkpoint

from mogao_jax.checkpoints import exported
from mogao_jax.cli.main import main
from mogao_jax.sampling import options as options_lib


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return checkpoint.write_run(tmp_path_factory.mktemp("export") / "run")


@pytest.mark.parametrize(("weights", "seed"), [("best", 1), ("ema", 1), ("raw", 0)])
def test_the_file_holds_what_was_asked_for(run, tmp_path, capsys, weights, seed):
    out = tmp_path / "model.safetensors"
    arguments = ["--out", str(out), "--dtype", "float32", "--weights", weights]
    assert main(["export", str(run), *arguments]) == 0
    header = exported.read_header(out)
    assert header.weights == ("raw" if weights == "raw" else "ema")
    assert header.step == checkpoint.STEP and header.config == checkpoint.config()
    read = exported.read_params(out, checkpoint.shapes())
    jax.tree.map(np.testing.assert_array_equal, read, checkpoint.params(seed))
    said = capsys.readouterr().out
    assert f"{sum(x.size for x in jax.tree.leaves(read)):,} parameters" in said
    assert str(out) in said and f"step {checkpoint.STEP}" in said


def test_what_the_file_is_to_be_sampled_with(run, tmp_path):
    out = tmp_path / "model.safetensors"
    flags = ["--steps", "20", "--guidance", "3", "--image-guidance", "2", "--top-p", "0.5"]
    assert main(["export", str(run), "--out", str(out), *flags]) == 0
    config = exported.read_header(out).config
    assert dataclasses.astuple(config.sampling) == (20, 3.0, 2.0, 0.7, 0.5)
    assert dataclasses.replace(config, sampling=checkpoint.config().sampling) == checkpoint.config()
    options = options_lib.make_options({"num_steps": 7, "top_k": 5}, config)
    assert (options.num_steps, options.guidance_scale, options.top_k) == (7, 3.0, 5)


def test_one_checkpoint_folder(run, tmp_path):
    folder = run / "checkpoints" / str(checkpoint.STEP)
    assert main(["export", str(folder), "--out", str(tmp_path / "model.safetensors")]) == 0


def test_refusals(tmp_path, capsys):
    run = checkpoint.write_run(tmp_path / "run", ema=False)
    out = str(tmp_path / "model.safetensors")
    assert main(["export", str(tmp_path / "none"), "--out", out]) == 2
    assert "none" in capsys.readouterr().err
    assert main(["export", str(run), "--out", out, "--weights", "ema"]) == 2
    assert "moving average" in capsys.readouterr().err
    assert main(["export", str(run), "--out", out, "--guidance", "-1"]) == 2
    assert "guidance_scale" in capsys.readouterr().err
    assert main(["export", str(run), "--out", str(tmp_path / "model.bin")]) == 2
    assert ".safetensors" in capsys.readouterr().err
