"""What commands write: log lines on stderr, and the file of --json."""

from __future__ import annotations

import json
import logging
import pathlib
import sys
from typing import Any

from mogao_jax.errors import EnvironmentProblem
from mogao_jax.paths import expanded


def configure_logging() -> None:
    """Plain lines on stderr: ours from INFO on, other libraries' from WARNING on."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", force=True)
    logging.getLogger("mogao_jax").setLevel(logging.INFO)
    # absl repeats Orbax's every save at INFO; its warnings name internals no user can act on.
    for library in ("absl", "orbax", "jax"):
        logging.getLogger(library).setLevel(logging.ERROR)


def progress(message: str) -> None:
    """Says on stderr what a long command is doing."""
    print(f"... {message}", file=sys.stderr, flush=True)


def require_writable_json(path: pathlib.Path | None) -> None:
    """Opens the file of --json, so that no result is lost after hours of work. None: no file.

    Raises:
      EnvironmentProblem: it cannot be written.
    """
    _write(path, "", mode="a")


def write_json(path: pathlib.Path | None, record: Any) -> None:
    """Writes the file of --json, and raises as above. None: no file."""
    _write(path, json.dumps(record, indent=2) + "\n", mode="w")


def _write(path: pathlib.Path | None, text: str, mode: str) -> None:
    if path is None:
        return
    path = expanded(path)
    try:
        with path.open(mode, encoding="utf-8") as file:
            file.write(text)
    except OSError as e:
        raise EnvironmentProblem(
            f"--json: {str(path)!r} cannot be written ({e.strerror}); name a file in a folder "
            "that exists and is yours."
        ) from e
