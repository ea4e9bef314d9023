from __future__ import annotations

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from mogao_jax.config.schema import MeshConfig, OptimizerConfig
from mogao_jax.sharding import mesh as mesh_lib
from mogao_jax.training import optimizer as optim
from mogao_jax.training import state as state_lib

PLAIN = OptimizerConfig(
    learning_rate=0.1, schedule="constant", warmup_steps=0, weight_decay=0.0, clip_norm=0.0
)


def _params(dtype=np.float32):
    rng = np.random.default_rng(0)
    return {
        "embed": {"embedding": rng.normal(size=(5, 4)).astype(dtype)},
        "block": {
            "norm": {"scale": rng.normal(size=(4,)).astype(dtype)},
            "up": {
                "kernel": rng.normal(size=(4, 3)).astype(dtype),
                "bias": rng.normal(size=(3,)).astype(dtype),
            },
        },
    }


def _grads(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), _params())


def _numpy_adamw(params, all_grads, config, rates):
    """AdamW as published (arXiv 1711.05101, algorithm 2), in float64, one array at a time."""
    flat = {jax.tree_util.keystr(k): np.float64(v) for k, v in _leaves(params)}
    m = {k: 0 * v for k, v in flat.items()}
    v2 = {k: 0 * v for k, v in flat.items()}
    for n, (grads, rate) in enumerate(zip(all_grads, rates, strict=True), start=1):
        g = {jax.tree_util.keystr(k): np.float64(v) for k, v in _leaves(grads)}
        norm = math.sqrt(sum((v**2).sum() for v in g.values()))
        scale = min(1.0, config.clip_norm / norm) if config.clip_norm else 1.0
        for k in flat:
            m[k] = config.b1 * m[k] + (1 - config.b1) * g[k] * scale
            v2[k] = config.b2 * v2[k] + (1 - config.b2) * (g[k] * scale) ** 2
            direction = (m[k] / (1 - config.b1**n)) / (
                np.sqrt(v2[k] / (1 - config.b2**n)) + config.eps
            )
            if "kernel" in k:
                direction = direction + config.weight_decay * flat[k]
            flat[k] = flat[k] - rate * direction
    return flat


def _leaves(tree):
    return jax.tree_util.tree_leaves_with_path(tree)


@pytest.mark.parametrize("clip_norm", [0.0, 0.5])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_is_the_published_one(clip_norm, weight_decay):
    config = dataclasses.replace(PLAIN, clip_norm=clip_norm, weight_decay=weight_decay)
    transform, _ = optim.make_optimizer(config, 10)
    params, rates = _params(), [0.1, 0.05, 0.2]
    all_grads = [_grads(i) for i in range(3)]
    state = transform.init(params)
    update = jax.jit(transform.update)
    for grads, rate in zip(all_grads, rates, strict=True):
        updates, state = update(grads, state, params, learning_rate=jnp.float32(rate))
        params = optax.apply_updates(params, updates)
    expected = _numpy_adamw(_params(), all_grads, config, rates)
    for path, leaf in _leaves(params):
        np.testing.assert_allclose(leaf, expected[jax.tree_util.keystr(path)], rtol=1e-5, atol=1e-6)


def test_low_precision_parameters_keep_float32_moments():
    transform, _ = optim.make_optimizer(dataclasses.replace(PLAIN, weight_decay=0.1), 10)
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.bfloat16), _params())
    grads = jax.tree.map(lambda p: jnp.full(p.shape, 1e-3, jnp.bfloat16), params)
    state = transform.init(params)
    updates, state = transform.update(grads, state, params, learning_rate=0.1)
    assert {x.dtype for x in jax.tree.leaves(state) if x.ndim} == {jnp.dtype(jnp.float32)}
    applied = optax.apply_updates(params, updates)
    assert {x.dtype for x in jax.tree.leaves(applied)} == {jnp.dtype(jnp.bfloat16)}


