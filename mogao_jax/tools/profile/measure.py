"""Measures the training step of a config on its own data: everything that `mogao profile` prints.

The step is the one that `mogao train` runs: jitted, on the config's mesh, its state donated.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mogao_jax.assembly import assemble, training_mesh
from mogao_jax.config.schema import MogaoConfig
from mogao_jax.data.pipeline import BATCHES_AHEAD, make_train_iterator
from mogao_jax.models.modules import count_parameters
from mogao_jax.process_memory import peak_bytes
from mogao_jax.sequence.batch import PackedBatch
from mogao_jax.sharding.mesh import global_batch
from mogao_jax.tokenizer import load_tokenizer
from mogao_jax.tools import flops
from mogao_jax.tools.profile import timing
from mogao_jax.tools.profile.timing import PartTime, time_parts
from mogao_jax.tools.profile.trace import OperationTimes, op_names, operation_times, record
from mogao_jax.training.state import num_bytes

NUM_BATCHES = 4  # different batches that the steps go through in turn
TRACED_STEPS = 2


@dataclasses.dataclass(frozen=True)
class Profile:
    """All that was measured. Times in seconds, memory in bytes, rates per second.

    Attributes:
      work: of a step, mean over the batches used.
      matmul: the rates measured on this machine, by name; the best one is the yardstick.
      model_flops, encoder_flops: per step, by part.
      parts: sub-programs, timed on their own.
      operations: from a trace of the step; None where there is none, for the reason given.
    """

    name: str
    mesh: dict[str, int]
    parameters: dict[str, int]
    state_bytes: int
    work: flops.TokenCounts
    step: timing.Times
    compile_seconds: float
    memory: dict[str, float]
    matmul: dict[str, timing.MatmulRate]
    model_flops: dict[str, float]
    encoder_flops: dict[str, float]
    parts: list[PartTime]
    operations: OperationTimes | None
    traced_step: float
    no_trace: str = ""

    @property
    def matmul_rate(self) -> float:
        """FLOP/s of the best matmul."""
        return timing.best(list(self.matmul.values())).flops_per_second

    @property
    def model_rate(self) -> float:
        """Model FLOP/s at the median step."""
        return flops.total(self.model_flops) / self.step.median

    @property
    def share(self) -> float:
        """Of the measured matmul rate that the model's own FLOPs reach."""
        return self.model_rate / self.matmul_rate

    @property
    def share_at_best(self) -> float:
        """The same at the best step: fairer where others use the machine, as rates are bests."""
        return self.share * self.step.median / self.step.best

    @property
    def share_with_encoders(self) -> float:
        """The same, with the frozen encoders' forward FLOPs."""
        encoders = flops.total(self.encoder_flops) / self.step.median
        return (self.model_rate + encoders) / self.matmul_rate


