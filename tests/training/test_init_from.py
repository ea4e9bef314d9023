"""A run that starts from a checkpoint: its parameters, the average as their copy, and refusals."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny_checkpoint
import tiny_system as tiny

from mogao_jax.checkpoints import files, sidecar_files
from mogao_jax.errors import CheckpointError
from mogao_jax.models.modules import init_params, make_model
from mogao_jax.sharding.mesh import make_mesh
from mogao_jax.tokenizer import load_tokenizer
from mogao_jax.training.init_from import load_initial_params
from mogao_jax.training.optimizer import make_optimizer
from mogao_jax.training.state import abstract_state, init_state, state_from

CONFIG = tiny_checkpoint.config()
TRANSFORM = make_optimizer(CONFIG.optimizer, 10).transform


def starting(place, config=CONFIG, **model):
    changed = dataclasses.replace(config.model, **model)
    train = dataclasses.replace(config.train, init_from=str(place))
    return dataclasses.replace(config, model=changed, train=train)


def abstract(config, ema_decay=0.9):
    model = make_model(config, tiny.TOKENIZER.vocab_size)
    mesh = make_mesh(dataclasses.replace(config.mesh, fsdp=2))

    def init():
        return init_params(config, model, jax.random.key(0))

    return init, abstract_state(init, TRANSFORM, mesh, ema_decay), mesh


def test_the_state_at_the_start(tmp_path):
    """On a mesh; the average is a copy, the optimizer as at any start."""
    run = tiny_checkpoint.write_run(tmp_path / "run")
    file = tiny_checkpoint.write_file(tmp_path / "x.safetensors", dtype="float32")
    for place, wanted in ((run, tiny_checkpoint.params(1)), (file, tiny_checkpoint.params(0))):
        config = starting(place)
        init, shapes, mesh = abstract(config)
        params = load_initial_params(config, shapes.params, tiny.TOKENIZER)
        state = state_from(params, shapes, TRANSFORM)
        jax.tree.map(np.testing.assert_array_equal, state.params, wanted)
        jax.tree.map(np.testing.assert_array_equal, state.ema_params, wanted)
        assert int(state.step) == 0
        plain = init_state(init, shapes, TRANSFORM)
        assert jax.tree.structure(plain) == jax.tree.structure(state)
        jax.tree.map(np.testing.assert_array_equal, state.opt_state, plain.opt_state)
        for made, wanted_there in zip(jax.tree.leaves(state), jax.tree.leaves(shapes), strict=True):
            assert made.sharding == wanted_there.sharding and made.dtype == wanted_there.dtype


def test_without_an_average(tmp_path):
    config = starting(tiny_checkpoint.write_run(tmp_path / "run", ema=False))
    _, shapes, _ = abstract(config, ema_decay=0.0)
    params = load_initial_params(config, shapes.params, tiny.TOKENIZER)
    state = state_from(params, shapes, TRANSFORM)
    jax.tree.map(np.testing.assert_array_equal, state.params, tiny_checkpoint.params(0))
    assert state.ema_params is None


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_checkpoint.write_run(tmp_path_factory.mktemp("start") / "run")


def refused(config) -> str:
    _, shapes, _ = abstract(config)
    with pytest.raises(CheckpointError) as error:
        load_initial_params(config, shapes.params, load_tokenizer(config.tokenizer))
    return str(error.value)


def test_another_model(run, tmp_path):
    message = refused(starting(run, rope_theta=1e4, rms_norm_eps=1e-5))
    assert "model.rope_theta: 1000000.0 -> 10000.0" in message and "rms_norm_eps" in message
    assert "another model" in refused(starting(run, mlp_dim=40))
    assert "no checkpoint '" in refused(starting(tmp_path / "nothing"))


def test_another_tokenizer(run, tmp_path):
    """A checkpoint whose meta names its tokenizer, as ported ones do."""
    import shutil

    folder = shutil.copytree(run / "checkpoints" / str(tiny_checkpoint.STEP), tmp_path / "c")
    meta = files.read_folder_meta(folder)
    meta["tokenizer"] = sidecar_files.describe_tokenizer(CONFIG.tokenizer, tiny.TOKENIZER)
    shutil.rmtree(folder / "meta")
    files.write_folder_meta(folder, meta)
    config = starting(folder)
    _, shapes, _ = abstract(config)
    load_initial_params(config, shapes.params, tiny.TOKENIZER)
    shapes_tokenizer = dataclasses.replace(CONFIG.tokenizer, kind="shapes")
    message = refused(dataclasses.replace(config, tokenizer=shapes_tokenizer))
    assert "262 tokens" in message and "other words" in message
    assert json.loads((folder / "meta" / "metadata").read_text())["tokenizer"]["vocab_size"] == 262


def test_other_encoders_are_said(tmp_path):
    other = {"vae": "0123456789abcdef"}
    for place in (
        tiny_checkpoint.write_run(tmp_path / "run", encoders=other),
        tiny_checkpoint.write_file(tmp_path / "x.safetensors", encoders=other),
    ):
        config, said = starting(place), []
        load_initial_params(config, abstract(config)[1].params, tiny.TOKENIZER, report=said.append)
        assert len(said) == 1 and "another VAE (0123456789abcdef then" in said[0]
