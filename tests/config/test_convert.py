"""Config files, ConfigDicts and flags: what is accepted, and what each mistake is told."""

from __future__ import annotations

import dataclasses
import json
import typing

import pytest
from ml_collections import ConfigDict

from mogao_jax import config as config_lib
from mogao_jax.config import schema
from mogao_jax.errors import ConfigError


def _config() -> ConfigDict:
    config = config_lib.default_config()
    config.data.sources.pictures = config_lib.source(kind="shapes", task="t2i")
    return config


def _write(tmp_path, body: str, name: str = "recipe.py"):
    path = tmp_path / name
    path.write_text("from mogao_jax.config import default_config, source\n" + body)
    return path


def _recipe(tmp_path, line: str = "pass"):
    return _write(
        tmp_path,
        "def get_config():\n"
        "    config = default_config()\n"
        "    config.data.sources.pictures = source(kind='shapes', task='t2i')\n"
        f"    {line}\n"
        "    return config\n",
    )


def test_defaults_are_the_dataclasses_defaults():
    assert config_lib.from_config_dict(config_lib.default_config()) == schema.MogaoConfig()


def _groups(cls, path=""):
    for name, kind in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(kind):
            yield from _groups(kind, f"{path}{name}.")
        else:
            yield f"{path}{name}"


def test_default_config_has_every_field():
    config = config_lib.default_config()
    for path in _groups(schema.MogaoConfig):
        node = config
        for name in path.split("."):
            node = node[name]


def test_json_round_trip():
    config = config_lib.from_config_dict(_config())
    again = config_lib.from_dict(json.loads(json.dumps(config_lib.to_dict(config))))
    assert again == config
    assert isinstance(again.vae.block_channels, tuple)


def test_left_out_fields_take_their_defaults():
    config = config_lib.from_config_dict({"model": {"num_layers": 3}})
    assert config.model == dataclasses.replace(schema.ModelConfig(), num_layers=3)


def test_int_is_good_for_float_and_list_for_tuple():
    config = _config()
    config.optimizer.learning_rate = 1
    config.vae.block_channels = [32, 64, 64, 64]
    got = config_lib.from_config_dict(config)
    assert got.optimizer.learning_rate == 1.0 and type(got.optimizer.learning_rate) is float
    assert got.vae.block_channels == (32, 64, 64, 64)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("model.num_layres", 2, ["model.num_layres", "did you mean 'num_layers'"]),
        ("modle", {}, ["modle", "did you mean 'model'"]),
        ("model.num_layers", "2", ["config.model.num_layers", "'2' (str)", "whole number"]),
        ("model.num_layers", 2.0, ["config.model.num_layers", "2.0 (float)", "Write 2."]),
        ("model.num_layers", True, ["config.model.num_layers", "True (bool)"]),
        ("model.num_layers", None, ["config.model.num_layers", "None"]),
        ("model.num_layers", 0, ["config.model.num_layers is 0", "at least 1"]),
        ("optimizer.learning_rate", 0.0, ["config.optimizer.learning_rate", "above 0"]),
        ("optimizer.learning_rate", "1e-4", ["config.optimizer.learning_rate", "quotes"]),
        ("optimizer.learning_rate", float("nan"), ["learning_rate is nan", "finite"]),
        ("optimizer.learning_rate", True, ["config.optimizer.learning_rate", "a number"]),
        ("layout.p_empty", 1.5, ["config.layout.p_empty is 1.5", "at most 1"]),
        ("layout.p_empty", 0.95, ["layout.p_image_only + layout.p_empty"]),
        ("model.tie_embeddings", 1, ["config.model.tie_embeddings", "True or False"]),
        ("model.fusion", "deepp", ["config.model.fusion", "'deep', 'shared'", "mean 'deep'"]),
        ("model.fusion", 3, ["config.model.fusion is 3 (int)", "'deep', 'shared'"]),
        ("name", 3, ["config.name is 3", "a string"]),
        ("model", 3, ["config.model must be a group", "3 (int)"]),
        ("vae.block_channels", 128, ["config.vae.block_channels", "a tuple"]),
        ("vae.block_channels", (1, "2"), ["config.vae.block_channels[1]", "'2' (str)"]),
        ("data.sources", [1], ["config.data.sources", "named entries"]),
        ("data.sources", {"a b": {}}, ["config.data.sources", "'a b'"]),
        ("data.sources", {"a": {"wieght": 1}}, ["data.sources.a.wieght", "mean 'weight'"]),
        ("data.sources", {"a": {"weight": -1}}, ["data.sources.a.weight is -1", "at least 0"]),
    ],
)
def test_every_mistake_names_field_value_and_remedy(path, value, words):
    fields = config_lib.to_dict(config_lib.from_config_dict(_config()))
    node = fields
    *groups, last = path.split(".")
    for name in groups:
        node = node[name]
    node[last] = value
    with pytest.raises(ConfigError) as error:
        config_lib.from_config_dict(fields)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_a_schema_type_that_is_not_known_is_our_own_error(monkeypatch):
    monkeypatch.setitem(schema.ImageConfig.__annotations__, "max_side", "bytes")
    with pytest.raises(TypeError, match="schema.py"):
        config_lib.from_config_dict({"images": {"max_side": b""}})


