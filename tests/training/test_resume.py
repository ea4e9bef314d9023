"""The whole command: trained, killed and resumed, it goes on to the last bit."""

from __future__ import annotations

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
import tiny_system as tiny

from mogao_jax.checkpoints.exported import read_header
from mogao_jax.checkpoints.sidecar_files import keep_origin
from mogao_jax.cli.main import main
from mogao_jax.models.encoder_weights import save_weights

ROOT = pathlib.Path(__file__).resolve().parents[2]

STEPS = 60
CONFIG = """
from mogao_jax.config.convert import default_config, source

def get_config():
    c = default_config()
    c.tokenizer.kind = "shapes"
    c.images.max_pixels, c.images.max_side = 4096, 96
    c.images.vit_resize = "match_vae_grid"
    c.data.sources = {
        name: source(kind="shapes", task=name) for name in ("edit", "qa", "t2i")}
    c.data.validation_documents = 6
    c.packing.und_tokens, c.packing.clean_tokens, c.packing.noised_tokens = 256, 80, 80
    c.packing.images, c.packing.vit_patches, c.packing.pool = 8, 384, 8
    c.model.num_layers, c.model.embed_dim, c.model.mlp_dim = 1, 16, 24
    c.model.num_heads, c.model.num_kv_heads, c.model.head_dim = 2, 1, 8
    c.vae.weights, c.vit.weights = "{folder}/vae.safetensors", "{folder}/vit.safetensors"
    c.vae.block_channels, c.vae.layers_per_block = (4, 4, 8, 8), 1
    c.vae.norm_groups, c.vae.scaling_factor, c.vae.shift_factor = 2, 1.0, 0.0
    c.vit.depth, c.vit.embed_dim, c.vit.num_heads, c.vit.mlp_dim = 1, 16, 2, 32
    c.optimizer.warmup_steps = 2
    c.train.num_steps, c.train.global_batch_rows, c.train.grad_accum_steps = {steps}, 1, 2
    c.train.log_every, c.train.checkpoint_every = 1, 4
    return c
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("config")
    params = tiny.encoders()
    save_weights(folder / "vae.safetensors", params.vae, tiny.CONFIG.vae)
    save_weights(folder / "vit.safetensors", params.vit, tiny.CONFIG.vit)
    path = folder / "config.py"
    path.write_text(CONFIG.replace("{folder}", str(folder)).replace("{steps}", str(STEPS)))
    return path


def start(
    config: pathlib.Path, workdir: pathlib.Path, *flags: str, devices: int = 1
) -> subprocess.Popen:
    environment = os.environ | {
        "XLA_FLAGS": re.sub(r"(device_count)=\d+", rf"\1={devices}", os.environ["XLA_FLAGS"]),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "mogao_jax.cli.main", "train", f"--config={config}"]
    command += ["--workdir", str(workdir), *flags]
    return subprocess.Popen(
        command,
        env=environment,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen, status: int = 0) -> str:
    output, errors = process.communicate(timeout=600)
    assert process.returncode == status, errors
    return output + errors


def records(workdir: pathlib.Path, split: str = "train") -> dict[int, dict]:
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    parsed = [json.loads(line) for line in lines]
    return {r["step"]: r for r in parsed if r["split"] == split}


def wait_until(process: subprocess.Popen, condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def whole_checkpoints(workdir: pathlib.Path) -> list[int]:
    return [int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()]


MEASURED = ("loss", "ntp_loss", "flow_loss", "grad_norm")


@pytest.mark.slow
def test_killed_and_resumed_losses_are_bit_identical(config, tmp_path):
    finish(start(config, tmp_path / "whole"))
    whole = records(tmp_path / "whole")
    assert sorted(whole) == list(range(1, STEPS + 1))

    killed = start(config, tmp_path / "killed")
    wait_until(killed, lambda: whole_checkpoints(tmp_path / "killed"))
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    last = max(whole_checkpoints(tmp_path / "killed"))
    assert last <= STEPS - 5, "the run was over before it could be killed"
    said = finish(start(config, tmp_path / "killed"))
    assert f"resuming at step {last}" in said
    resumed = records(tmp_path / "killed")
    assert sorted(resumed) == list(range(1, STEPS + 1))
    for step in range(last + 1, STEPS + 1):  # the next five, and all after them
        for name in MEASURED:
            assert resumed[step][name] == whole[step][name], (step, name)
    for split in ("validation", "validation_no_condition"):
        a, b = records(tmp_path / "killed", split)[STEPS], records(tmp_path / "whole", split)[STEPS]
        assert a["flow_loss"] == b["flow_loss"] and a["ntp_loss"] == b["ntp_loss"]

    # Once more: nothing is left to do; and another config is refused, naming the field.
    assert "already finished" in finish(start(config, tmp_path / "killed"))
    other = start(config, tmp_path / "killed", "--config.model.mlp_dim=32")
    _, errors = other.communicate(timeout=600)
    assert other.returncode == 2 and "model.mlp_dim" in errors and "Traceback" not in errors


@pytest.mark.slow
def test_sigterm_saves_and_the_run_goes_on_upon_a_mesh(config, tmp_path):
    flags = ("--config.train.global_batch_rows=8", "--config.train.grad_accum_steps=1")
    process = start(config, tmp_path, *flags, "--config.train.num_steps=100000")
    wait_until(process, lambda: 2 in records(tmp_path))
    process.send_signal(signal.SIGTERM)
    said = finish(process, 128 + signal.SIGTERM)
    assert "Stopped at step" in said
    last = max(records(tmp_path))
    assert (tmp_path / "checkpoints" / str(last)).is_dir()

    mesh = ("--config.mesh.data=4", "--config.mesh.fsdp=2")
    flags = (*flags, *mesh, f"--config.train.num_steps={last + 3}")
    said = finish(start(config, tmp_path, *flags, devices=8))
    assert f"resuming at step {last}" in said and "data=4 x fsdp=2" in said
    after = records(tmp_path)
    assert max(after) == last + 3
    # Training goes on from where it was: the loss does not jump back to an untrained model's.
    before = records(tmp_path, "validation_untrained")[0]
    assert records(tmp_path, "validation")[last + 3]["ntp_loss"] < before["ntp_loss"]


@pytest.mark.slow
def test_what_a_ported_start_was_built_around_goes_along(config, tmp_path):
    """From a run that began with someone's LLM to the next one, and into an exported file."""
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    finish(start(config, first, "--config.train.num_steps=2"))
    record = {"llm": {"config": {"model_type": "qwen2"}, "path": "theirs"}}
    (first / "porting.json").write_text(json.dumps(record))
    (first / "generation_config.json").write_text('{"top_p": 0.8}')
    finish(start(config, second, "--config.train.num_steps=2", f"--config.train.init_from={first}"))
    assert json.loads((second / "porting.json").read_text()) == record
    assert json.loads((second / "generation_config.json").read_text()) == {"top_p": 0.8}

    file = tmp_path / "model.safetensors"
    assert main(["export", str(second), "--out", str(file)]) == 0
    assert read_header(file).porting == record
    third.mkdir()
    keep_origin(third, file)
    assert json.loads((third / "porting.json").read_text()) == record
