"""One optimizer step: draw noise, run the micro-steps, divide once, update.

Micro-steps are summed with the weight sums of the *whole* window as denominators, which are
known before the first forward pass because weights are data. So splitting a batch over devices
or over micro-steps changes nothing but memory (paper, section 3.3).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mogao_jax.config.schema import OptimizerConfig
from mogao_jax.losses import WeightedMean, global_sum
from mogao_jax.models.modules import EncoderParams, Modules
from mogao_jax.sequence.batch import PackedBatch
from mogao_jax.sharding.context import balanced
from mogao_jax.training.objective import (
    breakdown,
    draw_noise,
    losses,
    model_inputs,
    total_loss,
)
from mogao_jax.training.optimizer import frozen_mask
from mogao_jax.training.state import TrainState

Metrics = dict[str, WeightedMean]


def step_key(seed: int, step: jax.Array) -> jax.Array:
    """The key that all noise of a step derives from."""
    return jax.random.fold_in(jax.random.key(seed), step)


def loss_and_gradients(
    modules: Modules, params: Any, encoders: EncoderParams, batch: PackedBatch, key: jax.Array
) -> tuple[Metrics, Any]:
    """Loss sums and gradients of an optimizer window.

    Args:
      batch: leading axes [A, B, ...]: A micro-steps of B rows over the whole mesh.
      key: of the step; see `draw_noise`.
    Returns:
      metrics as weighted sums over the window, and the gradient of lambda L_NTP + L_flow.
    """
    config = modules.config
    ntp_denominator = global_sum(batch.und.loss_weights.swapaxes(0, 1))
    flow_denominator = global_sum(batch.noised.loss_weights.swapaxes(0, 1))

    def objective(params, micro):
        streams = ("und", "clean", "noised")
        micro = micro._replace(**{name: balanced(getattr(micro, name)) for name in streams})
        draw = draw_noise(key, micro.images, config)
        inputs, target = model_inputs(modules, encoders, micro, draw)
        trained = without_gradients(params, config.optimizer)
        result = losses(modules, trained, micro, inputs, target)
        loss = total_loss(
            result.ntp._replace(weight=ntp_denominator),
            result.flow._replace(weight=flow_denominator),
            config.objective.ntp_weight,
        )
        return loss, breakdown(modules, micro, draw, result)

    gradient = jax.grad(objective, has_aux=True)
    num_micro = batch.und.tokens.shape[0]
    if num_micro == 1:
        grads, metrics = gradient(params, jax.tree.map(lambda x: x[0], batch))
        return metrics, grads

    def accumulate(carry, micro):
        grads, metrics = gradient(params, micro)
        return jax.tree.map(jnp.add, carry, (grads, metrics)), None

    first = jax.tree.map(lambda x: x[0], batch)
    shapes = jax.eval_shape(gradient, params, first)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    (grads, metrics), _ = jax.lax.scan(accumulate, zeros, batch)
    return metrics, grads


def without_gradients(params: Any, config: OptimizerConfig) -> Any:
    """The same parameters, through which no gradient goes to the frozen ones."""
    if config.frozen == "nothing":
        return params
    mask = frozen_mask(params, config)
    return jax.tree.map(lambda p, m: jax.lax.stop_gradient(p) if m else p, params, mask)


def make_train_step(
    modules: Modules, transform: optax.GradientTransformationExtraArgs
) -> Callable[..., tuple[TrainState, Metrics]]:
    """The function to jit: (state, encoders, batch, learning_rate) -> (state, metrics).

    `batch` is [A, B, ...], `learning_rate` float32[]. Donate the state.
    """
    config = modules.config

    def train_step(state: TrainState, encoders: EncoderParams, batch: PackedBatch, learning_rate):
        key = step_key(config.seed, state.step)
        metrics, grads = loss_and_gradients(modules, state.params, encoders, batch, key)
        metrics["loss"] = _scalar(
            total_loss(metrics["ntp_loss"], metrics["flow_loss"], config.objective.ntp_weight)
        )
        metrics["grad_norm"] = _scalar(optax.global_norm(grads))
        state = state.apply_gradients(
            grads,
            transform,
            learning_rate=learning_rate,
            ema_decay=config.optimizer.ema_decay,
        )
        return state, metrics

    return train_step


def make_eval_step(modules: Modules) -> Callable[..., Metrics]:
    """The function to jit: (params, encoders, batch, uniforms) -> metrics, without gradients.

    `batch` is [B, ...], `uniforms` float32[B, I]: with the fixed key below, a batch meets the
    same timesteps and the same noise at every evaluation and for every model.
    """
    config = modules.config

    def eval_step(params, encoders: EncoderParams, batch: PackedBatch, uniforms: jax.Array):
        draw = draw_noise(jax.random.key(VALIDATION_SEED), batch.images, config, uniforms)
        inputs, target = model_inputs(modules, encoders, batch, draw)
        result = losses(modules, params, batch, inputs, target)
        return breakdown(modules, batch, draw, result)

    return eval_step


VALIDATION_SEED = 20250508  # any constant will do; it must not follow config.seed


def _scalar(x: jax.Array) -> WeightedMean:
    return WeightedMean(x, jnp.ones((), jnp.float32))
