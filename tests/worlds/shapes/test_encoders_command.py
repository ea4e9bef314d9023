"""`mogao encoders`: arguments and messages (what it computes is tested in tests/encoders)."""

from __future__ import annotations

import json

import pytest

from mogao_jax.errors import CheckpointError, EnvironmentProblem
from mogao_jax.worlds.shapes.commands import encoders


def test_arguments_are_checked_before_time_is_spent(tmp_path, capsys):
    for argv in ([], ["train", "--part", "audio", "--out", "x"], ["train", "--part", "vae"]):
        with pytest.raises(SystemExit) as stop:
            encoders.main(argv)
        assert stop.value.code == 2
    with pytest.raises(SystemExit):
        encoders.main(["train", "--part", "vae", "--minutes", "0", "--out", str(tmp_path)])
    assert "--minutes must be positive" in capsys.readouterr().err
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(EnvironmentProblem, match="cannot make"):
        encoders.main(["train", "--part", "vit", "--out", str(file / "below")])


def test_check_of_missing_weights_names_the_file(tmp_path):
    with pytest.raises(CheckpointError, match="absent.safetensors"):
        encoders.main(["check", "--vae", str(tmp_path / "absent.safetensors")])


def test_check_prints_figures_as_json(monkeypatch, capsys):
    from mogao_jax.worlds.shapes.tiny_encoders import check

    monkeypatch.setattr(check, "figures", lambda vae, vit: {"vae": vae, "vit": vit})
    assert encoders.main(["check", "--vit", "a"]) == 0
    assert json.loads(capsys.readouterr().out) == {"vae": "", "vit": "a"}