def measure(
    config: MogaoConfig, num_steps: int, say: Callable[[str], None] = lambda _: None
) -> Profile:
    """Builds the step, runs and takes it apart.

    Args:
      num_steps: steps that are timed, after one that is not.
      say: told what is being done.
    Raises:
      MogaoError: as `mogao train` would (encoders, data, mesh, rows).
    """
    tokenizer = load_tokenizer(config.tokenizer)
    mesh = training_mesh(config)
    assembly = assemble(config, tokenizer.vocab_size, mesh)
    modules, encoders = assembly.modules, assembly.encoders

    say("making batches")
    batches, batch_time = _batches(config, tokenizer)
    work = flops.mean_work([flops.count_work(b, config) for b in batches])

    with assembly.on_mesh():
        say("measuring the machine's matmuls")
        matmul = _matmul_rates(config, mesh)

        say("compiling the training step")
        state = assembly.init_state()
        rate = jnp.asarray(config.optimizer.learning_rate, jnp.float32)
        put = functools.partial(global_batch, mesh, batch_axis=1)
        on_device = itertools.cycle([put(b) for b in batches])
        began = time.perf_counter()
        compiled = assembly.train_step.lower(state, encoders, next(on_device), rate).compile()
        compile_seconds = time.perf_counter() - began

        say(f"timing {num_steps} steps")

        def run_step():
            nonlocal state
            state, metrics = compiled(state, encoders, next(on_device), rate)
            return state, metrics

        times = timing.time_calls(run_step, num_steps)
        use = _memory(compiled)

        say(f"tracing {TRACED_STEPS} steps")
        operations, traced_step, no_trace = _trace(run_step, compiled)

        say("timing the step's parts")
        parts = [
            PartTime("making a batch on the host", batch_time, "in threads, beside the step"),
            *time_parts(assembly, state, batches[0]),
        ]
    head = config.model.vocab_size or tokenizer.vocab_size
    encoder = [flops.encoder_flops(modules, encoders, b) for b in batches]
    return Profile(
        name=config.name,
        mesh={a: n for a, n in mesh.shape.items()},
        parameters=count_parameters(assembly.state.params),
        state_bytes=num_bytes(assembly.state),
        work=work,
        step=times,
        compile_seconds=compile_seconds,
        memory=use,
        matmul=matmul,
        model_flops=flops.model_flops(config, head, work),
        encoder_flops={k: float(np.mean([e[k] for e in encoder])) for k in encoder[0]},
        parts=parts,
        operations=operations,
        traced_step=traced_step,
        no_trace=no_trace,
    )


def _batches(config: MogaoConfig, tokenizer: Any) -> tuple[list[PackedBatch], float]:
    """Batches of the config's pipeline, and the seconds that one takes once none is ready."""
    data = make_train_iterator(config, tokenizer=tokenizer)
    try:
        for _ in range(BATCHES_AHEAD + 1):  # the ones that were made ahead
            next(data)
        began = time.perf_counter()
        batches = [next(data) for _ in range(NUM_BATCHES)]
        return batches, (time.perf_counter() - began) / NUM_BATCHES
    finally:
        data.close()


def _matmul_rates(config: MogaoConfig, mesh: jax.sharding.Mesh) -> dict[str, timing.MatmulRate]:
    model, packing = config.model, config.packing
    side = timing.square_side(mesh.devices.size)
    rows = max(1, config.train.global_batch_rows // (mesh.shape["data"] * mesh.shape["fsdp"]))
    measured = {"large and square": timing.matmul_rate((side,) * 3, model.dtype, mesh)}
    streams = {"und": packing.und_tokens, "gen": packing.clean_tokens + packing.noised_tokens}
    for name, tokens in streams.items():
        shape = (rows * tokens, model.embed_dim, model.mlp_dim)
        measured[f"the {name} branch's FFN"] = timing.matmul_rate(shape, model.dtype, mesh)
    return measured


def _trace(run_step: Callable[[], Any], compiled: Any) -> tuple[OperationTimes | None, float, str]:
    """(times by operation, seconds of a traced step, why there are none)."""
    seconds: list[float] = []

    def run():
        for _ in range(TRACED_STEPS):
            began = time.perf_counter()
            jax.block_until_ready(run_step())
            seconds.append(time.perf_counter() - began)

    try:
        events = record(run)
    except (RuntimeError, OSError, ValueError) as e:
        return None, 0.0, f"the profiler cannot trace here ({e})"
    operations = operation_times(events, op_names(compiled.as_text()), TRACED_STEPS)
    why = "" if operations else "the trace names no instruction of the step on this platform"
    return operations, float(np.mean(seconds)), why


def _memory(compiled: Any) -> dict[str, float]:
    """Bytes, by what they are; what the platform does not tell is left out.

    Args:
      compiled: the compiled training step.
    """
    use = {"process peak": float(peak_bytes())}
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        use["device peak"] = float(stats["peak_bytes_in_use"])
    analysis = compiled.memory_analysis()
    for name, field in (
        ("step arguments", "argument_size_in_bytes"),
        ("step temporaries", "temp_size_in_bytes"),
    ):
        value = getattr(analysis, field, None)
        if value is not None:
            use[name] = float(value)
    return use
