"""From a packed batch to weighted sums of losses: encode, noise, run the model, compare.

Everything here is a pure function of the parameters, the frozen encoders' parameters, a batch
and a draw of noise.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mogao_jax import flow
from mogao_jax.losses import WeightedMean, flow_loss, weighted_mean
from mogao_jax.models.encoding import encode_batch, take_tokens
from mogao_jax.models.modules import EncoderParams, Modules
from mogao_jax.models.mogao import MogaoInputs, head_table, make_inputs
from mogao_jax.ops.cross_entropy import cross_entropy
from mogao_jax.sequence.batch import PackedBatch
from mogao_jax.training.noise import NoiseDraw


class Losses(NamedTuple):
    """Numerators and denominators over the global batch, and per-token values for metrics."""

    ntp: WeightedMean
    flow: WeightedMean
    ntp_per_token: jax.Array  # float32[B, U]
    flow_per_token: jax.Array  # float32[B, N]
    is_correct: jax.Array  # bool[B, U] the target is the likeliest token


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
