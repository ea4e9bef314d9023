"""The bare work, with nothing of a sampler around it: forward passes, and matmuls."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mogao_jax.config.schema import ModelConfig
from mogao_jax.models.cache import PartCache
from mogao_jax.models.modules import Modules
from mogao_jax.models.mogao import head_table
from mogao_jax.ops.attention.parts import Parts
from mogao_jax.sampling import image, kv_cache, prefill
from mogao_jax.sampling.loading import Model
from mogao_jax.sampling.requests import Request
from mogao_jax.sampling.sampler import Sampler
from mogao_jax.tools.bench.inputs import empty_cache, stage
from mogao_jax.tools.bench.instrumentation import Call, watching


class Networks:
    """What the networks have to do for one picture, each jitted alone, nothing around them.

    The prompt's picture through VAE and ViT; one forward pass over the histories, all contexts at
    once; a forward pass per step on the same noised tokens and cached keys as the sampler's, its
    padding left out; the VAE's decoder.
    """

    def __init__(self, model: Model, sampler: Sampler, request: Request):
        engine = self._engine = sampler.engine
        with watching(engine) as watch:
            sampler.sample([request])
        self._pictures = watch.named("picture encode")[0].args[0]
        self._latents = watch.named("picture decode")[0].args
        self.steps = _forward_passes(engine.modules, watch.named("draw")[0])
        self._num_steps = request.options.num_steps
        staged = stage(model, sampler, request)
        self._histories = jax.device_put(staged.histories)
        self._cache = empty_cache(engine.config.model, self._histories)
        self._rows = np.arange(staged.num_contexts, dtype=np.int32)
        self._fill = jax.jit(functools.partial(prefill.extend, engine.modules))

    def __call__(self) -> dict[str, float]:
        """Runs them; seconds of the passes of the steps alone ("bare steps")."""
        engine = self._engine
        engine.encoders.encode(self._pictures)
        filled = self._fill(engine.params, self._cache, self._rows, self._histories)
        jax.block_until_ready(filled)
        began = time.perf_counter()
        self.steps(self._num_steps)
        ended = time.perf_counter()
        engine.encoders.decode(*self._latents)
        return {"bare steps": ended - began}


def _forward_passes(modules: Modules, drawn: Call) -> Callable[[int], jax.Array]:
    """So many calls of `model.apply` on what a call of the sampler's `draw` was given."""
    params, cache, x, times, _, lines = drawn.args
    rows = np.asarray(lines.rows)
    real = rows < cache.und.meta.segment.shape[0]
    used = np.asarray(lines.meta.segment)[real].any(axis=0)
    lines = image.GuidanceBatch(
        rows=rows[real],
        picture=lines.picture[real],
        meta=jax.tree.map(lambda a: a[real][:, used], lines.meta),
        positions=lines.positions[real][:, used],
        index=lines.index,
        weights=lines.weights,
        interval=lines.interval,
    )

    lengths = [_used(part, lines.rows) for part in cache]

    @jax.jit
    def prepare(cache: Parts, x: Any, t: Any) -> Any:
        parts = zip(cache, lengths, strict=True)
        work = Parts(*(kv_cache.take(part, lines.rows, n) if n else None for part, n in parts))
        return work, image.noised_inputs(x[lines.picture], t[lines.picture], lines)

    @jax.jit
    def forward(params: Any, inputs: Any, work: Parts) -> jax.Array:
        return modules.model.apply({"params": params}, inputs, work).velocity

    work, inputs = prepare(cache, jnp.asarray(x)[:, used], times[0])

    def run(count: int) -> jax.Array:
        for _ in range(count):
            velocity = forward(params, inputs, work)
        return jax.block_until_ready(velocity)

    return run


def _used(part: PartCache | None, rows: np.ndarray) -> int:
    """Places of the cache up to the last that is used in any of these rows."""
    if part is None:
        return 0
    is_used = (np.asarray(part.meta.segment)[rows] > 0).any(axis=0)
    return int(is_used.nonzero()[0].max(initial=-1)) + 1


def token_matmuls(params: Any, config: ModelConfig, num_rows: int) -> Callable[[int], jax.Array]:
    """A loop that runs only the matmuls of writing tokens, one token per row at a time.

    Those of the und branch's layers (queries, keys, values, output, FFN) and of the language
    head, on the same weights in the model's dtype: no attention, no norms, no choice of a token.
    Each token waits for the one before, as in decoding.

    Args:
      num_rows: rows that are written at once.
    Returns:
      A function of the number of tokens per row.
    """
    dtype = jnp.dtype(config.dtype)
    layers = [
        {
            name: jnp.asarray(kernel, dtype).reshape(_matrix(name, kernel.shape))
            for name, kernel in kernels.items()
        }
        for kernels in _layers(params, config)
    ]
    head = jnp.asarray(head_table(params), dtype)
    start = jnp.asarray(head_table(params)[:num_rows], dtype)  # [B, D], any numbers will do
    start = jnp.resize(start, (num_rows, head.shape[1]))

    @jax.jit
    def loop(layers: Any, head: jax.Array, start: jax.Array, count: jax.Array) -> jax.Array:
        def token(_: Any, last: jax.Array) -> jax.Array:
            x = start + 1e-3 * jnp.tanh(last)  # so that no token can be computed ahead
            for w in layers:
                groups = w["query"].shape[1] // w["key"].shape[1]
                read = x @ w["query"] + jnp.tile(x @ w["key"] + x @ w["value"], (1, groups))
                x = read @ w["output"]
                x = ((x @ w["gate"]) * (x @ w["up"])) @ w["down"]
            logits = lax.dot_general(
                x, head, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
            )
            return jnp.max(logits, axis=1, keepdims=True).astype(dtype)

        return lax.fori_loop(0, count, token, jnp.zeros((num_rows, 1), dtype))

    return lambda count: jax.block_until_ready(loop(layers, head, start, np.int32(count)))


KERNELS = ("query", "key", "value", "output", "gate", "up", "down")


def _layers(params: Any, config: ModelConfig) -> list[dict[str, jax.Array]]:
    """The und branch's kernels of every layer, by name."""
    if config.scan_layers:
        branch = params["layers"]["block"]["und"]
        return [
            {name: branch[name]["kernel"][i] for name in KERNELS} for i in range(config.num_layers)
        ]
    branches = [params[f"layers_{i}"]["und"] for i in range(config.num_layers)]
    return [{name: branch[name]["kernel"] for name in KERNELS} for branch in branches]


def _matrix(name: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """A kernel as a matrix: several axes of heads, in or out, are one."""
    return (-1, shape[-1]) if name in ("output", "down") else (shape[0], -1)
