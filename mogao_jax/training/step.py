"""One optimizer step: draw noise, run the micro-steps, divide once, update.

First from a packed batch to its losses: draw noise, encode, run the model, compare. These are pure
functions of a key, the parameters, the frozen encoders' parameters and a batch.

Then gradients. Micro-steps are summed with the weight sums of the *whole* window as denominators,
which are known before the first forward pass because weights are data. So splitting a batch over
devices or over micro-steps changes nothing but memory (paper, section 3.3).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mogao_jax import flow
from mogao_jax.config.geometry import LATENT_PATCH, LATENT_STRIDE, PIXELS_PER_TOKEN
from mogao_jax.config.schema import MogaoConfig, OptimizerConfig
from mogao_jax.losses import WeightedMean, flow_loss, global_sum, weighted_mean
from mogao_jax.models.encoding import encode_batch, take_tokens
from mogao_jax.models.modules import EncoderParams, Modules
from mogao_jax.models.mogao import MogaoInputs, head_table, make_inputs
from mogao_jax.ops.cross_entropy import cross_entropy
from mogao_jax.sequence.batch import ImageTable, PackedBatch, canvas
from mogao_jax.sharding.context import balanced
from mogao_jax.training.optimizer import frozen_mask
from mogao_jax.training.state import TrainState

Metrics = dict[str, WeightedMean]


# ------------------------------------------------------------- from a packed batch to its losses


class NoiseDraw(NamedTuple):
    """What is drawn for each image of the table; K noised copies of each."""

    timesteps: jax.Array  # float32[B, I, K]
    noise: jax.Array  # float32[B, I, K, tokens of the canvas, 64]
    posterior: jax.Array  # float32[B, I, Hc/8, Wc/8, 16] standard normal


class Losses(NamedTuple):
    """Numerators and denominators over the global batch, and per-token values for metrics."""

    ntp: WeightedMean
    flow: WeightedMean
    ntp_per_token: jax.Array  # float32[B, U]
    flow_per_token: jax.Array  # float32[B, N]
    is_correct: jax.Array  # bool[B, U] the target is the likeliest token


def draw_noise(
    key: jax.Array, images: ImageTable, config: MogaoConfig, uniforms: jax.Array | None = None
) -> NoiseDraw:
    """Draws for every image of a batch: timesteps, noise, the VAE's posterior sample.

    Each image's draws are keyed by (key, image uid) alone, so that a document has the same loss
    wherever, and with whomever, it is packed. The timesteps of an image's K noised copies
    (`layout.noised_copies`) are evenly spread over the distribution, from one uniform number: each
    alone is a draw from it, and together they cover it.

    Args:
      key: the step's key.
      images: the batch's image table [B, I].
      uniforms: float32[B, I] in (0, 1) to take instead of random ones. Validation gives an evenly
        spread set, for a flow loss of low variance.
    """
    height, width = (side // LATENT_STRIDE for side in canvas(images))
    channels, copies = config.vae.latent_channels, config.layout.noised_copies
    latents = (height, width, channels)
    tokens = ((height // LATENT_PATCH) * (width // LATENT_PATCH), channels * LATENT_PATCH**2)

    def draw_one(uid):
        u_key, noise_key, posterior_key = jax.random.split(jax.random.fold_in(key, uid), 3)
        u = jax.random.uniform(u_key, minval=1e-6, maxval=1.0)
        noise = jax.random.normal(noise_key, (copies, *tokens))
        return u, noise, jax.random.normal(posterior_key, latents)

    u, noise, posterior = jax.vmap(jax.vmap(draw_one))(images.uid)
    u = u if uniforms is None else uniforms
    u = jnp.mod(u[..., None] + jnp.arange(copies) / copies, 1.0)
    num_tokens = images.size[..., 0] * images.size[..., 1] // PIXELS_PER_TOKEN
    timesteps = flow.timesteps_from_uniforms(u, config.objective, num_tokens[..., None])
    return NoiseDraw(timesteps, noise, posterior)


def model_inputs(
    modules: Modules, encoders: EncoderParams, batch: PackedBatch, noise: NoiseDraw
) -> tuple[MogaoInputs, jax.Array]:
    """The transformer's inputs, and the velocities float32[B, N, 64] it is to predict."""
    latents, vit_features = encode_batch(modules, encoders, batch, noise.posterior)
    rows, num_images, copies = noise.timesteps.shape
    x = take_tokens(latents, batch.noised, num_images)
    draw = _draw_index(batch, copies)
    draws = noise.noise.reshape(rows, -1, latents.shape[-1])
    eps = take_tokens(draws, batch.noised._replace(image=draw), num_images * copies)
    timesteps = noise.timesteps.reshape(rows, -1)
    t = jnp.take_along_axis(timesteps, jnp.maximum(draw, 0), 1)
    inputs = make_inputs(
        batch,
        vit_features=vit_features,
        clean_latents=take_tokens(latents, batch.clean, num_images),
        noised_latents=flow.interpolate(x, eps, t),
        timesteps=timesteps,
        noised_index=draw,
    )
    return inputs, flow.velocity_target(x, eps)


