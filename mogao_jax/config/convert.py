"""ConfigDicts and plain dicts become `MogaoConfig` here and nowhere else.

A config file (`configs/*.py`) is trusted Python with one function:

    from mogao_jax.config import default_config, source

    def get_config():
        config = default_config()
        config.model.num_layers = 4
        config.data.sources.pairs = source(kind="documents", path="pairs.jsonl", weight=4.0)
        return config

Flags are written into what the file returned, as plain dicts (`files.py`), and `from_config_dict`
turns the result into dataclasses once. It checks every field against `schema.py`: whether it
exists, its type, its choices and its bounds. Nothing is coerced, but an int is accepted as a float,
and a list as a tuple. Every error is a ConfigError with the dotted path of the field, the value and
the remedy. Conditions between fields are in `checks.py`.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import json
import math
import numbers
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

from ml_collections import ConfigDict

from mogao_jax.config import renamed, schema
from mogao_jax.errors import ConfigError
from mogao_jax.registry import SOURCES, did_you_mean

_SOURCE_NAME = re.compile(r"[A-Za-z0-9_-]+")

# ----------------------------------------------------------------------- dataclasses -> ConfigDict


def default_config() -> ConfigDict:
    """Every field of `MogaoConfig` with its default; `data.sources` is empty.

    The ConfigDict is neither locked nor type-safe: `from_config_dict` judges the result as a
    whole, with better messages.
    """
    return ConfigDict(dataclasses.asdict(schema.MogaoConfig()), type_safe=False)


def source(**fields: Any) -> ConfigDict:
    """A data source: fields of `SourceConfig`, and beside them the options of its kind.

    Raises:
      ConfigError: an unknown kind, or a field that is neither.
    """
    own = dataclasses.asdict(schema.SourceConfig()) | fields
    options = _names(SOURCES.get(own["kind"]).options)
    known = _names(schema.SourceConfig)
    for name in fields:
        if name not in known + options:
            hint = did_you_mean(name, known + options)
            raise ConfigError(f"source(): unknown field {name!r}{hint}")
    moved = {name: own.pop(name) for name in options if name in own}
    return ConfigDict({**own, "options": {**own["options"], **moved}}, type_safe=False)


def to_dict(config: schema.MogaoConfig) -> dict[str, Any]:
    """The config as JSON-able dicts and lists; `from_dict` is its inverse."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _names(cls: type) -> list[str]:
    return [f.name for f in dataclasses.fields(cls)]


# ----------------------------------------------------------------------------- dicts -> dataclasses


def from_dict(fields: Mapping[str, Any]) -> schema.MogaoConfig:
    """The config from what `to_dict` made, today or under older names (a run's config.json)."""
    return from_config_dict(renamed.upgraded(fields) if isinstance(fields, Mapping) else fields)


def from_config_dict(fields: ConfigDict | Mapping[str, Any]) -> schema.MogaoConfig:
    """The typed config. Fields that are left out take their defaults.

    Raises:
      ConfigError: a field that does not exist, is of a wrong type or of an impossible value.
    """
    return _build(schema.MogaoConfig, plain(fields), "")


def plain(fields: Any) -> Any:
    """A copy, of plain dicts where it is a ConfigDict."""
    if not isinstance(fields, ConfigDict):
        return copy.deepcopy(fields)
    try:
        return fields.to_dict()
    except Exception as e:  # an unset placeholder
        raise ConfigError(f"the config has a field without a value: {e}") from e


