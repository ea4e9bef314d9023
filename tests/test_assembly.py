"""`mogao_jax.train`: a tiny run with an own evaluator and writer, stopped and resumed."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny_system as tiny
from ml_collections import ConfigDict
from PIL import Image

import mogao_jax
from mogao_jax import assembly
from mogao_jax.config.convert import to_dict
from mogao_jax.config.schema import DataConfig, MogaoConfig, SourceConfig
from mogao_jax.errors import ConfigError
from mogao_jax.models.encoder_weights import save_weights
from mogao_jax.sharding.mesh import make_mesh
from mogao_jax.training.metrics import read_metrics

STEPS = 4


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr(assembly, "make_mesh", lambda c: make_mesh(c, jax.devices()[:1]))


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> MogaoConfig:
    """Documents of a caption and an image; the last ones are held out."""
    folder = tmp_path_factory.mktemp("train")
    rng = np.random.default_rng(0)
    lines = []
    for i in range(12):
        pixels = rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        items = [
            {"type": "text", "text": f"number {i}", "role": "user"},
            {"type": "image", "path": f"{i}.png", "role": "assistant"},
        ]
        lines.append(json.dumps({"id": str(i), "items": items}))
    (folder / "d.jsonl").write_text("\n".join(lines))
    encoders = tiny.encoders()
    save_weights(folder / "vae.safetensors", encoders.vae, tiny.CONFIG.vae)
    save_weights(folder / "vit.safetensors", encoders.vit, tiny.CONFIG.vit)
    sources = {"d": SourceConfig(kind="documents", path=str(folder / "d.jsonl"))}
    changed = tiny.config(
        model={"num_layers": 1},
        tokenizer={"kind": "byte"},
        vae={"weights": str(folder / "vae.safetensors")},
        vit={"weights": str(folder / "vit.safetensors")},
        optimizer={"warmup_steps": 1, "ema_decay": 0.5},
        train={"num_steps": STEPS, "global_batch_rows": 1, "log_every": 1, "checkpoint_every": 2,
               "eval_every": 2},
    )  # fmt: skip
    return dataclasses.replace(changed, data=DataConfig(sources=sources, validation_documents=2))


class Recorder:
    """A writer of one's own."""

    def __init__(self):
        self.records = []

    def write(self, step, metrics, split="train"):
        self.records.append((step, split, dict(metrics)))

    def steps(self, split):
        return [step for step, name, _ in self.records if name == split]


def norm(params):
    return {"norm": sum(float(np.square(np.asarray(x)).sum()) for x in jax.tree.leaves(params))}


def test_a_run_is_stopped_resumed_and_finished(config, tmp_path):
    recorder, setups = Recorder(), []
    options = {"evaluators": {"size": norm}, "writers": [recorder], "on_start": setups.append}
    stop = iter([False, False, True])
    first = mogao_jax.train(config, tmp_path / "run", should_stop=lambda: next(stop), **options)
    assert (first.step, first.finished) == (2, False)
    assert first.workdir == tmp_path / "run" and (first.workdir / "checkpoints" / "2").is_dir()
    (setup,) = setups
    assert setup.validation and setup.assembly.modules.sources == ("d",)
    assert setup.tokenizer.vocab_size == tiny.TOKENIZER.vocab_size
    assert recorder.steps("validation_untrained") == [0] and recorder.steps("train") == [1, 2]

    fields = ConfigDict(to_dict(config))  # the same config in another form
    second = mogao_jax.train(fields, str(tmp_path / "run"), **options)
    assert (second.step, second.finished) == (STEPS, True) == (int(second.state.step), True)
    assert recorder.steps("train") == [1, 2, 3, 4]
    assert recorder.steps("size") == recorder.steps("validation") == [2, 4]
    assert recorder.steps("validation_no_condition") == [4]
    assert second.counters.tokens > first.counters.tokens > 0
    wanted = {"train", "size", "validation", "validation_no_condition", "validation_untrained"}
    assert second.metrics.keys() == wanted
    assert second.metrics["train"]["step"] == STEPS and second.metrics["train"]["loss"] > 0
    assert second.metrics["size"]["norm"] == norm(second.state.ema_params)["norm"]
    for split in wanted:  # writers get what metrics.jsonl gets
        stored = [r["step"] for r in read_metrics(second.workdir, split)]
        assert stored == recorder.steps(split)

    # Once more, by a file: nothing is left to do.
    path = tmp_path / "run" / "config.json"
    third = mogao_jax.train(path, tmp_path / "run", **options)
    assert third.finished and third.metrics == second.metrics and len(setups) == 2
    jax.tree.map(np.testing.assert_array_equal, third.state.params, second.state.params)


def test_splits_of_the_run_are_not_for_evaluators(config, tmp_path):
    with pytest.raises(ConfigError, match="evaluators: validation"):
        mogao_jax.train(config, tmp_path, evaluators={"validation": norm})


def test_importing_the_package_imports_no_jax():
    code = "import sys, mogao_jax; assert 'jax' not in sys.modules; mogao_jax.train"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
    with pytest.raises(AttributeError, match="no attribute 'trane'"):
        mogao_jax.trane  # noqa: B018
