"""Config files, ConfigDicts and flags become `MogaoConfig` here and nowhere else.

A config file (`configs/*.py`) is trusted Python with one function:

    from mogao_jax.config import default_config, source

    def get_config():
        config = default_config()
        config.model.num_layers = 4
        config.data.sources.shapes_t2i = source(kind="shapes", task="t2i", weight=4.0)
        return config

`from_config_dict` checks every field against the dataclasses of `schema.py`: whether it exists,
its type, its choices and its bounds. Nothing is coerced, but an int is good where a float is
asked for, and a list where a tuple is. Every error is a ConfigError with the dotted path of the
field, the value and the remedy. Conditions between fields are in `checks.py`.
"""

from __future__ import annotations

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
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from ml_collections import ConfigDict

from mogao_jax.config import renamed, schema
from mogao_jax.config.checks import check
from mogao_jax.errors import ConfigError

_SOURCE_NAME = re.compile(r"[A-Za-z0-9_-]+")

# ----------------------------------------------------------------------- dataclasses -> ConfigDict


def default_config() -> ConfigDict:
    """Every field of `MogaoConfig` with its default; `data.sources` is empty.

    The ConfigDict is neither locked nor type-safe: `from_config_dict` judges the result as a
    whole, with better messages.
    """
    return ConfigDict(_plain(schema.MogaoConfig()), type_safe=False)


def source(**fields: Any) -> ConfigDict:
    """A data source with every field of `SourceConfig`, so that flags can override each."""
    known = [f.name for f in dataclasses.fields(schema.SourceConfig)]
    for name in fields:
        if name not in known:
            raise ConfigError(f"source(): unknown field {name!r}{_did_you_mean(name, known)}")
    return ConfigDict({**_plain(schema.SourceConfig()), **fields}, type_safe=False)


def to_dict(config: schema.MogaoConfig) -> dict[str, Any]:
    """The config as JSON-able dicts and lists; `from_dict` is its inverse."""
    return _lists(dataclasses.asdict(config))


def from_dict(fields: Mapping[str, Any]) -> schema.MogaoConfig:
    """The config from what `to_dict` made, today or under older names (a run's config.json)."""
    return from_config_dict(renamed.upgraded(fields) if isinstance(fields, Mapping) else fields)


def _plain(value: Any) -> dict[str, Any]:
    return dataclasses.asdict(value)


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _lists(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_lists(v) for v in value]
    return value


# ----------------------------------------------------------------------- ConfigDict -> dataclasses


def from_config_dict(fields: ConfigDict | Mapping[str, Any]) -> schema.MogaoConfig:
    """The typed config. Fields that are left out take their defaults.

    Raises:
      ConfigError: a field that does not exist, is of a wrong type or of an impossible value.
    """
    if isinstance(fields, ConfigDict):
        try:
            fields = fields.to_dict()
        except Exception as e:  # an unset placeholder
            raise ConfigError(f"the config has a field without a value: {e}") from e
    return _build(schema.MogaoConfig, fields, "")


def _build(cls: type, fields: Any, path: str) -> Any:
    """An instance of the dataclass `cls` from a mapping found at the dotted `path`."""
    if not isinstance(fields, Mapping):
        raise ConfigError(
            f"config{_at(path)} must be a group of fields, got {_show(fields)}. "
            "Set its fields one by one."
        )
    types = typing.get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls)}
    for name in fields:
        if name not in known:
            raise ConfigError(
                f"config has no field {_join(path, str(name))!r}"
                f"{renamed.hint(_join(path, str(name))) or _did_you_mean(str(name), known)}"
            )
    values = {}
    for name, field in known.items():
        where = _join(path, name)
        if name in fields:
            values[name] = _value(types[name], fields[name], where, field.metadata)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"config.{where} is missing; it has no default: set it.")
    return cls(**values)


