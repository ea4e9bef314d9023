"""Fields that had another name once: saved configs are read, recipes and flags are told.

The one table of old names. A run's config.json, a checkpoint's metadata and the header of an
exported model keep loading; a recipe or a flag with an old name gets an error that says the new.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from mogao_jax.registry import SOURCES

RENAMED = {
    "train.accumulate": "train.grad_accum_steps",
    "train.batch_rows": "train.global_batch_rows",
    "mesh.weights": "mesh.param_axes",
    "data.world": "data.sources.*.options.world",
    "data.sources.*.task": "data.sources.*.options.task",
    "data.sources.*.category": "data.sources.*.options.category",
}
# Values of fields that also have other values now.
_VALUES = {
    "mesh.weights": {
        "fsdp": ["fsdp"],
        "fsdp_and_data": ["fsdp", "data"],
        "fsdp_and_context": ["fsdp", "context"],
    }
}


def upgraded(saved: Mapping[str, Any]) -> dict[str, Any]:
    """A saved config under today's names; what has one already is left alone."""
    fields = copy.deepcopy(dict(saved))
    for old, new in RENAMED.items():
        group, name = old.split(".", 1)
        place = fields.get(group)
        if group != "data" and isinstance(place, dict) and name in place:
            value = place.pop(name)
            place.setdefault(new.split(".")[1], _VALUES.get(old, {}).get(str(value), value))
    data = fields.get("data")
    if isinstance(data, dict) and isinstance(data.get("sources"), dict):
        world = data.pop("world", None)
        for source in data["sources"].values():
            if isinstance(source, dict):
                _move_into_options(source, world)
    return fields


def _move_into_options(source: dict[str, Any], world: Any) -> None:
    """Moves old fields that only some kinds of sources know; other kinds drop them."""
    old = {"world": world, **{name: source.pop(name, None) for name in ("task", "category")}}
    kind = source.get("kind")
    known = dataclasses.fields(SOURCES.get(kind).options) if kind in SOURCES.names() else ()
    moved = {f.name: old[f.name] for f in known if old.get(f.name) is not None}
    if moved:
        source["options"] = moved | source.get("options", {})


def hint(path: str) -> str:
    """The end of a sentence about an unknown field, if it is an old name of one; else ''."""
    for old, new in RENAMED.items():
        match = re.fullmatch(old.replace(".", r"\.").replace("*", "([^.]+)"), path)
        if match:
            return f"; it is called {new.replace('*', (*match.groups(), 'NAME')[0])!r} now."
    return ""
