"""From their files to a checkpoint and back: not a bit is lost, in any part or layout."""

from __future__ import annotations

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
import tiny_files as files

from mogao_jax.checkpoints import files as checkpoint_files
from mogao_jax.checkpoints import sidecar_files
from mogao_jax.checkpoints.files import load_params
from mogao_jax.errors import CheckpointError, ConfigError
from mogao_jax.models.encoder_weights import load_vae, load_vit
from mogao_jax.porting import from_hf, inspecting
from mogao_jax.porting.formats import mogao, qwen2
from mogao_jax.porting.mogao_checkpoint import MogaoCheckpoint
from mogao_jax.porting.streaming import stream_checkpoint
from mogao_jax.porting.tensor_sources import InMemory
from mogao_jax.porting.to_hf import export
from mogao_jax.sampling.loading import open_checkpoint

# (model fields, dtype of the LLM, shards, VAE layout, keys of the tower)
CASES = {
    "scanned-tied": ({"scan_layers": True}, "bfloat16", 3, "bfl", ""),
    "unscanned-untied": ({"tie_embeddings": False}, "float32", 1, "diffusers", "model.visual."),
}


class Case:
    def __init__(self, name: str, folder):
        fields, self.dtype, shards, self.layout, prefix = CASES[name]
        model = dataclasses.replace(files.MODEL, **fields)
        self.config = dataclasses.replace(files.CONFIG, model=model)
        self.llm = files.values(files.qwen2_shapes(model), self.dtype, seed=1)
        self.vit = files.values(files.vision_shapes(), "bfloat16", seed=2)
        self.vae = files.values(files.vae_shapes(self.layout), seed=3)
        files.write(folder / "llm", self.llm, files.qwen2_config(model), shards=shards)
        inside = {prefix + key: value for key, value in self.vit.items()}
        config = files.vision_config()
        if prefix:  # the tower in a whole Qwen2-VL, beside a language model
            inside["model.language_model.norm.weight"] = np.ones(3, np.float32)
            config = {
                "model_type": "qwen2_vl",
                "vision_config": config | {"model_type": "qwen2_vl"},
            }
        files.write(folder / "vit", inside, config)
        files.write(folder / "vae", self.vae, stem="ae")
        self.folder = folder
        self.checkpoint = folder / "checkpoint"
        self.ported = stream_checkpoint(
            self.checkpoint, self.config, llm=folder / "llm", vit=folder / "vit", vae=folder / "vae"
        )


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp(request.param))


def read(folder) -> dict:
    found: dict = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= safetensors.numpy.load_file(file)
    return found


def same(found: dict, wanted: dict) -> None:
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert found[key].dtype == value.dtype and found[key].shape == value.shape, key
        assert found[key].tobytes() == value.tobytes(), key


def test_the_checkpoint_is_what_building_in_memory_gives(case):
    params, meta = load_params(case.checkpoint)
    built = from_hf.build_mogao(case.folder / "llm", case.config, jax.random.key(0))
    assert jax.tree.structure(params) == jax.tree.structure(built)
    jax.tree.map(np.testing.assert_array_equal, params, built)
    assert meta["step"] == 0 and meta["porting"]["llm"]["dtypes"] == {case.dtype: len(case.llm)}


def test_the_language_model(case, tmp_path):
    export(case.checkpoint, tmp_path / "out", part="llm", shard_bytes=40_000)
    same(read(tmp_path / "out"), case.llm)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    wanted = files.qwen2_config(case.config.model) | {"torch_dtype": case.dtype}
    assert config == wanted


def test_the_vision_tower_with_its_merger(case, tmp_path):
    export(case.checkpoint, tmp_path / "out", part="vit")
    same(read(tmp_path / "out"), case.vit)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    wanted = files.vision_config()
    assert {name: config[name] for name in wanted} == wanted


def test_the_autoencoder_in_its_own_layout(case, tmp_path):
    export(case.checkpoint, tmp_path / "out", part="vae")
    same(read(tmp_path / "out"), case.vae)