def _value(kind: Any, value: Any, path: str, checks: Mapping[str, Any]) -> Any:
    """The value, checked against a type annotation of schema.py and the field's bounds."""
    if dataclasses.is_dataclass(kind):
        return _build(typing.cast(type, kind), value, path)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is dict:
        return _named(args[1], value, path)
    if origin is Literal:
        if isinstance(value, str) and value in args:
            return value
        choices = ", ".join(repr(a) for a in args)
        hint = _nearest(value, args) if isinstance(value, str) else ""
        raise ConfigError(f"config.{path} is {_show(value)}; choose one of {choices}.{hint}")
    if origin is tuple:
        if not isinstance(value, (tuple, list)):
            raise _wrong_type(path, value, "a tuple such as (1, 2)")
        found = tuple(_value(args[0], v, f"{path}[{i}]", checks) for i, v in enumerate(value))
        if "choices" in checks and found not in checks["choices"]:
            choices = ", ".join(map(repr, checks["choices"]))
            raise ConfigError(f"config.{path} is {_show(value)}; choose one of {choices}.")
        return found
    if kind is bool:
        if not isinstance(value, bool):
            raise _wrong_type(path, value, "True or False")
        return value
    if kind is str:
        if not isinstance(value, str):
            raise _wrong_type(path, value, "a string")
        return value
    if kind is int:
        if not isinstance(value, numbers.Integral) or isinstance(value, bool):
            raise _wrong_type(path, value, "a whole number (int)")
        return _bounded(int(value), path, checks)
    if kind is float:
        if not isinstance(value, numbers.Real) or isinstance(value, bool):
            raise _wrong_type(path, value, "a number")
        if not math.isfinite(value):
            raise ConfigError(f"config.{path} is {value}; it must be a finite number.")
        return _bounded(float(value), path, checks)
    raise TypeError(f"schema.py: field {path} has a type that convert.py does not know: {kind}")


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


def _bounded(value: Any, path: str, checks: Mapping[str, Any]) -> Any:
    limits = []
    if "minimum" in checks:
        limits.append((value >= checks["minimum"], f"at least {checks['minimum']}"))
    if "maximum" in checks:
        limits.append((value <= checks["maximum"], f"at most {checks['maximum']}"))
    if "above" in checks:
        limits.append((value > checks["above"], f"above {checks['above']}"))
    if not all(ok for ok, _ in limits):
        raise ConfigError(
            f"config.{path} is {value}; it must be {' and '.join(t for _, t in limits)}."
        )
    return value


# ------------------------------------------------------------------------------- files and flags


def load_config(path: str | pathlib.Path) -> schema.MogaoConfig:
    """The config of a file: `get_config()` of a .py file (trusted code), or a config.json.

    `FILE.py:TEXT` gives `get_config` the text as its argument, as ml_collections' config flags do.
    """
    return from_config_dict(load_config_dict(path))


