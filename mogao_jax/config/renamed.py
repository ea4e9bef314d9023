"""Fields that had another name once: saved configs are read, recipes and flags are told.

The one table of old names. A run's config.json, a checkpoint's metadata and the header of an
exported model keep loading; a recipe or a flag with an old name gets an error that says the new.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Renamed(NamedTuple):
    new: str
    value: Callable[[Any], Any] = lambda value: value


_PARAM_AXES = {
    "fsdp": ["fsdp"],
    "fsdp_and_data": ["fsdp", "data"],
    "fsdp_and_context": ["fsdp", "context"],
}
RENAMED = {
    "train.accumulate": Renamed("train.grad_accum_steps"),
    "train.batch_rows": Renamed("train.global_batch_rows"),
    "mesh.weights": Renamed("mesh.param_axes", lambda value: _PARAM_AXES.get(value, value)),
}


def upgraded(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a saved config under today's names; what has one already is left alone."""
    fields = copy.deepcopy(dict(saved))
    for old, renamed in RENAMED.items():
        *groups, name = old.split(".")
        group: Any = fields
        for part in groups:
            group = group.get(part) if isinstance(group, dict) else None
        if isinstance(group, dict) and name in group:
            group.setdefault(renamed.new.rpartition(".")[2], renamed.value(group.pop(name)))
    return fields


def hint(path: str) -> str:
    """The end of a sentence about an unknown field, if it is an old name of one; else ''."""
    return f"; it is called {RENAMED[path].new!r} now." if path in RENAMED else ""