def test_source_refuses_unknown_fields():
    with pytest.raises(ConfigError, match="did you mean 'weight'"):
        config_lib.source(wieght=1.0)


# ------------------------------------------------------------------------------------------ files


def test_config_file_and_json_file(tmp_path):
    path = _recipe(tmp_path, "config.model.num_layers = 3")
    config = config_lib.load_config(path)
    assert config.model.num_layers == 3 and list(config.data.sources) == ["pictures"]
    (tmp_path / "config.json").write_text(json.dumps(config_lib.to_dict(config)))
    assert config_lib.load_config(tmp_path / "config.json") == config
    assert not (tmp_path / "__pycache__").exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("config.modle.num_layers = 3", ["line 5", "modle"]),
        ("config.model.num_layers = = 3", ["line 5"]),
        ("config.data.sources.x = source(wieght=1)", ["'wieght'", "did you mean 'weight'"]),
        ("config.model.num_layres = 3", ["'model.num_layres'", "did you mean 'num_layers'"]),
        ("return None", ["must return a ConfigDict"]),
        ("1 / 0", ["line 5", "ZeroDivisionError"]),
    ],
)
def test_mistakes_in_a_config_file(tmp_path, line, words):
    path = _recipe(tmp_path, line)
    with pytest.raises(ConfigError) as error:
        config_lib.load_config(path)
    for word in words:
        assert word in str(error.value)


def test_files_that_are_no_configs(tmp_path):
    _recipe(tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'recipe.py'"):
        config_lib.load_config(tmp_path / "recipy.py")
    with pytest.raises(ConfigError, match=r"a \.py or a \.json"):
        config_lib.load_config(_write(tmp_path, "", "recipe.yaml"))
    with pytest.raises(ConfigError, match="no function get_config"):
        config_lib.load_config(_write(tmp_path, "", "empty.py"))
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ConfigError, match=r"broken\.json is not valid JSON"):
        config_lib.load_config(tmp_path / "broken.json")


# ------------------------------------------------------------------------------------------ flags


def test_flags_override_fields_of_every_type(tmp_path):
    config, rest = config_lib.parse_config_args(
        [
            f"--config={_recipe(tmp_path)}",
            "--workdir",
            "runs/x",
            "--config.model.num_layers=2",
            "--config.optimizer.learning_rate",
            "1",
            "--config.model.tie_embeddings=no",
            "--config.vae.block_channels=(32, 64, 64,64)",
            "--config.model.fusion=shared",
            "--config.data.sources.pictures.weight=0.5",
            "--config.name=a=b",
            "--verbose",
        ]
    )
    assert rest == ["--workdir", "runs/x", "--verbose"]
    assert config.model.num_layers == 2
    assert config.optimizer.learning_rate == 1.0
    assert config.model.tie_embeddings is False
    assert config.vae.block_channels == (32, 64, 64, 64)
    assert config.model.fusion == "shared"
    assert config.data.sources["pictures"].weight == 0.5
    assert config.name == "a=b"