def test_the_autoencoder_in_the_other_layout(case, tmp_path):
    """Which is the same model: read back, our parameters are equal."""
    other = "diffusers" if case.layout == "bfl" else "bfl"
    export(case.checkpoint, tmp_path / "out", part="vae", vae_layout=other)
    assert {k: v.shape for k, v in read(tmp_path / "out").items()} == files.vae_shapes(other)
    ours = from_hf.load_autoencoder(case.folder / "vae", files.VAE)
    theirs = from_hf.load_autoencoder(tmp_path / "out", files.VAE)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    with pytest.raises(ConfigError, match="bfl, diffusers"):
        export(case.checkpoint, tmp_path / "no", part="vae", vae_layout="original")


def test_the_copied_encoders_load(case):
    vit = dataclasses.replace(files.VIT, weights=str(case.checkpoint))
    vae = dataclasses.replace(files.VAE, weights=str(case.checkpoint / "vae.safetensors"))
    jax.tree.map(
        np.testing.assert_array_equal,
        load_vit(vit).params,
        from_hf.load_vision_tower(case.folder / "vit", files.VIT),
    )
    jax.tree.map(
        np.testing.assert_array_equal,
        load_vae(vae).params,
        from_hf.load_autoencoder(case.folder / "vae", files.VAE),
    )


def test_files_in_their_layout_are_not_taken_for_ours(case):
    with pytest.raises(CheckpointError, match="mogao port from-hf --vae"):
        load_vae(dataclasses.replace(files.VAE, weights=str(case.folder / "vae")))


def test_the_whole_model_and_back(case, tmp_path):
    written = export(case.checkpoint, tmp_path / "all", shard_bytes=200_000)
    names = {str(p.relative_to(tmp_path / "all")) for p in written}
    assert {"README.md", "config.json", "model.safetensors.index.json"} <= names
    assert {"vit/config.json", "vit/model.safetensors"} <= names
    card = (tmp_path / "all" / "README.md").read_text()
    assert "und branch" in card and str(tmp_path) not in card and str(case.folder) not in card
    text = (tmp_path / "all" / "config.json").read_text()
    assert str(case.folder) not in text and '"weights": "vit"' in text
    assert MogaoCheckpoint(tmp_path / "all").model_config.vit.weights == str(
        tmp_path / "all" / "vit"
    )
    # Read into the other layout of layers: slots do not depend on it.
    turned = dataclasses.replace(case.config.model, scan_layers=not case.config.model.scan_layers)
    again = tmp_path / "again"
    stream_checkpoint(
        again,
        dataclasses.replace(case.config, model=turned),
        llm=tmp_path / "all",
        vit=tmp_path / "all" / "vit",
        vae=tmp_path / "all" / "vae",
    )
    found = inspecting.compare(case.checkpoint, again)
    assert (
        found.equal
        and found.same == len(inspecting.open_any(again).shapes)
        and all(a == b for a, b in found.dtypes)
    )


def test_the_und_branch_is_the_language_model(case):
    found = inspecting.compare(case.checkpoint, case.folder / "llm")
    assert found.equal and found.same == len(case.llm)
    assert inspecting.compare(case.folder / "llm", case.checkpoint).equal


def test_another_dtype(case, tmp_path):
    export(case.checkpoint, tmp_path / "half", part="llm", dtype="float16")
    for key, value in read(tmp_path / "half").items():
        np.testing.assert_array_equal(value, case.llm[key].astype(np.float16))
    config = json.loads((tmp_path / "half" / "config.json").read_text())
    assert config["torch_dtype"] == "float16"


def test_values_too_large_for_a_dtype(tmp_path):
    model = dataclasses.replace(files.MODEL, num_layers=1)
    llm = files.values(files.qwen2_shapes(model))
    llm["model.norm.weight"][3] = 1e6
    files.write(tmp_path / "llm", llm)
    config = dataclasses.replace(files.CONFIG, model=model)
    stream_checkpoint(tmp_path / "checkpoint", config, llm=tmp_path / "llm")
    with pytest.raises(CheckpointError, match=r"model.norm.weight reaches 1e\+06"):
        export(tmp_path / "checkpoint", tmp_path / "out", part="llm", dtype="float16")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint", "llm"]


