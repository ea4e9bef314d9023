"""Other algorithms that give the same image: what the sampler is compared with.

Both serve one request without padding and give the sampler's own latents. They start from the
sampler's own values of an image that is about to be generated: its histories and its noise.

Axes: J contexts, U und tokens of the longest, C clean VAE tokens, N tokens of the image.
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
from mogao_jax.config.geometry import VAE_GRID
from mogao_jax.config.schema import ModelConfig
from mogao_jax.models import cache as kv_cache
from mogao_jax.models.mogao import DENSE_BYTES, Mogao, MogaoInputs
from mogao_jax.ops.attention.parts import Parts
from mogao_jax.sampling import guided_flow, prefill
from mogao_jax.sampling.guided_flow import GuidanceBatch
from mogao_jax.sampling.loading import Model
from mogao_jax.sampling.prefill import NewTokens
from mogao_jax.sampling.requests import Request
from mogao_jax.sampling.sampler import Sampler

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


# -------------------------------------------------------------------------------------- the inputs


@dataclasses.dataclass(frozen=True, eq=False)
class FlowInputs:
    """One image before its first step."""

    histories: NewTokens  # all tokens of each context, a row per context in the order of `lines`
    lines: GuidanceBatch  # the image in each context; R = 1
    per_token: int  # the ViT's features per token
    x: np.ndarray  # float32[1, N, C] noise
    times: np.ndarray  # float32[num_steps + 1]
    size: tuple[int, int]  # (height, width) in pixels

    def one_context(self, index: int) -> tuple[NewTokens, GuidanceBatch]:
        """One context without padding to the longest: rows of one."""
        lines = self.lines._replace(index=(), weights=(), interval=())
        history, lines = jax.tree.map(lambda a: a[index : index + 1], (self.histories, lines))
        return without_padding(history, self.per_token), lines


def flow_inputs(model: Model, sampler: Sampler, request: Request) -> FlowInputs:
    """The inputs of a request's first image; the images of its prompt are encoded.

    The request must begin with an image (draw_first).
    """
    engine, options, config = sampler.engine, request.options, model.config
    (session,) = sampler.open_sessions([sampler.prepare(request)], lambda index, event: None)
    contexts, weights = session.start_image()
    for slot, context in enumerate(contexts.values()):
        context.slot = slot
    histories = prefill.build_prefill_batch(
        list(contexts.values()),
        [[*c.pending, *c.pending_clean] for c in contexts.values()],
        len(contexts),
        engine.encoders.feature_shape,
        engine.channels,
    )
    grid = session.size[0] // VAE_GRID, session.size[1] // VAE_GRID
    n = grid[0] * grid[1]
    lines = guided_flow.build_guidance_batch(
        [contexts],
        [weights],
        [options.guidance_interval],
        [grid],
        num_images=1,
        num_lines=len(contexts),
        num_tokens=n,
        pad_row=len(contexts),
    )
    x = guided_flow.noise(request.seed, session.image_index, n, engine.channels)[None]
    times = guided_flow.time_grid(options.num_steps, n, config.objective, options.timestep_shift)
    per_token = engine.encoders.feature_shape[0]
    histories = without_padding(histories, per_token)
    return FlowInputs(histories, lines, per_token, x, times, session.size)


def without_padding(new: NewTokens, per_token: int) -> NewTokens:
    """Rows as long as the longest of them."""
    num_und, num_clean = (int((m.segment > 0).sum(1).max(initial=0)) for m in new.meta[:2])
    num_vit = int((new.vit_index >= 0).sum(1).max(initial=0))

    def cut(parts: Parts) -> Parts:
        und = jax.tree.map(lambda a: a[:, :num_und], parts.und)
        return Parts(und, jax.tree.map(lambda a: a[:, :num_clean], parts.clean))

    return NewTokens(
        tokens=new.tokens[:, :num_und],
        vit_index=new.vit_index[:, :num_und],
        features=new.features[:, : num_vit * per_token],
        latents=new.latents[:, :num_clean],
        meta=cut(new.meta),
        positions=cut(new.positions),
        destination=cut(new.destination),
    )


def uncached_inputs(
    model: Mogao, history: NewTokens, lines: GuidanceBatch, x: jax.Array, t: jax.Array
) -> MogaoInputs:
    """Histories and the noised tokens x[J, N, C] at t[J], for one forward pass without a cache."""
    return guided_flow.noised_inputs(model, x, t, lines)._replace(
        tokens=history.tokens,
        vit_index=history.vit_index,
        vit_features=history.features,
        clean_latents=history.latents,
        meta=Parts(history.meta.und, history.meta.clean, lines.meta),
        positions=Parts(history.positions.und, history.positions.clean, lines.positions),
    )


def empty_cache(config: ModelConfig, histories: NewTokens) -> Parts:
    """Room for exactly these histories, a row each."""
    num_rows, num_und = histories.tokens.shape
    lengths = num_und, histories.latents.shape[1]
    return Parts(*(kv_cache.allocate(config, num_rows, length) for length in lengths))
