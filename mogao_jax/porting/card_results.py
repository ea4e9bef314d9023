"""What a run's folder knows of its results, for the model card: sample images and scores."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from mogao_jax.errors import MogaoError
from mogao_jax.sequence.document import Image, Text, from_json

SAMPLES, SCORES = "samples", "scores.json"
IMAGES = "images"  # folder beside the card
_MOST = 12  # sampled documents
_BROKEN = (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError)


class Results(NamedTuple):
    """Parts of a model card."""

    header: list[str]  # lines of the YAML header (model-index)
    lines: list[str]  # of the card, in Markdown
    images: dict[str, pathlib.Path]  # file name below IMAGES -> the file to copy


NOTHING = Results([], [], {})


def results_of(run: pathlib.Path, name: str) -> Results:
    """What `mogao sample --out RUN/samples` and `mogao eval shapes --out RUN` left; maybe nothing.

    `run` is a run's folder, or one below it.
    """
    root = next((f for f in (run, *run.parents[:2]) if (f / "config.json").is_file()), run)
    shown, images = _samples(root / SAMPLES)
    header, scored = _scores(root / SCORES, name)
    return Results(header, [*shown, *scored], images)


def _samples(folder: pathlib.Path) -> tuple[list[str], dict[str, pathlib.Path]]:
    try:
        entries = json.loads((folder / "run.json").read_text(encoding="utf-8"))["documents"]
    except _BROKEN:
        return [], {}
    rows: list[str] = []
    images: dict[str, pathlib.Path] = {}
    for entry in entries[:_MOST]:
        try:
            file = folder / pathlib.PurePath(entry["file"]).name
            document = from_json(file.read_text(encoding="utf-8"), base_dir=folder, place=file.name)
        except (*_BROKEN, MogaoError):
            continue
        cells: list[list[str]] = [[], []]  # what was given, what was generated
        for number, item in enumerate(document.items):
            cell = cells[number >= int(entry["given"])]
            if isinstance(item, Text):
                cell.append(_escaped(item.text.strip()))
            elif isinstance(item, Image) and item.path is not None:
                images[item.path.name] = item.path
                cell.append(f"![]({IMAGES}/{item.path.name})")
        rows.append(f"| {' '.join(cells[0])} | {' '.join(cells[1])} |")
    if not rows:
        return [], {}
    return ["", "## Samples", "", "| prompt | generated |", "|---|---|", *rows], images


def _scores(file: pathlib.Path, name: str) -> tuple[list[str], list[str]]:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        world = str(record["settings"]["world"])
        lines = ["", "## Scores", "", f"Judged exactly, on held-out prompts ({world})."]
        for table in record["tables"]:
            head, *rest = ([_escaped(str(cell)) for cell in line] for line in table["lines"])
            lines += ["", f"### {table['title']}", "", f"| {' | '.join(head)} |"]
            lines += ["|---" * len(head) + "|", *(f"| {' | '.join(line)} |" for line in rest)]
        metrics = [_metric(row) for row in record["rows"] if row["group"] == "overall"]
    except _BROKEN:
        return [], []
    header = [
        "model-index:",
        f"- name: {json.dumps(name)}",
        "  results:",
        "  - task: {type: any-to-any}",
        f"    dataset: {{name: {json.dumps(world)}, type: shapes}}",
        "    metrics:",
        *metrics,
    ]
    return (header if metrics else []), lines


def _metric(row: Mapping[str, Any]) -> str:
    what = json.dumps(f"{row.get('title', row['task'])}: {row.get('label', row['metric'])}")
    return f"    - {{type: accuracy, value: {100 * float(row['value']):.1f}, name: {what}}}"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