def load_config_dict(path: str | pathlib.Path) -> ConfigDict | dict[str, Any]:
    """What the file says, before any check. See `load_config`."""
    path, argument = _split_argument(path)
    if not path.is_file():
        siblings = sorted(p.name for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        hint = _did_you_mean(path.name, siblings) if siblings else "."
        raise ConfigError(f"there is no config file {str(path)!r}{hint}")
    if path.suffix == ".json":
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as e:
            raise ConfigError(f"{path} is not valid JSON ({e}).") from None
        if not isinstance(fields, dict):
            raise ConfigError(f"{path} must hold a JSON object with the config's fields.")
        return renamed.upgraded(fields)
    if path.suffix != ".py":
        raise ConfigError(f"a config file is a .py or a .json file, got {str(path)!r}.")
    fields = _run_config_file(path, argument)
    if not isinstance(fields, (ConfigDict, dict)):
        raise ConfigError(
            f"{path}: get_config() must return a ConfigDict, got {type(fields).__name__}; "
            "is 'return config' missing?"
        )
    return fields


def _split_argument(path: str | pathlib.Path) -> tuple[pathlib.Path, str | None]:
    """'FILE.py:TEXT' as the file and the text; None where there is none."""
    file, colon, argument = str(path).rpartition(":")
    if colon and file.endswith(".py"):
        return pathlib.Path(file), argument
    return pathlib.Path(path), None


def _run_config_file(path: pathlib.Path, argument: str | None) -> Any:
    """Runs get_config(); whatever goes wrong in the file is told with its line."""
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
        if not inspect.signature(module.get_config).parameters:
            raise ConfigError(f"{path}: get_config() takes no argument; leave out ':{argument}'.")
        return module.get_config(argument)
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
    """Reads `--config=FILE` and `--config.a.b=VALUE` flags; what it does not know is handed back.

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
    fields = load_config_dict(file)
    fields = fields.to_dict() if isinstance(fields, ConfigDict) else fields
    complete = to_dict(from_config_dict(fields))
    for path, text in overrides:
        _override(complete, path, text)
    config = from_config_dict(complete)
    if checked:
        check(config)
    return config, rest


def _split_args(argv: list[str]) -> tuple[str | None, list[tuple[str, str]], list[str]]:
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
    """Sets one field of a complete config from a flag's text, read by the field's type."""
    kind: Any = schema.MogaoConfig
    names = path.split(".")
    for depth, name in enumerate(names):
        where = ".".join(names[: depth + 1])
        if not isinstance(fields, dict):
            raise ConfigError(
                f"--config.{path}: {'.'.join(names[:depth])} is a single value and has no field "
                f"{name!r}."
            )
        if name not in fields:
            raise ConfigError(
                f"--config.{path}: there is no {where!r}"
                f"{renamed.hint(where) or _did_you_mean(name, fields)}"
            )
        if dataclasses.is_dataclass(kind):
            kind = typing.get_type_hints(kind)[name]
        else:  # an entry of dict[str, cls]
            kind = typing.get_args(kind)[1]
        if depth < len(names) - 1:
            fields = fields[name]
    if isinstance(fields[names[-1]], dict):
        known = ", ".join(fields[names[-1]]) or "none yet"
        raise ConfigError(
            f"--config.{path}: it is a group; set one of its fields, as --config.{path}.NAME=VALUE "
            f"({known})."
        )
    fields[names[-1]] = _read(kind, text, path)


_TRUE, _FALSE = ("true", "yes", "1"), ("false", "no", "0")


def _read(kind: Any, text: str, path: str) -> Any:
    """A flag's text as a value of the type; bounds and choices are checked afterwards."""
    if typing.get_origin(kind) is tuple:
        parts = text.strip().removeprefix("(").removeprefix("[").rstrip(")]").split(",")
        inner = typing.get_args(kind)[0]
        return [_read(inner, part.strip(), path) for part in parts if part.strip()]
    if kind is bool:
        if text.lower() not in _TRUE + _FALSE:
            raise _wrong_type(path, text, "true or false", flag=True)
        return text.lower() in _TRUE
    if kind is int:
        try:
            return int(text)
        except ValueError:
            raise _wrong_type(path, text, "a whole number", flag=True) from None
    if kind is float:
        try:
            return float(text)
        except ValueError:
            raise _wrong_type(path, text, "a number", flag=True) from None
    return text


# --------------------------------------------------------------------------------------- messages


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _at(path: str) -> str:
    return f".{path}" if path else ""


def _show(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def _wrong_type(path: str, value: Any, wanted: str, flag: bool = False) -> ConfigError:
    if flag:
        return ConfigError(f"--config.{path}={value}: it must be {wanted}.")
    hint = ""
    if isinstance(value, str) and wanted != "a string":
        hint = " Leave out the quotes." if _looks_right(value) else ""
    elif isinstance(value, float) and value.is_integer():
        hint = f" Write {int(value)}."
    return ConfigError(f"config.{path} is {_show(value)}; it must be {wanted}.{hint}")


def _looks_right(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text in ("True", "False")
    return True


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a sentence: "; did you mean ...?", or the list of what there is."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are: {', '.join(map(str, known))}." if known else "; there are none."
