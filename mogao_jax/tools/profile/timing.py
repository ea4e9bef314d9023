"""Wall-clock times: of compiled programs, of the machine's matmuls, and of a step's parts.

The parts are jitted and timed each on its own. They need not add up to the step: XLA compiles each
for itself, and their inputs and outputs go through memory.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mogao_jax.assembly import Assembly
from mogao_jax.models.vae import encode_images
from mogao_jax.sequence.batch import PackedBatch
from mogao_jax.sharding.mesh import global_batch
from mogao_jax.training.state import TrainState
from mogao_jax.training.step import draw_noise, losses, model_inputs, total_loss, without_gradients

# Matmuls enqueued before waiting: an accelerator's queue then never runs dry.
IN_FLIGHT = {"cpu": 1}
IN_FLIGHT_DEFAULT = 10


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of several runs of one thing."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    @property
    def best(self) -> float:
        return min(self.seconds)


def time_calls(call: Callable[[], Any], repeats: int, warm_up: int = 1) -> Times:
    """Times `call`, waiting each time for the arrays that it returns.

    Args:
      call: takes nothing, returns a tree of arrays.
      repeats: how many times it is timed.
      warm_up: runs before that, which compile it.
    """
    for _ in range(warm_up):
        jax.block_until_ready(call())
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - began)
    return Times(tuple(seconds))


@dataclasses.dataclass(frozen=True)
class MatmulRate:
    """FLOP/s of [m, k] x [k, n] on every device at once, summed over devices; the best run."""

    shape: tuple[int, int, int]
    dtype: str
    flops_per_second: float


def matmul_rate(
    shape: tuple[int, int, int], dtype: str, mesh: jax.sharding.Mesh, repeats: int = 8
) -> MatmulRate:
    """Measures it.

    Args:
      shape: (m, k, n) of each device's own matmul.
      dtype: of inputs and output. Precision is jax's default, as in the training step.
      mesh: its devices all work at once, so that what they share (a CPU's cores, power) is
        shared as in the step.
    """
    m, k, n = shape
    spec = PartitionSpec(mesh.axis_names)
    sharding = NamedSharding(mesh, spec)
    num = mesh.devices.size

    def random(seed, rows, columns):
        def make():
            return jax.random.normal(jax.random.key(seed), (num, rows, columns), dtype)

        return jax.jit(make, out_shardings=sharding)()

    def local(x, y):
        return (x[0] @ y[0])[None]

    def product(x, y):
        return jax.shard_map(local, mesh=mesh, in_specs=(spec, spec), out_specs=spec)(x, y)

    x, y = random(0, m, k), random(1, k, n)
    program = jax.jit(product)
    calls = IN_FLIGHT.get(jax.default_backend(), IN_FLIGHT_DEFAULT)
    times = time_calls(lambda: [program(x, y) for _ in range(calls)], repeats, warm_up=2)
    return MatmulRate(shape, str(jnp.dtype(dtype)), 2.0 * m * k * n * num * calls / times.best)


def square_side(num_devices: int) -> int:
    """A side of square matmuls that is large for the backend and takes seconds at most."""
    if jax.default_backend() != "cpu":
        return 8192
    return 2048 if num_devices == 1 else 1024


def best(rates: Sequence[MatmulRate]) -> MatmulRate:
    return max(rates, key=lambda r: r.flops_per_second)


# ------------------------------------------------------------------------ parts of the step

REPEATS = 3


@dataclasses.dataclass(frozen=True)
class PartTime:
    """Best seconds per optimizer step of one part, and a remark."""

    name: str
    seconds: float
    remark: str = ""


def time_parts(assembly: Assembly, state: TrainState, batch: PackedBatch) -> list[PartTime]:
    """Times each part on the first micro-step of `batch`, times their number.

    Args:
      state: is given up: its buffers are reused by the optimizer's part.
      batch: host arrays [A, B, ...].
    """
    config, mesh, modules = assembly.config, assembly.mesh, assembly.modules
    encoders, transform = assembly.encoders, assembly.optimizer.transform
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
        return total_loss(result.ntp, result.flow, config.objective.ntp_weight)

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
