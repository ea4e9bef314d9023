"""Config files, ConfigDicts and flags become `MogaoConfig` here and nowhere else.

A config file (`configs/*.py`) is trusted Python with one function:

    from mogao_jax.config import default_config, source

    def get_config():
        config = default_config()
        config.model.num_layers = 4
        config.data.sources.pairs = source(kind="documents", path="pairs.jsonl", weight=4.0)
        return config

Flags are written into what the file returned, as plain dicts, and `from_config_dict` turns the
result into dataclasses once. It checks every field against `schema.py`: whether it exists, its
type, its choices and its bounds. Nothing is coerced, but an int is good where a float is asked
for, and a list where a tuple is. Every error is a ConfigError with the dotted path of the field,
the value and the remedy. Conditions between fields are in `checks.py`.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import importlib.util
import inspect
import json
import math
import numbers
import pathlib
import re
import sys
import traceback
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

from ml_collections import ConfigDict

from mogao_jax.config import renamed, schema
from mogao_jax.config.checks import check
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
    return _build(schema.MogaoConfig, _plain(fields), "")


def _plain(fields: Any) -> Any:
    """A copy, of plain dicts where it is a ConfigDict."""
    if not isinstance(fields, ConfigDict):
        return copy.deepcopy(fields)
    try:
        return fields.to_dict()
    except Exception as e:  # an unset placeholder
        raise ConfigError(f"the config has a field without a value: {e}") from e


def _field_types(cls: type, fields: Mapping[str, Any]) -> dict[str, Any]:
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


def _build(cls: type, fields: Any, path: str) -> Any:
    """An instance of the dataclass `cls` from a mapping found at the dotted `path`."""
    if not isinstance(fields, Mapping):
        at = f".{path}" if path else ""
        raise ConfigError(
            f"config{at} must be a group of fields, got {_show(fields)}. Set its fields one by one."
        )
    types = _field_types(cls, fields)
    for name in fields:
        if name not in types:
            where = _join(path, str(name))
            hint = renamed.hint(where) or did_you_mean(str(name), types)
            raise ConfigError(f"config has no field {where!r}{hint}")
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
        known = ", ".join(map(repr, choices))
        close = difflib.get_close_matches(value, choices, 1, 0.5) if isinstance(value, str) else ()
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"config.{path} is {_show(value)}; choose one of {known}.{hint}")
    bounds = [(*_BOUNDS[name], bound) for name, bound in checks.items() if name in _BOUNDS]
    if not all(holds(value, bound) for holds, _, bound in bounds):
        wanted = " and ".join(f"{words} {bound}" for _, words, bound in bounds)
        raise ConfigError(f"config.{path} is {value}; it must be {wanted}.")
    return value


# ------------------------------------------------------------------------------- files and flags


def load_config(path: str | pathlib.Path) -> schema.MogaoConfig:
    """The config of a file: `get_config()` of a .py file (trusted code), or a config.json.

    `FILE.py:TEXT` gives `get_config` the text as its argument, as ml_collections' config flags do.
    The text may name its parameter: `FILE.py:stage=3` is `FILE.py:3`.
    """
    return from_config_dict(_load_fields(path))


def _load_fields(path: str | pathlib.Path) -> dict[str, Any]:
    """What the file says, before any check, as plain dicts. See `load_config`."""
    path, argument = _split_argument(path)
    if not path.is_file():
        siblings = sorted(p.name for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        hint = did_you_mean(path.name, siblings) if siblings else "."
        raise ConfigError(f"there is no config file {str(path)!r}{hint}")
    if path.suffix == ".json":
        return renamed.upgraded(_read_json(path))
    if path.suffix != ".py":
        raise ConfigError(f"a config file is a .py or a .json file, got {str(path)!r}.")
    fields = _run_config_file(path, argument)
    if not isinstance(fields, (ConfigDict, dict)):
        raise ConfigError(
            f"{path}: get_config() must return a ConfigDict, got {type(fields).__name__}; "
            "is 'return config' missing?"
        )
    return _plain(fields)


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path} is not valid JSON ({e}).") from None
    if not isinstance(fields, dict):
        raise ConfigError(f"{path} must hold a JSON object with the config's fields.")
    return fields


def _split_argument(path: str | pathlib.Path) -> tuple[pathlib.Path, str | None]:
    """'FILE.py:TEXT' as the file and the text; None where there is none."""
    file, colon, argument = str(path).rpartition(":")
    if colon and file.endswith(".py"):
        return pathlib.Path(file), argument
    return pathlib.Path(path), None


def _run_config_file(path: pathlib.Path, argument: str | None) -> Any:
    """Runs get_config(); an error in the file is reported with its line."""
    spec = importlib.util.spec_from_file_location(f"mogao_config_{path.stem}", path)
    assert spec is not None and spec.loader is not None  # it is a .py file that exists
    module = importlib.util.module_from_spec(spec)
    written = sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # leave no __pycache__ beside the user's configs
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)  # a recipe may build on the one beside it
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise ConfigError(f"{path} defines no function get_config().")
        if argument is None:
            return module.get_config()
        parameters = inspect.signature(module.get_config).parameters
        if not parameters:
            raise ConfigError(f"{path}: get_config() takes no argument; leave out ':{argument}'.")
        name, equals, text = argument.partition("=")  # stage=3, or 3 alone
        return module.get_config(text if equals and name == next(iter(parameters)) else argument)
    except ConfigError:
        raise
    except SyntaxError as e:
        raise ConfigError(f"{e.filename}, line {e.lineno}: {e.msg}.") from e
    except Exception as e:
        lines = [f.lineno for f in traceback.extract_tb(e.__traceback__) if f.filename == str(path)]
        line = f", line {lines[-1]}" if lines else ""
        message = str(e).strip().splitlines()[0] if str(e).strip() else ""
        raise ConfigError(f"{path}{line}: {type(e).__name__}: {message}") from e
    finally:
        sys.path.remove(folder)
        sys.dont_write_bytecode = written


def parse_config_args(
    argv: Iterable[str], *, default: str | None = None, checked: bool = True
) -> tuple[schema.MogaoConfig, list[str]]:
    """Reads `--config=FILE` and `--config.a.b=VALUE` flags; returns all others as they are.

    Args:
      argv: command-line arguments. `--flag=value` and `--flag value` are the same.
      default: the config file where `--config` is not given; None makes the flag required
        (unless help is asked for, where the defaults are returned and nothing is checked).
      checked: also run `check` (conditions between fields).
    Returns:
      the config, and the arguments that are not its own, in order.
    Raises:
      ConfigError: naming the flag, the value and the remedy.
    """
    file, overrides, rest = _split_args(list(argv))
    if file is None and ("-h" in rest or "--help" in rest):
        return schema.MogaoConfig(), rest
    file = file if file is not None else default
    if file is None:
        raise ConfigError("--config=FILE is required, for example --config=configs/quickstart.py")
    fields = _load_fields(file)
    for path, text in sorted(overrides, key=lambda flag: not flag[0].endswith(".kind")):
        _override(fields, path, text)  # a source's kind first: it says which options there are
    config = from_config_dict(fields)
    if checked:
        check(config)
    return config, rest


def _split_args(argv: list[str]) -> tuple[str | None, list[tuple[str, str]], list[str]]:
    """The file of `--config`, [(dotted path, text)] of `--config.PATH`, and all other arguments."""
    file, overrides, rest = None, [], []
    index = 0
    while index < len(argv):
        flag, equals, value = argv[index].partition("=")
        index += 1
        if flag == "--":
            rest.extend(argv[index - 1 :])
            break
        if flag != "--config" and not flag.startswith("--config."):
            rest.append(argv[index - 1])
            continue
        if not equals:
            if index == len(argv) or argv[index].startswith("--"):
                raise ConfigError(f"{flag} needs a value: {flag}=VALUE")
            value = argv[index]
            index += 1
        if flag == "--config":
            file = value
        else:
            overrides.append((flag.removeprefix("--config."), value))
    return file, overrides, rest


def _override(fields: dict[str, Any], path: str, text: str) -> None:
    """Writes a flag's text, read by its field's type, into what a config file returned."""
    names = path.split(".")
    group = kind = schema.MogaoConfig
    parent = node = fields
    for depth, name in enumerate(names):
        where = ".".join(names[: depth + 1])
        members = _members(kind, node)
        if members is None:
            raise ConfigError(
                f"--config.{path}: {'.'.join(names[:depth])} is a single value and has no field "
                f"{name!r}."
            )
        if name not in members:
            hint = renamed.hint(where) or did_you_mean(name, members)
            raise ConfigError(f"--config.{path}: there is no {where!r}{hint}")
        group, parent = kind, node
        kind, node = members[name], node.setdefault(name, {})
        if not isinstance(node, dict):  # a single value, or what the conversion will refuse
            node = {}
    members = _members(kind, node)
    if members is not None:
        raise ConfigError(
            f"--config.{path}: it is a group; set one of its fields, as --config.{path}.NAME=VALUE "
            f"({', '.join(members) or 'none yet'})."
        )
    parent[names[-1]] = _read(kind, text, path)
    if group is schema.SourceConfig and names[-1] == "kind":  # it may not know all options
        options = parent.get("options", {})
        known = _members(_field_types(group, parent)["options"], options) or ()
        parent["options"] = {name: value for name, value in options.items() if name in known}


def _members(kind: Any, node: Mapping[str, Any]) -> dict[str, Any] | None:
    """Names and types of what a group holds; None for the type of a single value."""
    if dataclasses.is_dataclass(kind):
        return _field_types(typing.cast(type, kind), node)
    if typing.get_origin(kind) is dict:
        return dict.fromkeys(node, typing.get_args(kind)[1])
    return None


def _read(kind: Any, text: str, path: str) -> Any:
    """A flag's text as a value of the type; bounds and choices are checked afterwards."""
    if typing.get_origin(kind) is tuple:
        parts = text.strip().removeprefix("(").removeprefix("[").rstrip(")]").split(",")
        inner = typing.get_args(kind)[0]
        return [_read(inner, part.strip(), path) for part in parts if part.strip()]
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
