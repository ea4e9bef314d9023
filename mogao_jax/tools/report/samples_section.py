"""The page's part on samples: what `mogao sample --out WORKDIR/samples` left in the folder."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from mogao_jax import images
from mogao_jax.errors import MogaoError
from mogao_jax.sequence.document import Document, Text, from_json
from mogao_jax.tools.report.curves import data_address
from mogao_jax.tools.report.data_section import small_png
from mogao_jax.tools.report.run_folder import Run

FOLDER = "samples"
_RUN, _PAGE = "run.json", "index.html"  # as `mogao_jax.gallery.folder` writes them
_MAX_DOCUMENTS = 24
_MAX_ITEMS = 40  # of a document
_SHOWN = 128  # pixels of a picture's longer side, enlarged by a whole factor if it is smaller
_STOPS = {
    "end": "",
    "max_images": "",
    "max_tokens": "cut: too much text",
    "cache_full": "cut: the context is full",
}


def samples_section(run: Run) -> dict[str, Any] | None:
    """What was sampled and how; None if there is nothing. Broken documents are left out."""
    folder = run.workdir / FOLDER
    try:
        record = json.loads((folder / _RUN).read_text(encoding="utf-8"))
        entries = list(record["documents"])
        facts = {name: str(record[name]) for name in ("checkpoint", "step", "weights")}
        steps = record.get("num_steps")
        scales = [record.get(name) for name in ("guidance_scale", "image_guidance_scale")]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    documents = [d for d in (_document(folder, e) for e in entries[:_MAX_DOCUMENTS]) if d]
    if not documents:
        return None
    return {
        **facts,
        "steps": steps,
        "scales": scales,
        "documents": documents,
        "num_hidden": max(0, len(entries) - _MAX_DOCUMENTS),
        "page": f"{FOLDER}/{_PAGE}" if (folder / _PAGE).is_file() else None,
    }


def _document(folder: pathlib.Path, entry: Any) -> dict[str, Any] | None:
    """A document's items in order, those that were given marked."""
    try:
        name, given, stop = str(entry["file"]), int(entry["given"]), str(entry["stop"])
        if pathlib.PurePath(name).name != name or (folder / name).is_symlink():
            return None
        text = (folder / name).read_text(encoding="utf-8")
        document = from_json(text, base_dir=folder, place=name)
        items = _items(document, given)
    except (OSError, ValueError, KeyError, TypeError, MogaoError):
        return None
    return {"title": document.id, "stop": _STOPS.get(stop, stop), "entries": items}


def _items(document: Document, given: int) -> list[dict[str, Any]]:
    out = []
    for index, item in enumerate(document.items[:_MAX_ITEMS]):
        shown: dict[str, Any] = {"given": index < given}
        if isinstance(item, Text):
            shown["text"] = item.text
        else:
            pixels = images.load_pixels(item)
            height, width = pixels.shape[:2]
            shown["picture"] = data_address(small_png(pixels), "image/png")
            shown["size"] = f"{height} x {width}"
            shown["width"] = max(1, round(width * _enlargement(height, width)))
        out.append(shown)
    return out


def _enlargement(height: int, width: int) -> float:
    longest = max(height, width)
    return _SHOWN / longest if longest > _SHOWN else _SHOWN // longest
