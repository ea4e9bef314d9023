"""Every file in configs/ gives a sound config, headed by how to run it."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import pathlib

import pytest
import safetensors

from mogao_jax.cli.main import main
from mogao_jax.config import (
    MogaoConfig,
    SourceConfig,
    check,
    from_dict,
    load_config,
    recipes,
    to_dict,
)
from mogao_jax.errors import ConfigError
from mogao_jax.registry import CHECKPOINTS

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _name(path: str | pathlib.Path) -> str:
    return pathlib.Path(path).name.replace(".py", "")


RECIPES = sorted((ROOT / "configs").glob("*.py"))


VARIANTS = ["smollm_emoji.py:few", *(f"demo.py:stage={n}" for n in range(2, 10))]


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
    recipe = recipes.describe(path.stem)
    assert recipe.title and recipe.costs and recipe.reach


# sha256 of what each stage sets, from when each was a file of its own.
DEMO_STAGES = [
    "8e971866a168d931",
    "3e2ffa5cbdd9f578",
    "c41906710291d3f9",
    "deb815b9bd67b902",
    "6143fa69ca4de558",
    "b1894faf57401f19",
    "38b97932fe1a2ed6",
    "152c1eb1c6a0d58e",
    "a075f3513bdc7483",
]


def _set_fields(config) -> dict:
    """What differs from the defaults, flat: fields that come later change nothing here."""

    def flat(tree, prefix=""):
        for key, value in tree.items():
            if isinstance(value, dict) and value:
                yield from flat(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    defaults = dict(flat(to_dict(MogaoConfig())))
    return {k: v for k, v in flat(to_dict(config)) if k not in defaults or defaults[k] != v}


@pytest.mark.parametrize(("stage", "digest"), [*enumerate(DEMO_STAGES, start=1)])
def test_the_demo_stages_are_those_that_made_the_checkpoint(stage, digest):
    config = load_config(f"{ROOT}/configs/demo.py:stage={stage}")
    text = json.dumps(_set_fields(config), sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest


def test_the_demo_checkpoint_is_of_the_last_stage():
    with safetensors.safe_open(CHECKPOINTS.get("demo"), "np") as f:
        saved = from_dict(json.loads(f.metadata()["config"]))
    assert saved == load_config(f"{ROOT}/configs/demo.py:stage=9")


def test_a_demo_stage_that_is_not_there_is_named():
    assert load_config(ROOT / "configs/demo.py").name == "demo"
    for stage in ("0", "10", "last"):
        with pytest.raises(ConfigError, match=f"demo.py:stage={stage}: stages are 1 to 9"):
            load_config(f"{ROOT}/configs/demo.py:stage={stage}")


def test_a_variant_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match=r"smollm_emoji\.py:some: there is 'all' and 'few'"):
        load_config(f"{ROOT / 'configs' / 'smollm_emoji.py'}:some")


def test_there_are_recipes():
    assert "quickstart" in [p.stem for p in RECIPES]


def test_a_recipe_is_found_by_its_name():
    assert to_dict(load_config("quickstart")) == to_dict(
        load_config(ROOT / "configs/quickstart.py")
    )
    assert load_config("demo:stage=3").name == "demo_stage3"
    assert set(recipes.names()) == {path.stem for path in RECIPES}


@pytest.mark.parametrize(
    ("name", "says"), [("quikstart", "did you mean 'quickstart'"), ("nothing_like_it", "there are")]
)
def test_an_unknown_recipe_names_what_there_is(name, says):
    with pytest.raises(ConfigError, match=rf"no recipe '{name}'.*{says}.*mogao recipes"):
        load_config(name)


def test_recipes_are_listed_with_cost_and_reach(capsys):
    assert main(["recipes"]) == 0
    shown = capsys.readouterr().out
    for name in recipes.names():
        assert f"\n{name}\n" in f"\n{shown}"
    assert "costs: 8 minutes on 2 CPU cores" in shown and "reach: " in shown
