"""Records at Weights & Biases, through a stand-in of its library."""

from __future__ import annotations

import dataclasses
import sys
import types

import pytest

from mogao_jax.config.schema import MogaoConfig, TrainConfig
from mogao_jax.errors import EnvironmentProblem
from mogao_jax.training.wandb_writer import WandbWriter

CONFIG = MogaoConfig(
    name="small", train=TrainConfig(wandb="mogao", experiment="first", tags=("a", "b"))
)


class FakeWandb(types.ModuleType):
    def __init__(self):
        super().__init__("wandb")
        self.began, self.logged, self.finished = [], [], 0

    def init(self, **arguments):
        self.began.append(arguments)
        return types.SimpleNamespace(id="r1", log=self._log, finish=self._finish)

    def _log(self, values, step):
        self.logged.append((step, values))

    def _finish(self):
        self.finished += 1


def test_a_run_and_its_resumption(monkeypatch, tmp_path):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    writer = WandbWriter(CONFIG, tmp_path / "run")
    writer.write(3, {"loss": 1.5, "ntp_loss/qa": 2.0})
    writer.write(3, {"flow_loss": 0.5}, split="validation")
    writer.close()
    WandbWriter(CONFIG, tmp_path / "run")
    first, second = fake.began
    assert (first["project"], first["name"], first["tags"]) == ("mogao", "first", ["a", "b"])
    assert first["id"] is None and first["config"]["name"] == "small"
    assert (second["id"], second["resume"]) == ("r1", "allow")
    assert fake.logged == [
        (3, {"train/loss": 1.5, "train/ntp_loss/qa": 2.0}), (3, {"validation/flow_loss": 0.5})
    ]  # fmt: skip
    assert fake.finished == 1


def test_what_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(EnvironmentProblem, match=r"mogao_jax\[wandb\]"):
        WandbWriter(CONFIG, tmp_path)
    fake = FakeWandb()
    fake.init = lambda **arguments: (_ for _ in ()).throw(OSError("no network"))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with pytest.raises(EnvironmentProblem, match="no network.*wandb login"):
        WandbWriter(dataclasses.replace(CONFIG), tmp_path)
