"""Where commands write: checked before time is spent."""

from __future__ import annotations

import pathlib

from mogao_jax.errors import EnvironmentProblem
from mogao_jax.paths import expanded


def write_text(path: pathlib.Path, text: str, mode: str = "w") -> None:
    """Writes (mode "a": only opens, to see whether it can be written) the file of --json.

    Raises:
      EnvironmentProblem: it cannot be written.
    """
    path = expanded(path)
    try:
        with path.open(mode, encoding="utf-8") as file:
            file.write(text)
    except OSError as e:
        raise EnvironmentProblem(
            f"--json: {str(path)!r} cannot be written ({e.strerror}); name a file in a folder "
            "that exists and is yours."
        ) from e
