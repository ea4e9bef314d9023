from __future__ import annotations

import json
import os

import pytest

from mogao_jax.errors import EnvironmentProblem
from mogao_jax.training import workdir


def test_prepare_makes_the_folder_and_leaves_nothing(tmp_path):
    path = workdir.prepare(tmp_path / "a" / "b", needed_bytes=1000)
    assert path.is_absolute() and list(path.iterdir()) == []
    assert workdir.prepare(path) == path


@pytest.mark.parametrize("place", ["file/run", "file"])
def test_what_cannot_be_a_folder(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match="cannot be written.*--workdir"):
        workdir.prepare(tmp_path / place)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path):
    (tmp_path / "run").mkdir(mode=0o500)
    with pytest.raises(EnvironmentProblem, match="cannot be written"):
        workdir.prepare(tmp_path / "run")


def test_a_full_disk_is_found_before_training(tmp_path, monkeypatch):
    usage = workdir.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(workdir.shutil, "disk_usage", lambda _: usage._replace(free=2**30))
    with pytest.raises(EnvironmentProblem, match="has 1.00 GiB of room.*about 3.06 GiB"):
        workdir.prepare(tmp_path, needed_bytes=3 * 2**30)
    workdir.prepare(tmp_path, needed_bytes=2**29)
    # Checkpoints that are there already make room for those that replace them.
    (tmp_path / "checkpoints").mkdir()
    with open(tmp_path / "checkpoints" / "big", "wb") as f:
        f.truncate(5 * 2**30)
    workdir.prepare(tmp_path, needed_bytes=3 * 2**30)


def test_checkpoint_bytes():
    assert workdir.checkpoint_bytes(100, 2) == 300


def test_config_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    workdir.write_config(tmp_path, {"b": 1, "a": [1.5, "x"]})
    first = (tmp_path / "config.json").read_text()
    assert json.loads(first) == {"a": [1.5, "x"], "b": 1}

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(workdir.os, "fsync", fail)
    with pytest.raises(EnvironmentProblem, match="config.json.*No space left"):
        workdir.write_config(tmp_path, {"c": 1})
    assert (tmp_path / "config.json").read_text() == first
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
