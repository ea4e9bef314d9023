"""The page's part on scores: what `mogao eval shapes --out` left in the run's folder.

Several models may be scored there (`scores.json`, `scores_demo.json`, ...): each says whose it is.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

from mogao_jax.tools.report.curves import data_address
from mogao_jax.tools.report.run_folder import Run

_HEADINGS = {
    "own": "The model of this run",
    "untrained": "The same model untrained",
    "demo": "The demo checkpoint of the package (not trained in this run)",
}
_MAX_GRID_BYTES = 16 * 2**20
_PNG = b"\x89PNG\r\n\x1a\n"


def scores_section(run: Run) -> list[dict[str, Any]]:
    """One entry per scored model, the run's own first; files that hold no scores are left out."""
    found = []
    for path in sorted(run.workdir.glob("scores*.json")):
        entry = _entry(path)
        if entry is not None:
            found.append(entry)
    order = list(_HEADINGS)
    return sorted(found, key=lambda e: order.index(e["role"]) if e["role"] in order else len(order))


def _entry(path: pathlib.Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        role = str(record["role"])
        tables = [
            {
                "title": str(table["title"]),
                "head": [str(cell) for cell in table["lines"][0]],
                "lines": [[str(cell) for cell in line] for line in table["lines"][1:]],
                "notes": [str(note) for note in table["notes"]],
            }
            for table in record["tables"]
        ]
        settings = {str(k): str(v) for k, v in record["settings"].items()}
        name, grid = str(record["name"]), str(record["grid"])
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None
    return {
        "role": role,
        "heading": _HEADINGS.get(role, role),
        "name": name,
        "tables": tables,
        "settings": settings,
        "grid": _grid(path.parent, grid),
        "page": _beside(path.parent, grid.removesuffix(".png") + ".html"),
    }


def _grid(folder: pathlib.Path, name: str) -> str | None:
    """The picture grid, to stand in the page; None if there is none of bearable size."""
    path = _beside(folder, name)
    if path is None:
        return None
    try:
        with (folder / path).open("rb") as file:
            content = file.read(_MAX_GRID_BYTES + 1)
    except OSError:
        return None
    if len(content) > _MAX_GRID_BYTES or not content.startswith(_PNG):
        return None
    return data_address(content, "image/png")


def _beside(folder: pathlib.Path, name: str) -> str | None:
    """The name of a file that really lies in the folder itself."""
    if not name or pathlib.PurePath(name).name != name or not (folder / name).is_file():
        return None
    return name if not (folder / name).is_symlink() else None
