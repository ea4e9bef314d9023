"""Config files and flags: what they say, as plain dicts, for `convert.py` to judge."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import inspect
import json
import pathlib
import sys
import traceback
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from mogao_jax.config import convert, recipes, renamed
from mogao_jax.config.checks import check
from mogao_jax.config.schema import MogaoConfig, SourceConfig
from mogao_jax.errors import ConfigError
from mogao_jax.registry import did_you_mean


def load_config(path: str | pathlib.Path) -> MogaoConfig:
    """The config of a file: `get_config()` of a .py file (trusted code), or a config.json.

    A name without a folder and an ending is a recipe of the package: "quickstart".
    `FILE.py:TEXT` gives `get_config` the text as its argument, as ml_collections' config flags do.
    The text may name its parameter: `FILE.py:stage=3` is `FILE.py:3`.
    """
    return convert.from_config_dict(_load_fields(path))


def _load_fields(path: str | pathlib.Path) -> dict[str, Any]:
    """What the file says, before any check, as plain dicts. See `load_config`."""
    path, argument = _split_argument(path)
    if not path.suffix and path.name == str(path) and not path.exists():
        path = recipes.find(path.name)
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
    return convert.plain(fields)


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path} is not valid JSON ({e}).") from None
    if not isinstance(fields, dict):
        raise ConfigError(f"{path} must hold a JSON object with the config's fields.")
    return fields


def _split_argument(path: str | pathlib.Path) -> tuple[pathlib.Path, str | None]:
    """'FILE.py:TEXT', or 'RECIPE:TEXT', as the file and the text; None where there is none."""
    file, colon, argument = str(path).rpartition(":")
    if colon and (file.endswith(".py") or file.isidentifier()):
        return pathlib.Path(file), argument
    return pathlib.Path(path), None


def _run_config_file(path: pathlib.Path, argument: str | None) -> Any:
    """Runs get_config(); an error in the file is reported with its line."""
    try:
        with _importable(path.resolve().parent):
            return _call_get_config(path, argument)
    except ConfigError:
        raise
    except SyntaxError as e:
        raise ConfigError(f"{e.filename}, line {e.lineno}: {e.msg}.") from e
    except Exception as e:
        lines = [f.lineno for f in traceback.extract_tb(e.__traceback__) if f.filename == str(path)]
        line = f", line {lines[-1]}" if lines else ""
        message = (str(e).strip().splitlines() or [""])[0]
        raise ConfigError(f"{path}{line}: {type(e).__name__}: {message}") from e


def _call_get_config(path: pathlib.Path, argument: str | None) -> Any:
    spec = importlib.util.spec_from_file_location(f"mogao_config_{path.stem}", path)
    assert spec is not None and spec.loader is not None  # it is a .py file that exists
    module = importlib.util.module_from_spec(spec)
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


@contextlib.contextmanager
def _importable(folder: pathlib.Path) -> Iterator[None]:
    """A recipe may build on the one beside it; no __pycache__ is left beside the user's configs."""
    written = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        sys.dont_write_bytecode = written


def parse_config_args(
    argv: Iterable[str], *, default: str | None = None, checked: bool = True
) -> tuple[MogaoConfig, list[str]]:
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
        return MogaoConfig(), rest
    file = file if file is not None else default
    if file is None:
        raise ConfigError(
            "--config=FILE is required, for example --config=quickstart (see `mogao recipes`)."
        )
    fields = _load_fields(file)
    _add_sources(fields, [path for path, _ in overrides])
    for path, text in sorted(overrides, key=lambda flag: not flag[0].endswith(".kind")):
        _override(fields, path, text)  # a source's kind first: it says which options there are
    config = convert.from_config_dict(fields)
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


def _add_sources(fields: dict[str, Any], paths: Iterable[str]) -> None:
    """Adds the data sources that only flags know: those whose path or kind they set."""
    for path in paths:
        *group, name, field = path.split(".") if path.count(".") == 3 else ("", "", "")
        if group == ["data", "sources"] and field in ("path", "kind"):
            data = fields.setdefault("data", {})
            data.setdefault("sources", {}).setdefault(name, {})


def _override(fields: dict[str, Any], path: str, text: str) -> None:
    """Writes a flag's text, read by its field's type, into what a config file returned."""
    names = path.split(".")
    group = kind = MogaoConfig
    parent = node = fields
    for depth, name in enumerate(names):
        group, parent = kind, node
        kind = _member(group, parent, names, depth)
        node = parent.setdefault(name, {})
        if not isinstance(node, dict):  # a single value, or what the conversion will refuse
            node = {}
    members = _members(kind, node)
    if members is not None:
        raise ConfigError(
            f"--config.{path}: it is a group; set one of its fields, as --config.{path}.NAME=VALUE "
            f"({', '.join(members) or 'none yet'})."
        )
    parent[names[-1]] = convert.read_text(kind, text, path)
    if group is SourceConfig and names[-1] == "kind":
        _drop_options(parent)


def _drop_options(source: dict[str, Any]) -> None:
    """Takes the options away that a source's new kind does not have."""
    options = source.get("options")
    if isinstance(options, dict):
        known = _members(convert.field_types(SourceConfig, source)["options"], options) or ()
        source["options"] = {name: value for name, value in options.items() if name in known}


def _member(group: Any, node: Mapping[str, Any], names: list[str], depth: int) -> Any:
    """The type of `names[depth]` in a group. Raises ConfigError if it has no such field."""
    path, where = ".".join(names), ".".join(names[: depth + 1])
    members = _members(group, node)
    if members is None:
        raise ConfigError(
            f"--config.{path}: {'.'.join(names[:depth])} is a single value and has no field "
            f"{names[depth]!r}."
        )
    if names[depth] not in members:
        hint = convert.no_such_field(where, members)
        raise ConfigError(f"--config.{path}: there is no {where!r}{hint}")
    return members[names[depth]]


def _members(kind: Any, node: Mapping[str, Any]) -> dict[str, Any] | None:
    """Names and types of what a group holds; None for the type of a single value."""
    if dataclasses.is_dataclass(kind):
        return convert.field_types(typing.cast(type, kind), node)
    if typing.get_origin(kind) is dict:
        return dict.fromkeys(node, typing.get_args(kind)[1])
    return None
