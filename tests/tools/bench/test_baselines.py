"""What the sampler is compared with does the same work: same latents, same velocities."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest
import tiny_checkpoint as checkpoint
import tiny_system as tiny

from mogao_jax.sampling.sampler import Sampler
from mogao_jax.tools.bench import baselines, fixtures, lower_bounds
from mogao_jax.tools.bench.baselines import flow_inputs, uncached_inputs
from mogao_jax.tools.bench.instrumentation import watching


@pytest.fixture(autouse=True, scope="module")
def light_compiler():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@functools.cache
def model():
    return fixtures.random_model(checkpoint.config())


@functools.cache
def drawn():
    """(sampler, request, latents of its image, pixels)."""
    m = model()
    sampler = Sampler(m.modules, m.params, m.encoders, m.tokenizer, batch_size=1)
    (request,) = fixtures.image_requests(m.config, 1, 3)
    with watching(sampler.engine) as watch:
        (result,) = sampler.sample([request])
    ((latents,), _) = watch.named("image decode")[0].args
    assert [call.name for call in watch.calls] == [
        "image read", "image encode",  # of the prompt
        "prefill", "prefill", "prefill", "integrate_flow", "image decode", "image read",
    ]  # fmt: skip
    return sampler, request, latents, result.items[0].pixels


@pytest.mark.parametrize("baseline", [baselines.recomputing, baselines.one_after_another])
def test_baselines_draw_the_same_image(baseline):
    sampler, request, latents, pixels = drawn()
    other, shown = baseline(model(), sampler)(request)
    assert other.shape == latents.shape
    assert tiny.relative_error(other, latents) < 1e-4
    assert np.abs(shown.astype(int) - pixels).max() <= 1


def test_three_contexts_differ():
    sampler, request, *_ = drawn()
    start = flow_inputs(model(), sampler, request)
    lengths = (start.histories.meta.und.segment > 0).sum(1)
    assert len(start.lines.rows) == 3 and len(set(lengths)) == 3
    assert start.histories.tokens.shape[1] == max(lengths)  # no padding
    history, lines = start.one_context(1)
    assert history.tokens.shape == (1, lengths[1]) and lines.positions.shape[0] == 1


def test_bare_steps_see_what_the_sampler_sees():
    sampler, request, *_ = drawn()
    networks = lower_bounds.Networks(model(), sampler, request)
    start = flow_inputs(model(), sampler, request)
    x, t = (np.repeat(a, 3, 0) for a in (start.x, start.times[:1]))
    inputs = uncached_inputs(model().modules.model, start.histories, start.lines, x, t)
    whole = sampler.engine.modules.model.apply({"params": model().params}, inputs).velocity
    assert tiny.relative_error(networks.steps(2), whole) < 1e-4
    assert networks()["bare steps"] > 0


def test_the_sampler_is_left_as_it_was():
    sampler, *_ = drawn()
    before = dict(vars(sampler.engine)), dict(vars(sampler.engine.encoders))
    with watching(sampler.engine):
        assert vars(sampler.engine)["integrate_flow"] is not before[0]["integrate_flow"]
    assert (vars(sampler.engine), vars(sampler.engine.encoders)) == before


@pytest.mark.parametrize("changes", [{"num_layers": 2}, {"scan_layers": True}])
def test_token_matmuls_are_those_of_the_layers_and_the_head(changes):
    config = checkpoint.config()
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))
    m = fixtures.random_model(config)
    params, c = jax.tree.map(np.float64, m.params), config.model
    head = params.get("lm_head", params["token_embedding"])
    start, last = head[:2], np.zeros((2, 1))
    for _ in range(3):
        x = start + 1e-3 * np.tanh(last)
        for i in range(c.num_layers):
            if c.scan_layers:
                und = jax.tree.map(lambda a, i=i: a[i], params["layers"]["block"]["und"])
            else:
                und = params[f"layers_{i}"]["und"]
            w = {name: und[name]["kernel"] for name in lower_bounds.KERNELS}
            q, k, v = (np.einsum("bd,dnh->bnh", x, w[n]) for n in ("query", "key", "value"))
            groups = c.num_heads // c.num_kv_heads
            read = q.reshape(2, -1) + np.tile((k + v).reshape(2, -1), (1, groups))
            x = np.einsum("bnh,nhd->bd", read.reshape(2, c.num_heads, c.head_dim), w["output"])
            x = ((x @ w["gate"]) * (x @ w["up"])) @ w["down"]
        last = (x @ head.T).max(1, keepdims=True)
    found = lower_bounds.token_matmuls(m.params, c, 2)(3)
    np.testing.assert_allclose(found, last, rtol=1e-4)