def test_bfloat16_moments_are_the_published_ones_rounded_after_every_step():
    config = dataclasses.replace(PLAIN, clip_norm=0.5, moments_dtype="bfloat16")
    transform, _ = optim.make_optimizer(config, 10)
    params = _params()
    state = transform.init(params)
    m = v = jax.tree.map(lambda p: np.zeros_like(p, np.float64), params)

    def bf16(x):
        return np.float64(np.asarray(x, np.float32).astype(jnp.bfloat16))

    for step in range(1, 9):
        grads = _grads(step)
        updates, state = transform.update(grads, state, params, learning_rate=0.1)
        norm = math.sqrt(sum(float((np.float64(g) ** 2).sum()) for g in jax.tree.leaves(grads)))
        g = jax.tree.map(lambda g: np.float64(g) * min(1.0, 0.5 / norm), grads)  # noqa: B023
        m = jax.tree.map(lambda m, g: config.b1 * m + (1 - config.b1) * g, m, g)
        v = jax.tree.map(lambda v, g: config.b2 * v + (1 - config.b2) * g**2, v, g)
        for found, a, b in zip(*map(jax.tree.leaves, (updates, m, v)), strict=True):
            a, b = a / (1 - config.b1**step), b / (1 - config.b2**step)
            np.testing.assert_allclose(found, -0.1 * a / (np.sqrt(b) + config.eps), rtol=1e-4)
        kept = [x for x in jax.tree.leaves(state) if x.ndim]
        assert {x.dtype for x in kept} == {jnp.dtype(jnp.bfloat16)}
        m, v = jax.tree.map(bf16, m), jax.tree.map(bf16, v)
    # The order of rounding matters: float32 moments would be outside of the tolerance above.
    exact, _ = optim.make_optimizer(dataclasses.replace(config, moments_dtype="float32"), 10)
    state = exact.init(params)
    for step in range(1, 9):
        other, state = exact.update(_grads(step), state, params, learning_rate=0.1)
    pairs = zip(*map(jax.tree.leaves, (other, updates)), strict=True)
    assert max(np.abs(a / b - 1).max() for a, b in pairs) > 1e-3


def test_bfloat16_moments_halve_the_optimizer_state_and_work_with_muon():
    for kind in ("adamw", "muon"):
        sizes = {}
        for dtype in ("float32", "bfloat16"):
            config = dataclasses.replace(PLAIN, kind=kind, moments_dtype=dtype)
            transform, _ = optim.make_optimizer(config, 10)
            state = transform.init(_params())
            updates, after = transform.update(_grads(0), state, _params(), learning_rate=0.1)
            assert all(np.isfinite(u).all() for u in jax.tree.leaves(updates))
            assert jax.tree.map(jnp.dtype, state) == jax.tree.map(jnp.dtype, after)
            sizes[dtype] = sum(x.nbytes for x in jax.tree.leaves(after) if x.ndim)
        assert sizes["bfloat16"] * 2 == sizes["float32"]


