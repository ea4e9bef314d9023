"""Scores on disk: scores.json, and the picture grids beside it."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib

from mogao_jax.errors import EnvironmentProblem
from mogao_jax.paths import expanded
from mogao_jax.worlds.shapes.evals import grid
from mogao_jax.worlds.shapes.evals.cards import sections
from mogao_jax.worlds.shapes.evals.scores import Scores, to_json


def save(
    scores: Scores, folder: str | os.PathLike, suffix: str = "", beside: Scores | None = None
) -> list[pathlib.Path]:
    """Writes scores<suffix>.json, grid<suffix>.png and grid<suffix>.html into a folder.

    Args:
      suffix: such as "_demo", so that several models' scores can lie in one folder.
      beside: another model's scores, shown in the page's tables.
    Returns:
      The files.
    Raises:
      EnvironmentProblem: the folder or a file cannot be written.
    """
    root = expanded(folder)
    picture = f"grid{suffix}.png"
    small = sections(scores.outcomes, grid.PNG_PER_CATEGORY)
    large = sections(scores.outcomes, grid.HTML_PER_CATEGORY)
    scores = dataclasses.replace(scores, grid=picture if small else "")
    files = [root / f"scores{suffix}.json"]
    try:
        root.mkdir(parents=True, exist_ok=True)
        text = json.dumps(to_json(scores), indent=1, allow_nan=False)
        _replace(files[0], text.encode("utf-8") + b"\n")
        if small:
            files += [root / picture, root / f"grid{suffix}.html"]
            grid.png(f"Scores of {scores.title}", small).save(files[1], "PNG", optimize=True)
            _replace(files[2], grid.page(scores, large, beside).encode("utf-8"))
    except OSError as e:
        raise EnvironmentProblem(
            f"scores cannot be written to {str(root)!r} ({e.strerror or e}); give a folder that "
            "you may write to."
        ) from e
    return files


def _replace(path: pathlib.Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)
