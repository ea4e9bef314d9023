"""Other algorithms that give the same image: what the sampler is compared with.

Both serve one request without padding and give the sampler's own latents.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mogao_jax import flow
from mogao_jax.models.mogao import DENSE_BYTES, Mogao, MogaoInputs
from mogao_jax.ops.attention.parts import Parts
from mogao_jax.sampling import guided_flow, prefill
from mogao_jax.sampling.guided_flow import GuidanceBatch
from mogao_jax.sampling.loading import Model
from mogao_jax.sampling.prefill import NewTokens
from mogao_jax.sampling.requests import Request
from mogao_jax.sampling.sampler import Sampler
from mogao_jax.tools.bench.inputs import FlowInputs, empty_cache, flow_inputs, uncached_inputs

# A request -> latents float32[tokens, 64] and pixels uint8[H, W, 3]; Euler's method.
Baseline = Callable[[Request], tuple[np.ndarray, np.ndarray]]


def recomputing(model: Model, sampler: Sampler) -> Baseline:
    """Without a cache: every step computes the histories of all contexts again, as one batch.

    A program per step: inside one loop the compiler would see that the histories do not change,
    and compute them once.
    """
    engine = sampler.engine

    @jax.jit
    def step(
        params: Any, histories: NewTokens, lines: GuidanceBatch, x: Any, t: Any, t_next: Any
    ) -> jax.Array:
        model, image = engine.modules.model, lines.image
        inputs = uncached_inputs(model, histories, lines, x[image], t[image])
        transformer = _with_dense_attention(model, inputs)
        velocity = transformer.apply({"params": params}, inputs).velocity
        return _guided_step(velocity, lines, x, t, t_next)

    def generate(request: Request) -> tuple[np.ndarray, np.ndarray]:
        start = flow_inputs(model, sampler, request)
        histories, lines, x = jax.device_put((start.histories, start.lines, start.x))
        for t, t_next in _intervals(start):
            x = step(engine.params, histories, lines, x, t, t_next)
        return _decoded(sampler, start, x)

    return generate


def one_after_another(model: Model, sampler: Sampler) -> Baseline:
    """The structure of BAGEL's sampler, with our model. Not their code, and not their kernels.

    BAGEL (arXiv 2505.14683) keeps a cache per guidance branch, each a deep copy. In every step of
    a Python loop it runs the branches one after another at batch 1, then combines their velocities
    and steps. Inside a forward pass the keys and values of the cache are copied once more, into
    one array with those of the new tokens; our attention does that by itself.

    Imitated here: a cache of its own per context, filled at batch 1 and copied; in every step one
    program per context and one for guidance and the step, called from Python. To its advantage,
    each context is filled in one pass (BAGEL takes one per text and per encoder of an image), and
    all is compiled.
    """
    engine = sampler.engine
    modules = engine.modules
    fill = jax.jit(functools.partial(prefill.prefill, modules))

    @jax.jit
    def predict(params: Any, cache: Parts, lines: GuidanceBatch, x: Any, t: Any) -> jax.Array:
        inputs = guided_flow.noised_inputs(modules.model, x, t, lines)
        return modules.model.apply({"params": params}, inputs, cache).velocity

    @jax.jit
    def step(velocities: Any, lines: GuidanceBatch, x: Any, t: Any, t_next: Any) -> jax.Array:
        return _guided_step(jnp.concatenate(velocities), lines, x, t, t_next)

    def generate(request: Request) -> tuple[np.ndarray, np.ndarray]:
        start = flow_inputs(model, sampler, request)
        branches = []
        for i in range(len(start.lines.rows)):
            history, lines = jax.device_put(start.one_context(i))
            cache = empty_cache(engine.config.model, history)
            cache = fill(engine.params, cache, np.zeros(1, np.int32), history)
            branches.append((jax.tree.map(jnp.copy, cache), lines))
        together, x = jax.device_put((start.lines, start.x))
        for t, t_next in _intervals(start):
            velocities = [predict(engine.params, cache, lines, x, t) for cache, lines in branches]
            x = step(velocities, together, x, t, t_next)
        return _decoded(sampler, start, x)

    return generate


def _with_dense_attention(model: Mogao, inputs: MogaoInputs) -> Mogao:
    """The model with the attention that it has with a cache too: whole scores while they fit."""
    num_rows, length = inputs.tokens.shape[0], sum(m.segment.shape[1] for m in inputs.meta)
    if 4 * num_rows * model.config.num_heads * length**2 > DENSE_BYTES:
        return model
    attention = dataclasses.replace(model.config.attention, implementation="dense")
    return model.clone(config=dataclasses.replace(model.config, attention=attention))


def _guided_step(
    velocity: jax.Array, lines: GuidanceBatch, x: Any, t: Any, t_next: Any
) -> jax.Array:
    guided = guided_flow.combine(velocity, t, lines.index, lines.weights, lines.interval)
    return flow.euler_step(guided, x, t, t_next)


def _intervals(start: FlowInputs) -> list[tuple[np.ndarray, np.ndarray]]:
    times = start.times[:, None]
    return list(zip(times[:-1], times[1:], strict=True))


def _decoded(sampler: Sampler, start: FlowInputs, x: Any) -> tuple[np.ndarray, np.ndarray]:
    latents = np.asarray(x)[0]
    (pixels,) = sampler.engine.encoders.decode([latents], [start.size])
    return latents, pixels