@pytest.mark.parametrize("muon_on", ["all", "und"])
def test_muon_makes_matrices_orthogonal_and_leaves_the_rest_to_adam(muon_on):
    """By the singular value decomposition: Muon's step has a gradient's vectors, and values of 1.

    Heads belong to a matrix's outputs (query) or inputs (output).
    """
    shapes = {"query": (6, 2, 5), "output": (2, 5, 6), "up": (6, 12)}
    rng = np.random.default_rng(0)

    def draw():
        return {
            branch: {
                n: {"kernel": rng.normal(size=s).astype(np.float32)} for n, s in shapes.items()
            }
            for branch in ("und", "gen")
        } | {"embed": {"embedding": rng.normal(size=(5, 4)).astype(np.float32)}}

    params, grads = draw(), draw()
    config = dataclasses.replace(PLAIN, kind="muon", muon_on=muon_on, adam_share=0.5)
    transform, _ = optim.make_optimizer(config, 10)
    updates, _ = transform.update(grads, transform.init(params), params, learning_rate=0.1)
    # Adam's first step: the sign. optax's is Nesterov's (Dozat 2016) beside Muon.
    nadam = 0.5 * (1 + config.b1 / (1 + config.b1))
    for branch in ("und", "gen"):
        for name, (rows, columns) in {"query": (6, 10), "output": (10, 6), "up": (6, 12)}.items():
            gradient = grads[branch][name]["kernel"].reshape(rows, columns)
            step = -np.float64(updates[branch][name]["kernel"]).reshape(rows, columns) / 0.1
            if branch == "gen" and muon_on == "und":
                np.testing.assert_allclose(step, nadam * np.sign(gradient), atol=1e-3)
                continue
            u, _, vt = np.linalg.svd(gradient, full_matrices=False)
            # 0.2 per entry on average (Liu et al. 2025): values of 0.2 sqrt(the longer side).
            values = np.diag(u.T @ step @ vt.T) / (0.2 * math.sqrt(max(rows, columns)))
            assert values.min() > 0.6 and values.max() < 1.3  # five steps of Newton and Schulz
            off = u.T @ step @ vt.T - np.diag(np.diag(u.T @ step @ vt.T))
            assert np.abs(off).max() < 1e-4
    table = -updates["embed"]["embedding"] / 0.1
    np.testing.assert_allclose(table, nadam * np.sign(grads["embed"]["embedding"]), atol=1e-3)


# --------------------------------------------------------------------------------------- mask


class _Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        x = nn.RMSNorm(name="norm")(x)
        return nn.Dense(4, name="up")(x), None


class _Model(nn.Module):
    scan: bool

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(5, 4, name="embed")(tokens)
        if self.scan:
            stack = nn.scan(
                _Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
            )
            x, _ = stack(name="layers")(x, None)
        else:
            for i in range(3):
                x, _ = _Block(name=f"layer_{i}")(x, None)
        return nn.Dense(5, use_bias=False, name="head")(x)


@pytest.mark.parametrize("scan", [False, True])
def test_only_matrices_decay(scan):
    shapes = jax.eval_shape(_Model(scan).init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    mask = optim.decay_mask(shapes["params"])
    decayed = {jax.tree_util.keystr(k) for k, m in _leaves(mask) if m}
    blocks = ["layers"] if scan else ["layer_0", "layer_1", "layer_2"]
    assert decayed == {f"['{b}']['up']['kernel']" for b in blocks} | {"['head']['kernel']"}
    assert len(_leaves(mask)) == len(_leaves(shapes["params"]))


def test_mask_sees_through_boxes():
    matrix = nn.LogicallyPartitioned(jnp.ones((2, 2)), ("embed", "mlp"))
    boxed = {"a": {"kernel": matrix, "bias": matrix}, "lm_head": matrix, "token_embedding": matrix}
    mask = {jax.tree_util.keystr(k): m for k, m in _leaves(optim.decay_mask(boxed))}
    assert [k for k, m in mask.items() if m] == ["['a']['kernel'].value", "['lm_head'].value"]
    assert len(mask) == 4


# ----------------------------------------------------------------------------------- schedule


def test_schedule_warms_up_by_steps_and_decays_by_progress():
    config = OptimizerConfig(
        learning_rate=1.0, end_learning_rate=0.1, schedule="cosine", warmup_steps=4
    )
    schedule = optim.make_schedule(config, 100)
    for step, warm in enumerate((0.25, 0.5, 0.75, 1.0, 1.0)):
        cosine = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / 100))
        assert schedule(step) == pytest.approx(warm * cosine, rel=1e-12)
    assert schedule(50) == pytest.approx(0.55, rel=1e-12)
    assert schedule(100) == pytest.approx(0.1, rel=1e-12)
    assert schedule(1000) == pytest.approx(0.1, rel=1e-12)  # never below the end
    assert schedule(50, 1.0) == pytest.approx(0.1, rel=1e-12)  # the clock decides
    assert schedule(5000, 0.5) == pytest.approx(0.55, rel=1e-12)
    assert schedule(0, 0.5) == pytest.approx(0.55 / 4, rel=1e-12)