def _draw_index(batch: PackedBatch, copies: int) -> jax.Array:
    """Which draw (image, copy) a noised token has: int32[B, N] into I * K, -1 for padding."""
    noised = batch.noised
    return jnp.where(noised.image >= 0, noised.image * copies + noised.copy, -1)


def losses(
    modules: Modules, params: Any, batch: PackedBatch, inputs: MogaoInputs, target: jax.Array
) -> Losses:
    """NTP and flow losses of a batch [B, ...] (equations 2 and 5), not yet divided.

    `inputs` and `target` are those of `model_inputs`.
    """
    outputs = modules.model.apply({"params": params}, inputs)
    ntp, is_correct = cross_entropy(
        outputs.und_hidden,
        head_table(params),
        batch.und.targets,
        batch.und.loss_weights,
        chunk=modules.config.model.cross_entropy_chunk,
    )
    per_token = flow_loss(outputs.velocity, target)
    return Losses(
        ntp=weighted_mean(ntp, batch.und.loss_weights),
        flow=weighted_mean(per_token, batch.noised.loss_weights),
        ntp_per_token=ntp,
        flow_per_token=per_token,
        is_correct=is_correct,
    )


def total_loss(ntp: WeightedMean, flow: WeightedMean, ntp_weight: float) -> jax.Array:
    """lambda * L_NTP + L_flow (equation 7); a modality that is absent adds nothing."""
    return ntp_weight * ntp.mean() + flow.mean()


def breakdown(
    modules: Modules, batch: PackedBatch, noise: NoiseDraw, result: Losses
) -> dict[str, WeightedMean]:
    """Metrics as weighted sums: totals, per source, per timestep bin, token accuracy.

    Vector metrics ("ntp_loss/source", ...) are spelled out by `training.metrics.labels`.
    """
    und, noised = batch.und, batch.noised
    image = jnp.maximum(noised.image, 0)
    flow_source = jnp.take_along_axis(batch.images.source, image, 1)
    timesteps = noise.timesteps.reshape(len(image), -1)
    draw = jnp.maximum(_draw_index(batch, noise.timesteps.shape[2]), 0)
    t = jnp.take_along_axis(timesteps, draw, 1)
    num_bins = modules.config.train.timestep_bins
    timestep_bin = jnp.clip((t * num_bins).astype(jnp.int32), 0, num_bins - 1)
    num_sources = len(modules.sources)
    return {
        "ntp_loss": result.ntp,
        "flow_loss": result.flow,
        "ntp_accuracy": _sums(result.is_correct, und.loss_weights),
        "ntp_loss/source": _sums(result.ntp_per_token, und.loss_weights, und.source, num_sources),
        "flow_loss/source": _sums(
            result.flow_per_token, noised.loss_weights, flow_source, num_sources
        ),
        "flow_loss/timestep": _sums(
            result.flow_per_token, noised.loss_weights, timestep_bin, num_bins
        ),
    }


def _sums(
    values: jax.Array, weights: jax.Array, group: jax.Array | None = None, num_groups: int = 0
) -> WeightedMean:
    """Weighted sums over all tokens, or float32[num_groups] of them by each token's group."""
    if group is None:
        return WeightedMean(jnp.sum(values * weights), jnp.sum(weights))
    is_in = (group[..., None] == jnp.arange(num_groups)).astype(jnp.float32)
    total = jnp.einsum("bl,blg->g", values * weights, is_in)
    return WeightedMean(total, jnp.einsum("bl,blg->g", weights, is_in))


# ------------------------------------------------------------------------ gradients and update


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
