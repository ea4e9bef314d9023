"""Frozen parameters stay to the bit, cost nothing, and change nothing for what is trained."""

from __future__ import annotations

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_system as tiny

from mogao_jax.config import check, load_config
from mogao_jax.config.schema import MeshConfig, OptimizerConfig
from mogao_jax.errors import ConfigError
from mogao_jax.models.modules import count_parameters, init_params, make_model
from mogao_jax.porting.formats import qwen2
from mogao_jax.porting.params import param_specs
from mogao_jax.sharding import mesh as mesh_lib
from mogao_jax.training.optimizer import (
    count_trained,
    frozen_mask,
    make_optimizer,
)
from mogao_jax.training.state import TrainState, abstract_state
from mogao_jax.training.step import make_train_step, without_gradients

LLM = OptimizerConfig(frozen="llm", weight_decay=0.1, warmup_steps=0, ema_decay=0.9)
STEPS = 3
CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"


@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_frozen_is_what_a_language_model_fills(scan_layers, tie_embeddings):
    config = tiny.config(model={"scan_layers": scan_layers, "tie_embeddings": tie_embeddings})
    model = make_model(config, tiny.TOKENIZER.vocab_size)
    boxed = jax.eval_shape(lambda: init_params(config, model, jax.random.key(0)))
    for params in (boxed, tiny.make_params(tiny.load_modules(config))):
        mask = frozen_mask(params, LLM)
        leaves = jax.tree.leaves(mask)
        frozen = sum(x.size for x, m in zip(jax.tree.leaves(params), leaves, strict=True) if m)
        assert count_trained(params, LLM) == sum(count_parameters(params).values()) - frozen
        assert not any(jax.tree.leaves(frozen_mask(params, OptimizerConfig())))
    named = {name: (slot.leaf, slot.shape) for name, slot in param_specs(params).items()}
    table = [rule.ours for rule in qwen2.table(config.model) if rule.ours]
    filled = {p.replace("{i}", str(i)) for p in table for i in range(config.model.num_layers)}
    wanted = {leaf for name, (leaf, _) in named.items() if name in filled}
    found = {
        ".".join(str(k.key) for k in path)
        for path, m in jax.tree_util.tree_leaves_with_path(mask)
        if m
    }
    assert found == wanted and len(found) > 10


@functools.cache
def _trained(optimizer: OptimizerConfig):
    config = tiny.config(objective={"ntp_weight": 0.5})
    config = dataclasses.replace(config, optimizer=optimizer)
    modules = tiny.load_modules(config)
    transform = make_optimizer(optimizer, 10).transform
    batch = tiny.rows([[tiny.interleaved_document(1)], [tiny.interleaved_document(2)]])
    batch = jax.tree.map(lambda x: np.asarray(x)[None], batch)
    state = TrainState.create(tiny.make_params(modules), transform, optimizer.ema_decay)
    step = jax.jit(make_train_step(modules, transform))
    states = [state]
    for _ in range(STEPS):
        states.append(step(states[-1], tiny.encoders(), batch, jnp.float32(1e-2))[0])
    return states


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "moments_dtype"), [("adamw", "float32"), ("muon", "bfloat16")], ids=str
)
def test_frozen_parameters_stay_to_the_bit_and_all_others_move(kind, moments_dtype):
    optimizer = dataclasses.replace(LLM, kind=kind, moments_dtype=moments_dtype)
    states = _trained(optimizer)
    mask = jax.tree.leaves(frozen_mask(states[0].params, optimizer))
    paths = jax.tree_util.tree_leaves_with_path(states[0].params)
    for state in states[1:]:
        for tree in (state.params, state.ema_params):
            for (path, before), after, frozen in zip(
                paths, jax.tree.leaves(tree), mask, strict=True
            ):
                same = np.array_equal(np.asarray(before), np.asarray(after))
                assert same == frozen, jax.tree_util.keystr(path)


@pytest.mark.slow
def test_what_is_trained_is_trained_as_without():
    """The first step: later ones see other gradients, since the rest has moved."""
    plain = OptimizerConfig(warmup_steps=0, ema_decay=0.0, clip_norm=0.0)
    free, held = _trained(plain), _trained(dataclasses.replace(plain, frozen="llm"))
    mask = jax.tree.leaves(frozen_mask(free[0].params, LLM))
    moved = zip(jax.tree.leaves(free[1].params), jax.tree.leaves(held[1].params), mask, strict=True)
    for a, b, frozen in moved:
        if not frozen:
            np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-4, atol=1e-5)


def test_frozen_parameters_have_no_moments():
    params = tiny.make_params(tiny.load_modules())
    state = TrainState.create(params, make_optimizer(LLM, 10).transform)
    trained = count_trained(state.params, LLM)
    assert 0 < trained < sum(count_parameters(state.params).values())
    moments = sum(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim)
    assert moments == 2 * trained


def test_moments_of_what_is_trained_are_cut_like_it():
    config = dataclasses.replace(tiny.CONFIG, optimizer=LLM)
    model = make_model(config, tiny.TOKENIZER.vocab_size)
    mesh = mesh_lib.make_mesh(MeshConfig(data=2, fsdp=4))
    transform = make_optimizer(LLM, 10).transform
    init = functools.partial(init_params, config, model, jax.random.key(0))
    state = abstract_state(init, transform, mesh, 0.9)
    wanted = {}
    for (path, x), frozen in zip(
        jax.tree_util.tree_leaves_with_path(state.params),
        jax.tree.leaves(frozen_mask(state.params, LLM)),
        strict=True,
    ):
        if not frozen:
            wanted[jax.tree_util.keystr(path)] = x.sharding
    found = 0
    for path, x in jax.tree_util.tree_leaves_with_path(state.opt_state):
        name = jax.tree_util.keystr(path)
        hits = [key for key in wanted if name.endswith(key)]
        if x.ndim:
            assert len(hits) == 1 and x.sharding == wanted[hits[0]], name
            found += 1
    assert found == 2 * len(wanted)


def test_no_gradient_is_computed_for_them():
    params = {"token_embedding": jnp.ones(3), "layers": {"und": {"k": jnp.ones(2)}, "gen": {}}}
    params["velocity_head"] = jnp.ones(2)

    def loss(p):
        p = without_gradients(p, LLM)
        return sum(x.sum() for x in jax.tree.leaves(p))

    grads = jax.grad(loss)(params)
    assert not grads["token_embedding"].any() and not grads["layers"]["und"]["k"].any()
    assert grads["velocity_head"].all()


def test_a_shared_branch_cannot_be_frozen():
    config = load_config(CONFIGS / "quickstart.py")
    held = dataclasses.replace(config.optimizer, frozen="llm")
    check(config := dataclasses.replace(config, optimizer=held))
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, fusion="shared"))
    with pytest.raises(ConfigError, match=r"optimizer\.frozen.*fusion='shared'"):
        check(config)
