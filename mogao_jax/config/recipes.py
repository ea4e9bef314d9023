"""The recipes that ship with the package: `--config=quickstart`, and what `mogao recipes` lists.

A checkout has them in `configs/`; an installed package has the same files in `mogao_jax/recipes/`.
"""

from __future__ import annotations

import ast
import importlib.util
import pathlib
import re
from typing import NamedTuple

from mogao_jax.errors import ConfigError
from mogao_jax.registry import did_you_mean

_FIELD = re.compile(r"^(\w+): +(.*?)(?=^\w+: |\Z)", re.MULTILINE | re.DOTALL)


class Recipe(NamedTuple):
    """A recipe as its docstring describes it; the fields that it leaves out are empty.

    Attributes:
      title: its first sentence.
      costs: time, machine and memory.
      reach: what the trained model can do.
    """

    name: str
    title: str
    costs: str
    reach: str


def folder() -> pathlib.Path:
    """Where the recipes are."""
    installed = importlib.util.find_spec("mogao_jax.recipes")
    if installed and installed.submodule_search_locations:
        return pathlib.Path(next(iter(installed.submodule_search_locations)))
    return pathlib.Path(__file__).resolve().parents[2] / "configs"


def names() -> list[str]:
    """Of all recipes, in alphabetical order."""
    return sorted(path.stem for path in folder().glob("*.py") if path.stem != "__init__")


def find(name: str) -> pathlib.Path:
    """The file of a recipe.

    Raises:
      ConfigError: there is none of this name; names the nearest one.
    """
    if name not in names():
        raise ConfigError(
            f"there is no config file and no recipe {name!r}{did_you_mean(name, names())} "
            "`mogao recipes` lists them."
        )
    return folder() / f"{name}.py"


def describe(name: str) -> Recipe:
    """What a recipe says of itself. The file is parsed, not run."""
    text = ast.get_docstring(ast.parse(find(name).read_text(encoding="utf-8"))) or ""
    title, _, _ = text.partition("\n\n")
    fields = {key: " ".join(value.split()) for key, value in _FIELD.findall(text)}
    return Recipe(name, " ".join(title.split()), fields.get("Costs", ""), fields.get("Reach", ""))
