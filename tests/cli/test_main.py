"""The dispatcher: help, unknown commands, and how errors reach the user."""

from __future__ import annotations

import importlib
import os
import pathlib
import subprocess
import sys
import types

import pytest

import mogao_jax
from mogao_jax.cli import main as cli
from mogao_jax.errors import ConfigError, MogaoError
from mogao_jax.registry import Command

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _command(monkeypatch, function):
    command = types.SimpleNamespace(help="", run=function)
    monkeypatch.setitem(cli.COMMANDS, "train", command)


def test_help_lists_every_command(capsys):
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "encoders" in cli.COMMANDS  # a world's
    for name, command in cli.COMMANDS.items():
        assert any(name in line and command.help in line for line in out.splitlines())


def test_every_command_has_a_module_with_main():
    for name, command in cli.COMMANDS.items():
        module, _, function = command.main.partition(":")
        assert callable(getattr(importlib.import_module(module), function)), name


def test_a_command_that_is_not_installed_is_named():
    with pytest.raises(MogaoError, match=r"mogao_jax\.attic.*not in this installation"):
        Command("", "mogao_jax.attic:main").run([])


def test_no_command_shows_help_and_fails(capsys):
    assert cli.main([]) == 2
    assert "usage: mogao COMMAND" in capsys.readouterr().out


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert mogao_jax.__version__ in capsys.readouterr().out


def test_unknown_command(capsys):
    assert cli.main(["trian"]) == 2
    assert "did you mean 'train'?" in capsys.readouterr().err


def test_arguments_and_status_pass_through(monkeypatch):
    seen = []
    _command(monkeypatch, lambda argv: seen.append(argv) or 7)
    assert cli.main(["train", "--config=x", "--workdir", "y"]) == 7
    assert seen == [["--config=x", "--workdir", "y"]]


def test_user_errors_are_one_message_without_traceback(monkeypatch, capsys):
    def fail(argv):
        raise ConfigError("config.a is 3; it must be 4.")

    _command(monkeypatch, fail)
    assert cli.main(["train"]) == 2
    assert capsys.readouterr().err == "mogao: config.a is 3; it must be 4.\n"


def test_interrupt_is_130(monkeypatch):
    def interrupt(argv):
        raise KeyboardInterrupt

    _command(monkeypatch, interrupt)
    assert cli.main(["train"]) == 130


def test_our_own_defects_keep_their_traceback(monkeypatch):
    def defect(argv):
        raise ValueError("ours")

    _command(monkeypatch, defect)
    with pytest.raises(ValueError, match="ours"):
        cli.main(["train"])


def test_help_does_not_import_jax():
    code = (
        "import sys; from mogao_jax.cli.main import main; main(['--help']); "
        "assert 'jax' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT, timeout=60
    )


@pytest.mark.parametrize("command", ["train", "export", "profile", "recipes", "eval"])
def test_help_is_quick(command):
    """It imports no JAX, which takes seconds."""
    code = (
        "import sys\nfrom mogao_jax.cli.main import main\n"
        f"try:\n    main([{command!r}, '--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'jax', 'matplotlib', 'grain'} & set(sys.modules), 'slow'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("device", ["accel0", "vfio/0", "nvidia0", ""])
def test_without_a_tpu_libtpu_is_not_asked(tmp_path, device):
    (tmp_path / "libtpu").mkdir()
    (tmp_path / "libtpu/__init__.py").write_text("")
    code = (
        "import os, pathlib, sys, mogao_jax.cli.main as m; os.environ.pop('JAX_PLATFORMS', None);"
        f"d = pathlib.Path({str(tmp_path / 'dev')!r}); (d / {device!r}).mkdir(parents=True);"
        "m.skip_absent_tpus(d); print(os.environ.get('JAX_PLATFORMS'))"
    )
    paths = os.pathsep.join([str(tmp_path), os.getcwd()])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert done.stdout.split() == ["None" if device else "cpu"], done.stderr
