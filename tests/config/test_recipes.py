"""Every file in configs/ gives a sound config, headed by how to run it."""

from __future__ import annotations

import ast
import dataclasses
import pathlib

import pytest

from mogao_jax.config import SourceConfig, check, load_config
from mogao_jax.errors import ConfigError

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _name(path: str | pathlib.Path) -> str:
    return pathlib.Path(path).name.replace(".py", "")


RECIPES = sorted((ROOT / "configs").glob("*.py"))


VARIANTS = ["smollm_emoji.py:few"]


@pytest.mark.parametrize(
    "path", [*RECIPES, *(f"{ROOT / 'configs'}/{v}" for v in VARIANTS)], ids=_name
)
def test_recipe_is_sound(path, tmp_path):
    config = load_config(path)
    assert config.name != "default"
    # Paths are for the user to give; anything that exists will do here.
    sources = {
        name: dataclasses.replace(s, path=s.path or str(tmp_path))
        for name, s in config.data.sources.items()
    }
    # A base for other recipes (mogao_7b) has no data of its own.
    sources = sources or {"any": SourceConfig(kind="documents", path=str(tmp_path))}
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, sources=sources),
        tokenizer=dataclasses.replace(config.tokenizer, path=str(tmp_path)),
    )
    check(config)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipe_says_how_to_run_it(path):
    if not load_config(path).data.sources:
        pytest.skip("a base for other recipes, not run by itself")
    words = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert f"--config=configs/{path.name}" in words


def test_a_variant_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match=r"smollm_emoji\.py:some: there is 'all' and 'few'"):
        load_config(f"{ROOT / 'configs' / 'smollm_emoji.py'}:some")


def test_there_are_recipes():
    assert "quickstart" in [p.stem for p in RECIPES]
