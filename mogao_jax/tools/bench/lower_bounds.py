"""Lower bounds of sampling: its forward passes and matmuls alone, without the sampler."""

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
from mogao_jax.models import cache as kv_cache
from mogao_jax.models.cache import PartCache
from mogao_jax.models.modules import Modules
from mogao_jax.models.mogao import head_table
from mogao_jax.ops.attention.parts import Parts
from mogao_jax.sampling import guided_flow, prefill
from mogao_jax.sampling.loading import Model
from mogao_jax.sampling.requests import Request
from mogao_jax.sampling.sampler import Sampler
from mogao_jax.tools.bench.baselines import empty_cache, flow_inputs
from mogao_jax.tools.bench.instrumentation import watching


class Networks:
    """What the networks have to do for one image, each jitted alone, nothing around them.

    The prompt's image through VAE and ViT; one forward pass over the histories, all contexts at
    once; a forward pass per step on the sampler's own noised tokens and cached keys, without its
    padding; the VAE's decoder.
    """

    def __init__(self, model: Model, sampler: Sampler, request: Request):
        engine = self._engine = sampler.engine
        with watching(engine) as watch:
            sampler.sample([request])
        self._images = watch.named("image encode")[0].args[0]
        self._latents = watch.named("image decode")[0].args
        self.steps = _forward_passes(engine.modules, watch.named("integrate_flow")[0].args)
        self._num_steps = request.options.num_steps
        self._histories = jax.device_put(flow_inputs(model, sampler, request).histories)
        self._cache = empty_cache(engine.config.model, self._histories)
        self._rows = np.arange(len(self._histories.tokens), dtype=np.int32)
        self._fill = jax.jit(functools.partial(prefill.prefill, engine.modules))

    def __call__(self) -> dict[str, float]:
        """Runs them; seconds of the passes of the steps alone ("bare steps")."""
        engine = self._engine
        engine.encoders.encode(self._images)
        filled = self._fill(engine.params, self._cache, self._rows, self._histories)
        jax.block_until_ready(filled)
        began = time.perf_counter()
        self.steps(self._num_steps)
        ended = time.perf_counter()
        engine.encoders.decode(*self._latents)
        return {"bare steps": ended - began}


def _forward_passes(modules: Modules, arguments: tuple) -> Callable[[int], jax.Array]:
    """Calls `model.apply` a number of times on the arguments of one of the sampler's `draw`s."""
    params, cache, x, times, _, lines = arguments
    rows = np.asarray(lines.rows)
    real = rows < cache.und.meta.segment.shape[0]
    used = np.asarray(lines.meta.segment)[real].any(axis=0)
    lines = lines._replace(
        rows=rows[real],
        image=lines.image[real],
        meta=jax.tree.map(lambda a: a[real][:, used], lines.meta),
        positions=lines.positions[real][:, used],
    )
    lengths = [_used(part, lines.rows) for part in cache]

    @jax.jit
    def prepare(cache: Parts, x: Any, t: Any) -> Any:
        parts = zip(cache, lengths, strict=True)
        work = Parts(*(kv_cache.take(part, lines.rows, n) if n else None for part, n in parts))
        return work, guided_flow.noised_inputs(modules.model, x[lines.image], t[lines.image], lines)

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
    """The length of the cache up to the last place that any of these rows uses."""
    if part is None:
        return 0
    is_used = (np.asarray(part.meta.segment)[rows] > 0).any(axis=0)
    return int(is_used.nonzero()[0].max(initial=-1)) + 1


def token_matmuls(params: Any, config: ModelConfig, num_rows: int) -> Callable[[int], jax.Array]:
    """A loop over only the matmuls of decoding, one token per row at a time.

    Those of the und branch's layers (queries, keys, values, output, FFN) and of the language
    head, on the same weights in the model's dtype: no attention, no norms, no sampling of a token.
    Each token waits for the one before, as in decoding.

    Args:
      num_rows: rows that are decoded at once.
    Returns:
      A function of the number of tokens per row.
    """
    dtype = jnp.dtype(config.dtype)
    layers = _und_matrices(params, config)
    head = jnp.asarray(head_table(params), dtype)
    start = jnp.asarray(head_table(params)[:num_rows], dtype)  # [B, D] any numbers
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


def _und_matrices(params: Any, config: ModelConfig) -> list[dict[str, jax.Array]]:
    """The und branch's kernels of every layer by name, in the model's dtype, as matrices."""

    def matrix(name: str, kernel: jax.Array) -> jax.Array:
        rows = -1 if name in ("output", "down") else kernel.shape[0]  # heads, in or out, are one
        columns = kernel.shape[-1] if rows == -1 else -1
        return jnp.asarray(kernel, jnp.dtype(config.dtype)).reshape(rows, columns)

    def layer(index: int) -> Any:
        if not config.scan_layers:
            return params[f"layers_{index}"]["und"]
        return jax.tree.map(lambda x: x[index], params["layers"]["block"]["und"])

    layers = map(layer, range(config.num_layers))
    return [{name: matrix(name, und[name]["kernel"]) for name in KERNELS} for und in layers]
