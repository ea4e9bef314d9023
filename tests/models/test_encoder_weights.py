"""Loading weights: every key accounted for, and messages that say what to do."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from mogao_jax.config.schema import MogaoConfig, VaeConfig, VitConfig
from mogao_jax.errors import CheckpointError, ConfigError
from mogao_jax.models import taef1
from mogao_jax.models.encoder_weights import file_digests, load_vae, load_vit, save_weights
from mogao_jax.models.vit import VisionTower

VIT = VitConfig(depth=1, embed_dim=16, num_heads=2, mlp_dim=16)


@pytest.fixture(scope="module")
def params():
    inputs = jnp.zeros((1, 4, 588), jnp.uint8), jnp.zeros((1, 4, 2), jnp.int32)
    init = jax.jit(VisionTower(VIT).init)
    return init(jax.random.key(0), *inputs, jnp.ones((1, 4), jnp.int32))["params"]


def at(path) -> VitConfig:
    return dataclasses.replace(VIT, weights=str(path))


def test_round_trip(params, tmp_path):
    save_weights(tmp_path / "w.safetensors", params, VIT, np.float32)
    for place in (tmp_path / "w.safetensors", tmp_path):  # a file, or its folder
        jax.tree.map(np.testing.assert_array_equal, load_vit(at(place)).params, params)
    save_weights(tmp_path / "w.safetensors", params, VIT)  # float16
    again = load_vit(at(tmp_path)).params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-3, 1e-6), again, params)


def test_every_wrong_key_is_listed(params, tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, params, VIT, np.float32)
    arrays = safetensors.numpy.load_file(path)
    del arrays["blocks_0.attn_qkv.bias"]
    arrays["blocks_1.surplus"] = np.zeros(3, np.float32)
    arrays["blocks_0.mlp_fc1.kernel"] = arrays["blocks_0.mlp_fc1.kernel"][:, :5].copy()
    safetensors.numpy.save_file(arrays, path)
    with pytest.raises(CheckpointError) as error:
        load_vit(at(path))
    message = str(error.value)
    assert str(path) in message
    for part in (
        "blocks_0.attn_qkv.bias is missing",
        "blocks_1.surplus is not expected",
        "blocks_0.mlp_fc1.kernel has shape [16, 5], the config wants [16, 16]",
        "3 problem(s)",
    ):
        assert part in message


def test_cut_and_missing_files(params, tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(CheckpointError, match="there is no file"):
        load_vit(at(path))
    save_weights(path, params, VIT)
    whole = path.read_bytes()
    for length in (4, 100, len(whole) - 7):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="damaged or cut short"):
            load_vit(at(path))
    with pytest.raises(CheckpointError, match="holds 0 .safetensors files"):
        (tmp_path / "empty").mkdir()
        load_vit(at(tmp_path / "empty"))


def test_config_of_other_weights_names_the_fields(params, tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, params, VIT)
    with pytest.raises(ConfigError, match=r"needs vit.num_heads = 2 \(not 4\)"):
        load_vit(dataclasses.replace(at(path), num_heads=4))
    with pytest.raises(ConfigError, match="embedded weights need vit.depth = "):
        load_vit(VitConfig())
    with pytest.raises(ConfigError, match="embedded weights need vae.block_channels = "):
        load_vae(VaeConfig())


def test_values_that_are_not_finite_are_not_written(params, tmp_path):
    bad = jax.tree.map(lambda x: x * np.inf, params)
    with pytest.raises(CheckpointError, match="not finite"):
        save_weights(tmp_path / "w.safetensors", bad, VIT)
    assert not list(tmp_path.iterdir())


def test_taef1_without_files(tmp_path):
    with pytest.raises(ConfigError, match="vae.weights to the folder"):
        load_vae(VaeConfig(kind="taef1"))
    with pytest.raises(CheckpointError, match="taef1_encoder.safetensors"):
        load_vae(VaeConfig(kind="taef1", weights=str(tmp_path)))
    with pytest.raises(CheckpointError, match="no file or folder"):
        load_vae(VaeConfig(kind="taef1", weights=str(tmp_path / "absent")))


def test_digests_name_the_files_that_are_used(params, tmp_path):
    config = MogaoConfig(vit=at(tmp_path))
    assert set(file_digests(config)) == {"vae"}  # no vision tower there
    save_weights(tmp_path / "w.safetensors", params, VIT, np.float32)
    first = file_digests(config)
    assert set(first) == {"vae", "vit"}
    by_file = dataclasses.replace(config, vit=at(tmp_path / "w.safetensors"))
    assert file_digests(by_file) == first
    save_weights(tmp_path / "w.safetensors", jax.tree.map(lambda x: x * 2, params), VIT, np.float32)
    second = file_digests(config)
    assert second["vit"] != first["vit"] and second["vae"] == first["vae"]
    layout = dataclasses.replace(config.layout, understanding_encoder="vae")
    assert set(file_digests(dataclasses.replace(config, layout=layout))) == {"vae"}


def test_digests_of_taef1_are_of_both_its_files(tmp_path):
    vae = VaeConfig(kind="taef1", weights=str(tmp_path))
    config = MogaoConfig(vae=vae)
    assert "vae" not in file_digests(config)
    for file in taef1.FILES.values():
        (tmp_path / file).write_bytes(b"one")
    first = file_digests(config)["vae"]
    for file in taef1.FILES.values():
        (tmp_path / file).write_bytes(b"two")
        assert file_digests(config)["vae"] != first
        (tmp_path / file).write_bytes(b"one")
    assert file_digests(config)["vae"] == first
