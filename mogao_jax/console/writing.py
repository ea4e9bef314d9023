"""The file of --json: checked before time is spent, written at the end."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from mogao_jax.errors import EnvironmentProblem
from mogao_jax.paths import expanded


def require_writable_json(path: pathlib.Path | None) -> None:
    """Opens the file of --json, so that no result is lost after hours of work. None: no file.

    Raises:
      EnvironmentProblem: it cannot be written.
    """
    if path is not None:
        _write(path, "", mode="a")


def write_json(path: pathlib.Path | None, record: Any) -> None:
    """Writes the file of --json. None: no file.

    Raises:
      EnvironmentProblem: it cannot be written.
    """
    if path is not None:
        _write(path, json.dumps(record, indent=2) + "\n", mode="w")


def _write(path: pathlib.Path, text: str, mode: str) -> None:
    path = expanded(path)
    try:
        with path.open(mode, encoding="utf-8") as file:
            file.write(text)
    except OSError as e:
        raise EnvironmentProblem(
            f"--json: {str(path)!r} cannot be written ({e.strerror}); name a file in a folder "
            "that exists and is yours."
        ) from e