def test_flags_of_a_source(tmp_path):
    def options(*flags):
        flags = [f"--config.data.sources.pictures.{flag}" for flag in flags]
        args = [f"--config={_recipe(tmp_path)}", *flags]
        return config_lib.parse_config_args(args, checked=False)[0].data.sources["pictures"].options

    assert options("options.task=qa") == {"task": "qa", "category": "", "world": "free"}
    assert options("kind=documents") == {"task": "t2i"}  # what that kind knows is kept
    assert options("options.task=story", "kind=documents") == {"task": "story"}
    for flags, words in [
        (["options.world=grid", "kind=documents"], "pictures.options.world'; there are: task"),
        (["kind=pictures"], "choose one of 'documents', 'tfds', 'shapes'"),
        (["options.world=gird"], "'free', 'grid', 'primer', 'novel'. Did you mean 'grid'?"),
        (["options.task.x=1"], "single value"),
        (["options=1"], "it is a group.*task, category, world"),
    ]:
        with pytest.raises(ConfigError, match=words):
            options(*flags)


def test_options_of_a_source_are_checked(tmp_path):
    for fields, words in [
        ({"kind": "shapes"}, "sources.a.options.task is missing; it has no default"),
        ({"kind": "shapes", "options": {"task": 3}}, r"options.task is 3 \(int\); choose one of"),
        ({"kind": "shapes", "options": 3}, "a.options must be a group of fields"),
        ({"kind": "tfds", "options": {"tsk": ""}}, "options.tsk'; did you mean 'task'"),
        ({"kind": "shaped"}, "choose one of .* Did you mean 'shapes'?"),
        ({"kind": 3}, r"a.kind is 3 \(int\); it must be a string"),
    ]:
        with pytest.raises(ConfigError, match=words):
            config_lib.from_config_dict({"data": {"sources": {"a": fields}}})


def test_a_mistake_of_the_file_is_told_where_flags_go_into_it(tmp_path):
    recipe = _recipe(tmp_path, "config.model = 3")
    with pytest.raises(ConfigError, match="config.model must be a group"):
        config_lib.parse_config_args([f"--config={recipe}", "--config.model.num_layers=2"])


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--config.model.num_layres=2", ["model.num_layres", "did you mean 'num_layers'"]),
        ("--config.model.num_layers=two", ["--config.model.num_layers=two", "whole number"]),
        ("--config.model.num_layers=2.5", ["--config.model.num_layers=2.5", "whole number"]),
        ("--config.optimizer.learning_rate=fast", ["learning_rate=fast", "a number"]),
        ("--config.model.tie_embeddings=maybe", ["tie_embeddings=maybe", "true or false"]),
        ("--config.model=2", ["--config.model", "group", "num_layers"]),
        ("--config.model.num_layers.x=2", ["single value"]),
        ("--config.data.sources.other.weight=2", ["data.sources.other", "pictures"]),
        ("--config.model.num_layers", ["needs a value"]),
        ("--config.images.max_side=500", ["496 or 512"]),
    ],
)
def test_mistakes_in_flags(tmp_path, flag, words):
    with pytest.raises(ConfigError) as error:
        config_lib.parse_config_args([f"--config={_recipe(tmp_path)}", flag])
    for word in words:
        assert word in str(error.value)


def test_flags_can_add_a_source(tmp_path):
    recipe = f"--config={_recipe(tmp_path)}"
    flags = ["--config.data.sources.extra.weight=0.5", "--config.data.sources.extra.path=/data/x"]
    config, _ = config_lib.parse_config_args([recipe, *flags])
    assert set(config.data.sources) == {"extra", "pictures"}
    extra = config.data.sources["extra"]
    assert (extra.kind, extra.path, extra.weight) == ("documents", "/data/x", 0.5)


def test_no_config_file():
    with pytest.raises(ConfigError, match="--config=FILE is required"):
        config_lib.parse_config_args(["--workdir=x"])
    assert config_lib.parse_config_args(["--help"]) == (schema.MogaoConfig(), ["--help"])


def test_default_file_and_arguments_after_two_dashes(tmp_path):
    path = str(_recipe(tmp_path))
    config, rest = config_lib.parse_config_args(["--", "--config=x"], default=path)
    assert list(config.data.sources) == ["pictures"] and rest == ["--", "--config=x"]