def test_an_encoder_that_was_replaced_or_is_damaged(case, tmp_path):
    saved = checkpoint_files.read_folder_meta(case.checkpoint)["encoders"]
    assert set(saved) == {"vae", "vit"}
    copy = shutil.copytree(case.checkpoint, tmp_path / "copy")
    open_checkpoint(copy)
    for name in ("vae.safetensors", "vit_left.safetensors"):
        data = bytearray((copy / name).read_bytes())
        data[-100] ^= 0x40
        (copy / name).write_bytes(data)
    with pytest.raises(CheckpointError, match="made with another VAE"):
        export(copy, tmp_path / "out", part="vae")
    with pytest.raises(CheckpointError, match="another VAE"):
        open_checkpoint(copy)  # for sampling
    with pytest.raises(CheckpointError, match=r"vit_left.safetensors' is not the file"):
        export(copy, tmp_path / "out", part="vit")
    assert not (tmp_path / "out").exists()


def test_a_tower_without_its_merger_is_said(case, tmp_path):
    copy = shutil.copytree(case.checkpoint, tmp_path / "copy")
    (copy / "vit_left.safetensors").unlink()
    said: list[str] = []
    export(copy, tmp_path / "out", part="vit", say=said.append)
    assert any("no merger" in message for message in said)
    assert "hidden_size" not in json.loads((tmp_path / "out" / "config.json").read_text())
    from_hf.plan_vision_tower(tmp_path / "out", files.VIT)


def test_a_run_knows_what_it_began_with(case, tmp_path):
    """After training the LLM goes out with its own config.json, in the dtype it is kept in."""
    start = shutil.copytree(case.checkpoint, tmp_path / "start")
    (start / "generation_config.json").write_text("{}")
    trained = shutil.copytree(case.checkpoint, tmp_path / "run" / "checkpoints" / "10")
    meta = checkpoint_files.read_folder_meta(trained) | {"step": 10}
    del meta["porting"]
    shutil.rmtree(trained / "meta")
    checkpoint_files.write_folder_meta(trained, meta)
    sidecar_files.keep_origin(tmp_path / "run", start)
    names = {p.name for p in export(tmp_path / "run", tmp_path / "out", part="llm")}
    assert "generation_config.json" in names
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == files.qwen2_config(case.config.model) | {"torch_dtype": "float32"}
    (tmp_path / "next").mkdir()
    sidecar_files.keep_origin(tmp_path / "next", tmp_path / "run")
    assert json.loads((tmp_path / "next" / "porting.json").read_text())["llm"]["config"]


def test_a_whole_model_of_other_features_is_refused():
    fields = json.loads(json.dumps(mogao.to_config(files.CONFIG, dtype="float32")))
    source = InMemory({}, config=fields, place="x")
    mogao.check_config(source, files.CONFIG)
    for section, name, value in (
        ("layout", "text_positions", "t"),
        ("layout", "understanding_encoder", "vae"),
        ("images", "vit_resize", "match_vae_grid"),
        ("vit", "num_heads", 4),
        ("vae", "scaling_factor", 1.0),
    ):
        group = dataclasses.replace(getattr(files.CONFIG, section), **{name: value})
        with pytest.raises(CheckpointError, match=rf"config.{section}.{name} is"):
            mogao.check_config(source, dataclasses.replace(files.CONFIG, **{section: group}))


def test_a_card_names_what_is_there():
    about = {"parameters": {}, "dtype": "float32", "step": 1, "weights": "raw", "porting": {}}
    assert "vit/" in mogao.model_card(files.CONFIG, **about)
    layout = dataclasses.replace(files.CONFIG.layout, understanding_encoder="vae")
    card = mogao.model_card(dataclasses.replace(files.CONFIG, layout=layout), **about)
    assert "vit" not in card and "`vae/`" in card


def test_heads_of_another_width_are_said():
    about = {"rows": 10, "dtype": "float32", "special": {}}
    assert "head_dim" not in qwen2.to_config(files.MODEL, **about)
    wide = dataclasses.replace(files.MODEL, head_dim=16)
    assert qwen2.to_config(wide, **about)["head_dim"] == 16
