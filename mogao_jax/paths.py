"""Paths as people write them."""

from __future__ import annotations

import os
import pathlib

from mogao_jax.errors import EnvironmentProblem


def expanded(path: str | os.PathLike) -> pathlib.Path:
    """The path with the home folder in place of `~`.

    Raises:
      EnvironmentProblem: `~name` of somebody who has no home here.
    """
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError:
        raise EnvironmentProblem(
            f"{os.fspath(path)!r}: there is no such home folder here; write the path out."
        ) from None
