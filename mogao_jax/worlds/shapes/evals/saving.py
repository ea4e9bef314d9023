"""Scores on disk: scores.json, and the picture grids beside it."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib

from mogao_jax.atomic import atomic_file, write_file
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
    remedy = "Give a folder that you may write to."
    text = json.dumps(to_json(scores), indent=1, allow_nan=False)
    write_file(files[0], text + "\n", remedy=remedy)
    if small:
        files += [root / picture, root / f"grid{suffix}.html"]
        with atomic_file(files[1], remedy=remedy) as partial:
            grid.png(f"Scores of {scores.title}", small).save(partial, "PNG", optimize=True)
        write_file(files[2], grid.page(scores, large, beside), remedy=remedy)
    return files
