"""What formats share: comparing a config.json with our config, and the rules of one layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mogao_jax.errors import CheckpointError
from mogao_jax.key_tables import CONV, SAME, Rule, Transform

ANY = object()  # a field that is not in the file and need not be


class Field(NamedTuple):
    """One field of a config.json."""

    theirs: str  # its name there, dotted where it is nested; other names it may have, after "|"
    ours: str  # the field of our config, for the message; "" where it is fixed
    wanted: Any  # the value that it must have
    default: Any = ANY  # what it means when it is absent; ANY: anything


def compare(config: Mapping[str, Any], fields: Sequence[Field], *, place: str, what: str) -> None:
    """Raises CheckpointError listing every field of a config.json with another value.

    An empty config means that there is no file, and nothing to compare; `what` is the kind of
    model, for the message.
    """
    if not config:
        return
    problems = []
    for field in fields:
        found = lookup(config, field.theirs, field.default)
        if found is ANY or _equal(found, field.wanted):
            continue
        name = field.theirs.partition("|")[0]
        ours = f"config.{field.ours} is {field.wanted!r}" if field.ours else ""
        problems.append(f"{name} is {found!r}, {ours or f'it must be {field.wanted!r}'}")
    if problems:
        raise CheckpointError(
            f"the config.json of {place!r} is not that of {what} as the config describes it, "
            f"{len(problems)} field(s): {'; '.join(problems)}. Set these fields of the config, or "
            "give another checkpoint."
        )


def layer_rules(theirs: str, ours: str, transform: Transform = CONV) -> list[Rule]:
    """Weight and bias of one layer; a norm's are taken as they are."""
    kind = "scale" if transform is SAME else "kernel"
    return [
        Rule(f"{theirs}.weight", f"{ours}.{kind}", transform),
        Rule(f"{theirs}.bias", f"{ours}.bias"),
    ]


def lookup(config: Mapping[str, Any], names: str, default: Any) -> Any:
    """The value of the first of "a.b|c" that is there."""
    for name in names.split("|"):
        value: Any = config
        for part in name.split("."):
            value = value.get(part, ANY) if isinstance(value, Mapping) else ANY
        if value is not ANY and value is not None:
            return value
    return default


def _equal(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, tuple):
        return isinstance(found, list | tuple) and tuple(found) == wanted
    is_bool = isinstance(found, bool), isinstance(wanted, bool)
    return is_bool[0] == is_bool[1] and bool(found == wanted)
