"""Which fields of a config may change between a checkpoint and the run that resumes from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from mogao_jax.config import renamed
from mogao_jax.config.convert import to_dict
from mogao_jax.config.schema import MogaoConfig

# These may change: how long and how fast to train, how it is computed, where files lie.
# Everything else decides what the parameters mean, or the position in the data.
_FREE_PREFIXES = (
    "name",
    "about",
    "train.",
    "optimizer.",
    "objective.",
    "porting.",
    "mesh.",
    "sampling.",
    "model.dtype",
    "model.remat",
    "model.attention.",
    "model.cross_entropy_chunk",
    "data.max_broken",
    "data.validation_documents",
)
_FREE_SUFFIXES = (".path", ".weights")
# Exceptions: changing these invalidates the data position or the optimizer-state tree. So does
# optimizer.muon_on, where Muon is used.
_FIXED = ("train.global_batch_rows", "optimizer.kind", "optimizer.frozen")
_ABSENT = "(absent)"
# May change value, but not between zero and non-zero: that adds or removes optimizer state
# (clipping, because its place in the chain of transforms numbers those after it).
_ON_OR_OFF = ("optimizer.ema_decay", "optimizer.clip_norm")


class Difference(NamedTuple):
    field: str
    saved: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.field}: {_show(self.saved)} -> {_show(self.now)}"


def differences(
    saved: Mapping[str, Any], config: MogaoConfig
) -> tuple[list[Difference], list[Difference]]:
    """Compares a stored config with the current one.

    A field that one of them lacks (it was added or removed since) counts as having its default.

    Returns:
      Differences that forbid resuming, and those that are only reported.
    """
    defaults = _flatten(to_dict(MogaoConfig()))
    before, now = _flatten(renamed.upgraded(saved)), _flatten(to_dict(config))
    refused: list[Difference] = []
    noted: list[Difference] = []
    muon = "muon" in (f.get("optimizer.kind") for f in (before, now))
    for field in sorted(before.keys() | now.keys()):
        default = defaults.get(field, _ABSENT)
        difference = Difference(field, before.get(field, default), now.get(field, default))
        if difference.saved != difference.now:
            (noted if _may_change(difference, muon) else refused).append(difference)
    return refused, noted


def remedy(refused: list[Difference]) -> str:
    """What to do about differences that forbid resuming."""
    text = "Set these fields back, or use another --workdir"
    if any(d.field.startswith("optimizer.") for d in refused):
        text += (
            "; there, --config.train.init_from=FOLDER (this run's) starts from its parameters with "
            "an optimizer that begins anew"
        )
    return text + "."


def _may_change(d: Difference, muon: bool) -> bool:
    if d.field in _FIXED or (d.field == "optimizer.muon_on" and muon):
        return False
    if d.field in _ON_OR_OFF:
        return bool(d.saved) == bool(d.now)
    if d.field.endswith(_FREE_SUFFIXES):  # a file may lie elsewhere; "embedded" is other content
        return "embedded" not in (d.saved, d.now) and _ABSENT not in (d.saved, d.now)
    return d.field.startswith(_FREE_PREFIXES)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _show(value: Any) -> str:
    return value if value == _ABSENT else json.dumps(value)
