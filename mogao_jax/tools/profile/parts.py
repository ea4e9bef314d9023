"""Parts of the training step, jitted and timed each on its own.

They need not add up to the step: XLA compiles each part for itself, and their inputs and outputs
go through memory.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax

from mogao_jax.models.modules import EncoderParams, Modules
from mogao_jax.models.vae import encode_images
from mogao_jax.sequence.batch import PackedBatch
from mogao_jax.sharding.mesh import global_batch
from mogao_jax.tools.profile.timing import time_calls
from mogao_jax.training.objective import draw_noise, losses, model_inputs
from mogao_jax.training.optimizer import without_gradients
from mogao_jax.training.state import TrainState

REPEATS = 3


@dataclasses.dataclass(frozen=True)
class PartTime:
    """Best seconds per optimizer step of one part, and a remark."""

    name: str
    seconds: float
    remark: str = ""


def time_parts(
    modules: Modules,
    encoders: EncoderParams,
    state: TrainState,
    batch: PackedBatch,
    mesh: jax.sharding.Mesh,
    transform: optax.GradientTransformationExtraArgs,
) -> list[PartTime]:
    """Times each part on the first micro-step of `batch`, times their number.

    Args:
      state: is given up: its buffers are reused by the optimizer's part.
      batch: host arrays [A, B, ...].
    """
    config = modules.config
    num_micro = batch.und.tokens.shape[0]
    times = []

    def add(name, call, remark="", each=num_micro):
        times.append(PartTime(name, time_calls(call, REPEATS).best * each, remark))

    add("host to device", lambda: global_batch(mesh, batch, batch_axis=1), each=1)
    micro = global_batch(mesh, jax.tree.map(lambda x: x[0], batch))
    key, params = jax.random.key(0), state.params

    draw = jax.jit(lambda m: draw_noise(key, m.images, config))
    add("drawing noise and timesteps", lambda: draw(micro))
    noise = draw(micro)

    posterior = noise.posterior if config.vae.sample_posterior else None
    vae = jax.jit(lambda p, m, n: encode_images(modules.vae, p, m.images.pixels, m.images.size, n))
    if micro.images.moments is None:
        add("VAE, encoding", lambda: vae(encoders.vae, micro, posterior), "frozen")
    if modules.vit is not None and micro.vit.features is None:
        tower = modules.vit
        vit = jax.jit(lambda p, m: tower.apply({"params": p}, *m.vit[:3]))
        add("ViT, encoding", lambda: vit(encoders.vit, micro), "frozen")

    inputs, target = jax.jit(lambda e, m, n: model_inputs(modules, e, m, n))(encoders, micro, noise)

    def loss(params, micro, inputs, target):
        trained = without_gradients(params, config.optimizer)
        result = losses(modules, trained, micro, inputs, target)
        return config.objective.ntp_weight * result.ntp.mean() + result.flow.mean()

    forward = jax.jit(loss)
    add("model, forward", lambda: forward(params, micro, inputs, target), "losses included")
    backward = jax.jit(jax.grad(loss))
    add("model, forward and backward", lambda: backward(params, micro, inputs, target))
    gradients = backward(params, micro, inputs, target)

    rate = jnp.zeros((), jnp.float32)
    decay = config.optimizer.ema_decay
    update = jax.jit(
        lambda s, g: s.apply_gradients(g, transform, learning_rate=rate, ema_decay=decay),
        donate_argnums=0,
    )

    def run_update():
        nonlocal state
        state = update(state, gradients)
        return state

    add("optimizer and EMA", run_update, "once per step", each=1)
    return times