def field_types(cls: type, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Names and types of a dataclass's fields; `options` of a source have their kind's type.

    Args:
      fields: the values, which say a source's `kind`.
    """
    types = typing.get_type_hints(cls)
    if cls is schema.SourceConfig:
        kind = fields.get("kind", schema.SourceConfig.kind)
        if kind in SOURCES.names():  # else refused as a value of `kind`
            types["options"] = SOURCES.get(kind).options
    return types


def no_such_field(path: str, known: Iterable[str]) -> str:
    """The end of a sentence about a field that is not there: its new name, or the nearest one."""
    return renamed.hint(path) or did_you_mean(path.rpartition(".")[2], known)


def _refuse_unknown(fields: Mapping[str, Any], known: Iterable[str], path: str) -> None:
    for name in fields:
        if name not in known:
            where = _join(path, str(name))
            raise ConfigError(f"config has no field {where!r}{no_such_field(where, known)}")


def _build(cls: type, fields: Any, path: str) -> Any:
    """An instance of the dataclass `cls` from a mapping found at the dotted `path`."""
    if not isinstance(fields, Mapping):
        at = f".{path}" if path else ""
        raise ConfigError(
            f"config{at} must be a group of fields, got {_show(fields)}. Set its fields one by one."
        )
    types = field_types(cls, fields)
    _refuse_unknown(fields, types, path)
    if cls is schema.SourceConfig:  # the options' own defaults
        fields = {"options": {}, **fields}
    values = {}
    for field in dataclasses.fields(cls):
        where = _join(path, field.name)
        if field.name in fields:
            kind = types[field.name]
            values[field.name] = _value(kind, fields[field.name], where, field.metadata)
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"config.{where} is missing; it has no default: set it.")
    if cls is schema.SourceConfig:
        values["options"] = dataclasses.asdict(values["options"])
    return cls(**values)


def _value(kind: Any, value: Any, path: str, checks: Mapping[str, Any]) -> Any:
    """The value, checked against a type annotation of schema.py and the field's bounds."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _build(typing.cast(type, kind), value, path)
    if origin is dict:
        return _named(args[1], value, path)
    if origin is tuple:
        if not isinstance(value, (tuple, list)):
            raise _wrong_type(path, value, "a tuple such as (1, 2)")
        value = tuple(_value(args[0], v, f"{path}[{i}]", {}) for i, v in enumerate(value))
    elif origin is not Literal:
        if kind not in _SCALARS:
            raise TypeError(f"schema.py: field {path} has a type that convert.py does not know")
        value = _scalar(kind, value, path)
    return _bounded(value, path, {**checks, "choices": args} if origin is Literal else checks)


class _Scalar(NamedTuple):
    wanted: str
    accepts: type
    flag: str  # as `wanted`, of a flag's text
    read: Callable[[str], Any]  # raises KeyError or ValueError


_BOOLS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_SCALARS = {
    bool: _Scalar("True or False", bool, "true or false", lambda text: _BOOLS[text.lower()]),
    str: _Scalar("a string", str, "a string", str),
    int: _Scalar("a whole number (int)", numbers.Integral, "a whole number", int),
    float: _Scalar("a number", numbers.Real, "a number", float),
}


def _scalar(kind: Any, value: Any, path: str) -> Any:
    wanted = _SCALARS[kind].wanted
    if not isinstance(value, _SCALARS[kind].accepts) or (
        isinstance(value, bool) and kind is not bool
    ):
        raise _wrong_type(path, value, wanted)
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"config.{path} is {value}; it must be a finite number.")
    return kind(value)


def _named(cls: Any, value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _wrong_type(path, value, "a group of named entries")
    for name in value:
        if not isinstance(name, str) or not _SOURCE_NAME.fullmatch(name):
            raise ConfigError(
                f"config.{path} has an entry named {name!r}; names are made of letters, digits, "
                "'_' and '-'."
            )
    # Sorted: sources are numbered in this order, which must survive ConfigDict and JSON.
    return {name: _value(cls, value[name], _join(path, name), {}) for name in sorted(value)}


_BOUNDS: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "minimum": (lambda value, bound: value >= bound, "at least"),
    "maximum": (lambda value, bound: value <= bound, "at most"),
    "above": (lambda value, bound: value > bound, "above"),
}


def _bounded(value: Any, path: str, checks: Mapping[str, Any]) -> Any:
    """The value, if it is one of its field's choices and within all bounds."""
    choices = checks["registry"].names() if "registry" in checks else checks.get("choices")
    if choices is not None and value not in choices:
        hint = _nearest(value, choices) if isinstance(value, str) else ""
        known = ", ".join(map(repr, choices))
        raise ConfigError(f"config.{path} is {_show(value)}; choose one of {known}.{hint}")
    bounds = [(*_BOUNDS[name], bound) for name, bound in checks.items() if name in _BOUNDS]
    if not all(holds(value, bound) for holds, _, bound in bounds):
        wanted = " and ".join(f"{words} {bound}" for _, words, bound in bounds)
        raise ConfigError(f"config.{path} is {value}; it must be {wanted}.")
    return value


def read_text(kind: Any, text: str, path: str) -> Any:
    """A flag's text as a value of the type; bounds and choices are checked afterwards."""
    if typing.get_origin(kind) is tuple:
        parts = text.strip().removeprefix("(").removeprefix("[").rstrip(")]").split(",")
        inner = typing.get_args(kind)[0]
        return [read_text(inner, part.strip(), path) for part in parts if part.strip()]
    if kind not in _SCALARS:  # a choice
        return text
    try:
        return _SCALARS[kind].read(text)
    except (KeyError, ValueError):
        raise ConfigError(f"--config.{path}={text}: it must be {_SCALARS[kind].flag}.") from None


# --------------------------------------------------------------------------------------- messages


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _show(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def _wrong_type(path: str, value: Any, wanted: str) -> ConfigError:
    hint = ""
    if isinstance(value, str) and _looks_right(value):
        hint = " Leave out the quotes."
    elif isinstance(value, float) and value.is_integer():
        hint = f" Write {int(value)}."
    return ConfigError(f"config.{path} is {_show(value)}; it must be {wanted}.{hint}")


def _looks_right(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text in ("True", "False")
    return True
