"""Paths as people write them."""

from __future__ import annotations

import functools
import pathlib

import pytest

from mogao_jax.atomic import require_writable
from mogao_jax.console.output import require_writable_json, write_json
from mogao_jax.errors import EnvironmentProblem
from mogao_jax.gallery.folder import Folder
from mogao_jax.paths import expanded


def test_home_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded("~/x") == tmp_path / "x" and expanded("a/~") == pathlib.Path("a/~")
    assert require_writable(pathlib.Path("~/made")) == tmp_path / "made"
    write_json(pathlib.Path("~/made/a.json"), {})
    assert (tmp_path / "made" / "a.json").read_text() == "{}\n"
    assert Folder("~/samples").path == tmp_path / "samples"


def test_homes_of_nobody():
    write = functools.partial(write_json, record={})
    for make in (expanded, Folder, require_writable, require_writable_json, write):
        with pytest.raises(EnvironmentProblem, match="'~nosuchuser/x': there is no such home"):
            make(pathlib.Path("~nosuchuser/x"))
