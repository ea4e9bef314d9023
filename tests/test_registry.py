"""Tables of kinds: names, lazy values, and who brings them."""

from __future__ import annotations

import subprocess
import sys
import typing

import pytest

from mogao_jax import registry
from mogao_jax.errors import ConfigError
from mogao_jax.worlds.shapes.options import ShapesOptions
from mogao_jax.worlds.shapes.scene import WORLDS
from mogao_jax.worlds.shapes.tasks import TASKS


def test_values_are_there_or_imported_when_asked_for():
    table = registry.Registry(
        "thing", {"half": 0.5, "tasks": "mogao_jax.worlds.shapes.tasks:TASKS"}
    )
    table.register("one", 1.0)
    assert table.names() == ("half", "tasks", "one")
    assert table.get("one") == 1.0 and table.get("tasks") is TASKS
    table.register("one", 1.0)  # a module that is imported anew
    with pytest.raises(ValueError, match="thing 'one' is registered already"):
        table.register("one", 2.0)


def test_unknown_names():
    table = registry.Registry("thing", {"tower": 1})
    with pytest.raises(ConfigError, match="there is no thing 'towr'; did you mean 'tower'?"):
        table.get("towr")
    with pytest.raises(ConfigError, match="there is no thing 'x'; there are: tower."):
        table.get("x")
    with pytest.raises(ConfigError, match="there are none."):
        registry.Registry("thing").get("x")


def test_every_entry_can_be_imported():
    for table in (
        registry.SOURCES,
        registry.TOKENIZERS,
        registry.EMBEDDED_WEIGHTS,
        registry.CHECKPOINTS,
        registry.COMMANDS,
        registry.EVALS,
        registry.DATA_ACTIONS,
    ):
        assert table.names()
        for name in table.names():
            assert table.get(name)
    assert registry.EMBEDDED_WEIGHTS.get("vae").is_file()


def test_options_name_what_the_world_has():
    hints = typing.get_type_hints(ShapesOptions)
    assert typing.get_args(hints["task"]) == tuple(TASKS)
    assert typing.get_args(hints["world"]) == tuple(WORLDS)


def test_importing_the_package_is_light():
    code = (
        "import sys, mogao_jax\n"
        "heavy = {'jax', 'numpy', 'ml_collections', 'PIL', 'grain'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
