"""The page's parts on samples and scores, which other commands left in the run's folder.

`mogao sample --out WORKDIR/samples` leaves a folder of documents. `mogao eval shapes --out WORKDIR`
leaves a file of scores per model (`scores.json`, `scores_demo.json`, ...), each of which says whose
they are. Files that are broken, and links to other places, are left out.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from mogao_jax import images
from mogao_jax.errors import MogaoError
from mogao_jax.sequence.document import Item, Text, from_json
from mogao_jax.tools.report.charts import data_url
from mogao_jax.tools.report.data_section import small_png
from mogao_jax.tools.report.run_folder import Run

FOLDER = "samples"
_RUN, _PAGE = "run.json", "index.html"  # as `mogao_jax.gallery.folder` writes them
_MAX_DOCUMENTS = 24
_MAX_ITEMS = 40  # of a document
_SHOWN = 128  # pixels of an image's longer side, enlarged by a whole factor if it is smaller
_STOPS = {"end": "", "max_images": "", "max_tokens": "cut: too much text",
          "cache_full": "cut: the context is full"}  # fmt: skip
# By the role of the model, in this order.
_HEADINGS = {
    "own": "The model of this run",
    "untrained": "The same model untrained",
    "demo": "The demo checkpoint of the package (not trained in this run)",
}
_COLUMNS = {"own": "trained", "untrained": "untrained", "demo": "demo"}  # of the table of all
_OVERALL = "overall"
_MAX_GRID_BYTES = 16 * 2**20
_PNG = b"\x89PNG\r\n\x1a\n"
# What reading a file of another make may raise.
_BROKEN = (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError)


def samples_section(run: Run) -> dict[str, Any] | None:
    """What was sampled and how; None if there is nothing."""
    folder = run.workdir / FOLDER
    try:
        record = json.loads((folder / _RUN).read_text(encoding="utf-8"))
        entries = list(record["documents"])
        section: dict[str, Any] = {k: str(record[k]) for k in ("checkpoint", "step", "weights")}
        section["steps"] = record.get("num_steps")
        section["scales"] = [record.get(f"{of}guidance_scale") for of in ("", "image_")]
    except _BROKEN:
        return None
    documents = [d for d in (_document(folder, e) for e in entries[:_MAX_DOCUMENTS]) if d]
    if not documents:
        return None
    return {
        **section,
        "documents": documents,
        "num_hidden": max(0, len(entries) - _MAX_DOCUMENTS),
        "page": f"{FOLDER}/{_PAGE}" if (folder / _PAGE).is_file() else None,
    }


def _document(folder: pathlib.Path, entry: Any) -> dict[str, Any] | None:
    """A document's items in order, those that were given marked."""
    try:
        name, given, stop = str(entry["file"]), int(entry["given"]), str(entry["stop"])
        if not _beside(folder, name):
            return None
        text = (folder / name).read_text(encoding="utf-8")
        document = from_json(text, base_dir=folder, place=name)
        items = [_item(x) | {"given": i < given} for i, x in enumerate(document.items[:_MAX_ITEMS])]
    except (*_BROKEN, MogaoError):
        return None
    return {"title": document.id, "stop": _STOPS.get(stop, stop), "entries": items}


def _item(item: Item) -> dict[str, Any]:
    if isinstance(item, Text):
        return {"text": item.text}
    pixels = images.load_pixels(item)
    height, width = pixels.shape[:2]
    longest = max(height, width)
    scale = _SHOWN / longest if longest > _SHOWN else _SHOWN // longest
    shown = max(1, round(width * scale))
    return {"image": small_png(pixels), "size": f"{height} x {width}", "width": shown}


def scores_section(run: Run) -> list[dict[str, Any]]:
    """One entry per scored model, the run's own first."""
    found = filter(None, map(_scores, sorted(run.workdir.glob("scores*.json"))))
    order = {role: place for place, role in enumerate(_HEADINGS)}
    return sorted(found, key=lambda e: order.get(e["role"], len(order)))


def _scores(path: pathlib.Path) -> dict[str, Any] | None:
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
        figures = [_figure(row) for row in record["rows"]]
    except _BROKEN:
        return None
    return {
        "role": role,
        "heading": _HEADINGS.get(role, role),
        "name": name,
        "tables": tables,
        "figures": {figure["key"]: figure for figure in figures},
        "settings": settings,
        "grid": _grid(path.parent, grid),
        "page": _beside(path.parent, grid.removesuffix(".png") + ".html"),
    }


def _figure(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a scores file: what of, (percent, interval), chance."""

    def percent(value: Any, form: str = "{:.0f}") -> str:
        return "" if value is None else form.format(100 * float(value))

    task, group, metric = (str(row[name]) for name in ("task", "group", "metric"))
    return {
        "key": (task, group, metric),
        "title": str(row.get("title", task)),
        "label": str(row.get("label", metric)),
        "cell": (percent(row["value"]), f"{percent(row['low'])}, {percent(row['high'])}"),
        "chance": (percent(row["chance"], "{:.1f}"), ""),
    }


def compare(scored: list[dict[str, Any]]) -> dict[str, Any]:
    """One table of the scored models: {'columns', 'rows': [{'name', 'is_heading', 'cells'}]}.

    A cell is (percent, interval). A task that is judged in one way has a line for each of its
    categories, others a line for each way. The first model says in which world; models that were
    scored in another one cannot be compared, and are left out.
    """
    models = [m for m in scored if m["role"] in _COLUMNS]
    models = [m for m in models if m["settings"].get("world") == models[0]["settings"].get("world")]
    if not models:
        return {"columns": [], "rows": []}
    figures = models[0]["figures"]
    metrics = {(task, metric) for task, _, metric in figures}
    rows: list[dict[str, Any]] = []
    titles = set()
    for (task, group, metric), figure in figures.items():
        several = len([m for t, m in metrics if t == task]) > 1
        if several and group != _OVERALL:
            continue
        if task not in titles:
            titles.add(task)
            rows.append({"name": figure["title"], "is_heading": True, "cells": []})
        found = [m["figures"].get((task, group, metric)) for m in models]
        cells = [f["cell"] if f else ("", "") for f in found]
        name = figure["label"] if several else group.replace("_", " ")
        rows.append({"name": name, "is_heading": False, "cells": [*cells, figure["chance"]]})
    columns = [_COLUMNS[m["role"]] for m in models]
    return {"columns": [*columns, "chance"], "rows": rows}


def as_text(table: Mapping[str, Any]) -> str:
    """What `compare` returns, for a terminal; "" if there are no scores."""
    lines = []
    for row in table["rows"]:
        cells = [f"{value} [{interval}]" if interval else value for value, interval in row["cells"]]
        name = row["name"] if row["is_heading"] else f"  {row['name']}"
        lines.append(f"{name:<22}" + "".join(f"{cell:>16}" for cell in cells))
    head = " " * 22 + "".join(f"{column:>16}" for column in table["columns"])
    return "\n".join([head, *lines]) if lines else ""


def _grid(folder: pathlib.Path, name: str) -> str | None:
    """The image grid, to stand in the page; None if there is none, or one that is too large."""
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
    return data_url(content, "image/png")


def _beside(folder: pathlib.Path, name: str) -> str | None:
    """The name of a file that really lies in the folder itself; None for any other."""
    if not name or pathlib.PurePath(name).name != name or not (folder / name).is_file():
        return None
    return name if not (folder / name).is_symlink() else None