def test_schedule_without_warm_up_is_optax_cosine():
    config = OptimizerConfig(learning_rate=3e-4, schedule="cosine", warmup_steps=0)
    reference = optax.cosine_decay_schedule(3e-4, 50)
    schedule = optim.make_schedule(config, 50)
    for step in range(50):
        assert schedule(step) == pytest.approx(float(reference(step)), rel=1e-4)


def test_constant_schedule():
    config = OptimizerConfig(learning_rate=0.3, schedule="constant", warmup_steps=2)
    schedule = optim.make_schedule(config, 10)
    assert [schedule(s) for s in (0, 1, 2, 9)] == pytest.approx([0.15, 0.3, 0.3, 0.3])


# --------------------------------------------------------------------------------- EMA, state


def test_ema_follows_its_definition():
    params = [{"w": np.float32([i, -2 * i])} for i in range(5)]
    ema = optim.init_ema(params[0])
    expected = np.float64(params[0]["w"])
    for n, p in enumerate(params[1:]):
        ema = optim.update_ema(ema, p, 0.3, n)
        d = min(0.3, (1 + n) / (10 + n))
        expected = d * expected + (1 - d) * p["w"]
    np.testing.assert_allclose(ema["w"], expected, rtol=1e-6)
    assert float(optim.ema_decay_at(0.999, 0)) == pytest.approx(0.1)
    assert float(optim.ema_decay_at(0.999, 10**6)) == pytest.approx(0.999)


def _init_boxed():
    def box(x, names):
        return nn.LogicallyPartitioned(x, names)

    key = jax.random.key(1)
    return {
        "up": {"kernel": box(jax.random.normal(key, (4, 8)), ("embed", "mlp"))},
        "norm": {"scale": jnp.ones((4,))},
    }


def test_state_is_cut_like_its_parameters():
    mesh = mesh_lib.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    transform, _ = optim.make_optimizer(OptimizerConfig(weight_decay=0.1), 10)
    abstract = state_lib.abstract_state(_init_boxed, transform, mesh, ema_decay=0.9)
    kernels = [x for x in jax.tree.leaves(abstract) if x.shape == (4, 8)]
    assert len(kernels) == 4  # parameter, two moments, average
    assert {x.sharding.spec for x in kernels} == {P("fsdp", "tensor")}

    state = state_lib.init_state(_init_boxed, abstract, transform)
    assert jax.tree.structure(state) == jax.tree.structure(abstract)
    for real, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
        assert (real.shape, real.dtype) == (wanted.shape, wanted.dtype)
        assert real.sharding.is_equivalent_to(wanted.sharding, real.ndim)
    np.testing.assert_array_equal(state.ema_params["up"]["kernel"], state.params["up"]["kernel"])
    assert state_lib.num_bytes(abstract) == 4 * (4 * (32 + 4)) + 2 * 4  # two int32 counters


def test_state_step_with_and_without_average():
    transform, _ = optim.make_optimizer(PLAIN, 10)
    params = {"w": jnp.array([1.0, 2.0])}
    grads = {"w": jnp.array([1.0, -1.0])}
    plain = state_lib.TrainState.create(params, transform)
    assert plain.ema_params is None
    averaged = state_lib.TrainState.create(params, transform, ema_decay=0.9)
    plain = plain.apply_gradients(grads, transform, learning_rate=0.1)
    averaged = averaged.apply_gradients(grads, transform, learning_rate=0.1, ema_decay=0.9)
    assert int(plain.step) == int(averaged.step) == 1
    np.testing.assert_allclose(plain.params["w"], [0.9, 2.1], rtol=1e-5)
    np.testing.assert_array_equal(averaged.params["w"], plain.params["w"])
    np.testing.assert_allclose(averaged.ema_params["w"], [0.91, 2.09], rtol=1e-5)
