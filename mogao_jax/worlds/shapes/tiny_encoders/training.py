"""The training loop of the tiny encoders: short trainings, so every step should count."""

from __future__ import annotations

import concurrent.futures
import functools
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

PEAK_LEARNING_RATE = 5e-3  # of Muon; Adam's, for biases and norms, is ADAM_SHARE of it
ADAM_SHARE = 0.4
CHECK_EVERY = 120  # seconds


def muon() -> optax.GradientTransformation:
    """Muon on kernels as matrices (inputs x outputs), Adam on the rest; learning rate 1."""

    def dimensions(params):
        def one(path, leaf):
            if path[-1].key != "kernel":
                return None
            return optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

        return jax.tree_util.tree_map_with_path(one, params)

    return optax.contrib.muon(
        1.0,
        adam_learning_rate=ADAM_SHARE,
        adam_b2=0.99,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=dimensions,
    )


def learning_rate(done: float, peak: float = PEAK_LEARNING_RATE) -> float:
    """Warm-up over 2% of the time, then a cosine to zero; `done` is the share of it, in [0, 1]."""
    return peak * min(1.0, done / 0.02) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def average_decay(step: int, most: float = 0.998) -> float:
    """Decay of the moving average of parameters: short memory at first."""
    return min(most, (1 + step) / (10 + step))


def train(
    minutes: float,
    params: Any,
    loss: Callable[..., tuple[jax.Array, dict[str, jax.Array]]],
    inputs: Callable[[int, float], tuple],
    check: Callable[[Any], None],
    *,
    resumed: bool,
    log: Callable[[str], None],
) -> None:
    """Trains for about `minutes`.

    Args:
      params: where training starts.
      loss: (params, *inputs) -> a scalar and its parts by name.
      inputs: (index, share of the time that is done) -> the arrays of a step; one step ahead, in
        a thread.
      check: is given the moving average of the parameters, every CHECK_EVERY seconds and at the
        end.
      resumed: from trained weights: half the learning rate, and other images than before.
    """
    optimizer = muon()

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, given, rate, decay):
        params, average, moments = state
        (_, parts), grads = jax.value_and_grad(loss, has_aux=True)(params, *given)
        updates, moments = optimizer.update(grads, moments, params)
        params = jax.tree.map(lambda p, u: p + rate * u, params, updates)
        average = jax.tree.map(lambda a, p: a + (1 - decay) * (p - a), average, params)
        return (params, average, moments), parts

    state = jax.tree.map(jnp.copy, (params, params, optimizer.init(params)))
    peak = PEAK_LEARNING_RATE / 2 if resumed else PEAK_LEARNING_RATE
    first = int(time.time()) if resumed else 0
    begin = last_check = time.monotonic()
    count = 0
    with concurrent.futures.ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(inputs, first, 0.0)
        while True:
            now = time.monotonic()
            done = (now - begin) / (60 * minutes)
            if now - last_check > CHECK_EVERY or done >= 1:
                last_check = now
                check(state[1])
            if done >= 1:
                return
            given = coming.result()
            coming = ahead.submit(inputs, first + count + 1, done)
            state, parts = step(state, given, learning_rate(done, peak), average_decay(count))
            count += 1
            if count % 100 == 0:
                log(f"step {count}, {100 * done:.1f}%: {shown(parts)}")


def shown(figures: dict[str, Any]) -> str:
    """ "mse 0.01234, kl 1.20000"."""
    return ", ".join(f"{name} {float(value):.5f}" for name, value in figures.items())
