"""Wall-clock timing of compiled programs, and the machine's own rate of matmuls."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

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
