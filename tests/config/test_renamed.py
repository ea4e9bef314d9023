"""Old field names: saved configs are read, recipes and flags are told the new name."""

from __future__ import annotations

import json
import pathlib

import pytest
import safetensors

import mogao_jax
from mogao_jax import config as config_lib
from mogao_jax.config import renamed
from mogao_jax.config.schema import MogaoConfig
from mogao_jax.errors import ConfigError
from mogao_jax.training import compatibility

DEMO = pathlib.Path(mogao_jax.__file__).parent / "worlds/shapes/assets/demo.safetensors"
OLD = {
    "train": {"accumulate": 3, "batch_rows": 8},
    "mesh": {"weights": "fsdp_and_data"},
}


def test_saved_configs_are_read_under_their_old_names():
    config = config_lib.from_dict(OLD)
    assert (config.train.grad_accum_steps, config.train.global_batch_rows) == (3, 8)
    assert config.mesh.param_axes == ("fsdp", "data")
    assert OLD["train"] == {"accumulate": 3, "batch_rows": 8}  # read, not changed
    assert config_lib.from_dict(config_lib.to_dict(config)) == config


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("fsdp", ("fsdp",)),
        ("fsdp_and_data", ("fsdp", "data")),
        ("fsdp_and_context", ("fsdp", "context")),
    ],
)
def test_values_are_mapped(old, new):
    assert config_lib.from_dict({"mesh": {"weights": old}}).mesh.param_axes == new


def test_a_saved_config_that_is_no_mapping_is_refused_as_ever():
    for fields in ("text", {"train": "text"}):
        with pytest.raises(ConfigError, match="must be a group of fields"):
            config_lib.from_dict(fields)


def test_a_run_of_before_goes_on():
    saved = json.loads(json.dumps(config_lib.to_dict(MogaoConfig())))
    saved["train"]["batch_rows"] = saved["train"].pop("global_batch_rows")
    saved["mesh"]["weights"] = "+".join(saved["mesh"].pop("param_axes"))
    assert compatibility.differences(saved, MogaoConfig()) == ([], [])
    saved["train"]["batch_rows"] += 1
    (refused,), _ = compatibility.differences(saved, MogaoConfig())
    assert refused.field == "train.global_batch_rows"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("train.accumulate", "train.grad_accum_steps"),
        ("train.batch_rows", "train.global_batch_rows"),
        ("mesh.weights", "mesh.param_axes"),
        ("data.world", "data.sources.NAME.options.world"),
        ("data.sources.t2i.task", "data.sources.t2i.options.task"),
        ("data.sources.t2i.category", "data.sources.t2i.options.category"),
    ],
)
def test_recipes_and_flags_are_told_the_new_name(tmp_path, old, new):
    message = f"{old}'; it is called '{new}' now."
    fields = {"data": {"sources": {"t2i": {}}}}
    *groups, name = old.split(".")
    node = fields
    for group in groups:
        node = node.setdefault(group, {})
    node[name] = "grid"
    with pytest.raises(ConfigError) as e:
        config_lib.from_config_dict(fields)
    assert message in str(e.value)
    recipe = tmp_path / "recipe.py"
    recipe.write_text("def get_config():\n    return {'data': {'sources': {'t2i': {}}}}\n")
    with pytest.raises(ConfigError) as e:
        config_lib.parse_config_args([f"--config={recipe}", f"--config.{old}=1"])
    assert message in str(e.value)


def test_every_old_name_is_tested_and_its_new_one_exists():
    names = {
        *config_lib.to_dict(MogaoConfig())["train"],
        *config_lib.to_dict(MogaoConfig())["mesh"],
    }
    for new in renamed.RENAMED.values():
        assert new.startswith("data.sources.*.options.") or new.split(".")[1] in names


def test_what_one_kind_of_source_knew_has_moved_into_its_options():
    saved = {
        "data": {
            "world": "grid",
            "sources": {
                "t2i": {"kind": "shapes", "task": "t2i", "category": "counting", "path": ""},
                "pairs": {"kind": "documents", "task": "t2i", "category": "", "path": "a.jsonl"},
                "later": {"kind": "shapes", "options": {"task": "qa", "world": "primer"}},
            },
        }
    }
    sources = config_lib.from_dict(saved).data.sources
    assert sources["t2i"].options == {"task": "t2i", "category": "counting", "world": "grid"}
    assert sources["pairs"].options == {"task": "t2i"}
    assert sources["later"].options == {"task": "qa", "category": "", "world": "primer"}


def test_the_demo_checkpoint_was_written_under_the_old_names():
    with safetensors.safe_open(DEMO, "np") as f:
        fields = json.loads(f.metadata()["config"])
    assert {"accumulate", "batch_rows"} <= fields["train"].keys() and "weights" in fields["mesh"]
    assert "world" in fields["data"] and "options" not in fields["data"]["sources"]["qa"]
    config = config_lib.from_dict(fields)
    assert config.train.grad_accum_steps == fields["train"]["accumulate"]
    assert config.train.global_batch_rows == fields["train"]["batch_rows"]
    assert config.mesh.param_axes == ("fsdp",)
    assert config.data.sources.keys() == fields["data"]["sources"].keys()
    for name, old in fields["data"]["sources"].items():
        options = {"task": old["task"], "category": old["category"], "world": "grid"}
        assert config.data.sources[name].options == options
