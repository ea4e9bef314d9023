"""The completion script knows every command, action and flag."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from mogao_jax.cli.main import COMMANDS, main


@pytest.fixture(scope="module")
def script() -> str:
    pytest.importorskip("shtab")
    done = subprocess.run(
        [sys.executable, "-m", "mogao_jax", "completion", "bash"],
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    return done.stdout


def test_every_command_is_there(script):
    for name in COMMANDS:
        assert f"_shtab_mogao_{name}_option_strings=" in script, name
    for flags in ("sample_option_strings=(-h --help --image ", "eval_shapes_option_strings=(-h",
                  "data_budgets_option_strings=(-h --help --num", "--allow-missing"):  # fmt: skip
        assert flags in script


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_bash_completes(script, tmp_path):
    file = tmp_path / "mogao"
    file.write_text(script)
    asked = (
        f"source {file}; COMP_WORDS=(mogao sample --image-gui); COMP_CWORD=2; "
        "COMP_LINE='mogao sample --image-gui'; COMP_POINT=24; _shtab_mogao; "
        'echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["--image-guidance"], done.stderr


def test_without_the_library(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "mogao_jax[completion]" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", ["data inspect", "data fill", "data budgets", "data encode", "port from-hf", "train"]
)
def test_help_shows_the_config(command, capsys):
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    assert "--config=FILE" in capsys.readouterr().out
