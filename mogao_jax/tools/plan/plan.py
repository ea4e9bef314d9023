"""A config on a machine you do not have: memory, arithmetic, communication, time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from mogao_jax.assembly import assemble
from mogao_jax.config.checks import check_on_mesh, check_without_files
from mogao_jax.config.schema import MogaoConfig
from mogao_jax.errors import ConfigError, EnvironmentProblem
from mogao_jax.models.encoder_weights import vae_template
from mogao_jax.models.modules import Modules, count_parameters, make_modules
from mogao_jax.sharding.mesh import check_rows, make_mesh, replicated
from mogao_jax.tokenizer import load_tokenizer
from mogao_jax.tools import flops
from mogao_jax.tools.plan import memory
from mogao_jax.tools.plan import topology as topologies
from mogao_jax.tools.plan.collectives import Collective, collectives, traffic
from mogao_jax.tools.plan.diagnostics import flags, out_of_memory
from mogao_jax.tools.plan.mixture import Rows, packed_rows
from mogao_jax.tools.plan.roofline import Roofline, by_link, roofline, sent_by_formula
from mogao_jax.tools.plan.topology import Topology
from mogao_jax.tools.profile import executed

SAMPLE_ROWS = 4  # packed rows on which the work of a step is measured


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The compiler's figures of a program. Bytes per chip.

    `peak` must fit; arguments live throughout (donated ones are reused for the outputs).
    """

    seconds: float
    peak: float
    arguments: float
    temporaries: float
    outputs: float
    aliased: float
    program: float

    @classmethod
    def of(cls, lowered: Any) -> tuple[Compiled, Any]:
        """Compiles; the figures, and the program."""
        began = time.perf_counter()
        program = lowered.compile()
        seconds = time.perf_counter() - began
        m = program.memory_analysis()
        sizes = (
            m.peak_memory_in_bytes,
            m.argument_size_in_bytes,
            m.temp_size_in_bytes,
            m.output_size_in_bytes,
            m.alias_size_in_bytes,
            m.generated_code_size_in_bytes,
        )
        return cls(seconds, *map(float, sizes)), program


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that `mogao plan` prints. Bytes, FLOPs and seconds per step; bytes per chip.

    Attributes:
      mesh: devices per axis.
      parameters: number by part.
      work: useful work of a step, of `rows_per_step` rows like those measured (`origin`).
      estimated: memory by formulas.
      compiled: memory by the compiler; None where there is none for the machine.
      model_flops: useful FLOPs, by part.
      executed_flops: model_flops, then what is executed beside them.
      encoders: forward FLOPs of the encoders, useful and executed.
      sent: rows of (what, axes, runs, bytes of results, bytes sent), per step.
      flags: what is wrong, and the remedy.
    """

    name: str
    topology: Topology
    mesh: dict[str, int]
    attention: str
    remat: str
    parameters: dict[str, int]
    rows_per_step: int
    grad_accum_steps: int
    tokens_per_chip: float
    origin: str
    work: flops.TokenCounts
    state: dict[str, float]
    estimated: dict[str, float]
    compiled: Compiled | None
    model_flops: dict[str, float]
    executed_flops: dict[str, float]
    encoders: dict[str, dict[str, float]]
    sent: list[tuple[str, str, float, float, float]]
    roofline: Roofline
    flags: list[str]

    @property
    def held(self) -> float:
        """Bytes per chip at the peak: the compiler's figure, else the estimate."""
        return self.compiled.peak if self.compiled else sum(self.estimated.values())

    @property
    def tokens_per_second(self) -> float:
        """Real tokens, all chips."""
        return self.work.tokens / self.roofline.step

    @property
    def mfu(self) -> float:
        """Useful FLOPs of the model over the machine's peak."""
        peak = self.topology.chip.flops * self.topology.num_chips
        return flops.total(self.model_flops) / self.roofline.step / peak

    def days(self, tokens: float) -> float:
        """Days of training on so many real tokens, without stops."""
        return tokens / self.tokens_per_second / 86400

    def chip_hours(self, tokens: float) -> float:
        return self.days(tokens) * 24 * self.topology.num_chips


@dataclasses.dataclass(frozen=True)
class Workload:
    """What does not depend on mesh, batch and remat, so that a search makes it once."""

    vocab_size: int
    modules: Modules
    boxed: Any
    rows: Rows
    row_work: flops.TokenCounts  # of SAMPLE_ROWS rows
    encoders: dict[str, dict[str, float]]  # FLOPs for as many

    def of_rows(self, num_rows: int) -> tuple[flops.TokenCounts, dict[str, dict[str, float]]]:
        """The work and the encoders' FLOPs of so many rows."""
        factor = num_rows / SAMPLE_ROWS
        encoders = {
            name: {kind: factor * n for kind, n in e.items()} for name, e in self.encoders.items()
        }
        return executed.scaled(self.row_work, factor), encoders


def make_workload(
    config: MogaoConfig, topology: Topology, say: Callable[[str], None] = lambda _: None
) -> Workload:
    """Needs no weights, data or tokenizer.

    Raises:
      ConfigError: neither the config nor a tokenizer gives the size of the vocabulary.
    """
    size = vocab_size(config)
    modules = make_modules(config, size, topology.chip.platform)
    say("laying out and packing rows")
    rows = packed_rows(config, SAMPLE_ROWS)
    work = flops.count_work(rows.batch, config, topology.chip.platform)
    encoders: dict[str, dict[str, float]] = {}
    if not config.data.encoded:  # else they do not run
        vae = vae_template(config.vae)
        encoders = executed.encoder_work(config, modules.vae, vae, rows.batch, 1.0)
    return Workload(size, modules, memory.state_shapes(config, modules), rows, work, encoders)


def vocab_size(config: MogaoConfig) -> int:
    """Rows of the embedding: the config's, else the tokenizer's."""
    if config.model.vocab_size:
        return config.model.vocab_size
    try:
        return load_tokenizer(config.tokenizer).vocab_size
    except ConfigError as e:
        raise ConfigError(
            f"config.model.vocab_size is 0 (as many as the tokenizer has), and the tokenizer is "
            f"not here ({e}) Set --config.model.vocab_size (151936 with Qwen2.5's)."
        ) from None


def check(config: MogaoConfig, topology: Topology) -> AbstractMesh:
    """Refuses what would fail after compiling; returns the mesh.

    Raises:
      ConfigError, EnvironmentProblem: with the nearest choice that works.
    """
    mesh = memory.abstract_mesh(config.mesh, topology.num_chips)
    slices = config.mesh.num_slices
    if mesh.shape["data"] % slices or (topology.compiles and slices != topology.num_slices):
        raise ConfigError(
            f"config.mesh.num_slices is {slices} and mesh.data {mesh.shape['data']}, but the "
            f"machine has {topology.num_slices} slice(s); set --num-slices {slices}, or "
            f"--config.mesh.num_slices={topology.num_slices} and mesh.data to a multiple of it."
        )
    check_rows(mesh, config.train.global_batch_rows)  # type: ignore[arg-type]
    check_on_mesh(config, mesh.shape)
    check_without_files(config)  # what training would refuse is not planned
    return mesh


def make_plan(
    config: MogaoConfig,
    topology: Topology,
    *,
    compile_it: bool = True,
    known: Workload | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Plan:
    """The plan of a config's training step.

    Args:
      compile_it: ask the machine's compiler, where there is one.
      known: of `make_workload`, if it was made before.
      say: told what is being done.
    Raises:
      MogaoError: see `check`; or the state alone is over a chip's memory.
    """
    mesh = check(config, topology)
    compile_it = compile_it and topology.compiles
    if compile_it:
        topologies.check_compiler()  # before anything that takes time
    known = known or make_workload(config, topology, say)
    state = memory.state_bytes(known.boxed, mesh, config.mesh.param_axes)
    held = {k: float(v) for k, v in state.items()}
    estimated = memory.estimate(config, known.boxed, mesh, known.vocab_size)
    always = {k: estimated[k] for k in (*held, "frozen encoders", "batch")}
    memory.check_fits_at_all(always, topology.chip.memory, topology.name, topology.num_chips)
    compiled: Compiled | None = None
    found: list[Collective] = []
    problems: list[str] = []
    if compile_it:
        compiled, found, problems = _compile(config, known, topology, say)

    rows = config.train.global_batch_rows * config.train.grad_accum_steps
    work, encoders = known.of_rows(rows)
    run = executed.executed_flops(config, known.vocab_size, work, rows)
    shape = dict(mesh.shape)
    sent = _sent(config, shape, known.vocab_size, found)
    attention = known.modules.model.config.attention
    return Plan(
        name=config.name,
        topology=topology,
        mesh=shape,
        attention=f"{attention.implementation}, blocks of {attention.block_q} x "
        f"{attention.block_kv}",
        remat=config.model.remat,
        parameters=count_parameters(known.boxed.params),
        rows_per_step=rows,
        grad_accum_steps=config.train.grad_accum_steps,
        tokens_per_chip=memory.tokens_per_chip(config, mesh),
        origin=known.rows.origin,
        work=work,
        state=held,
        estimated=estimated,
        compiled=compiled,
        model_flops=flops.model_flops(config, known.vocab_size, work),
        executed_flops=run,
        encoders=encoders,
        sent=sent,
        roofline=roofline(
            config,
            topology,
            run,
            sum(e["executed"] for e in encoders.values()),
            by_link([(tuple(axes.split("+")), n) for _, axes, _, _, n in sent], topology, shape),
            sum(held.values()),
            shape["tensor"],
        ),
        flags=problems
        + flags(
            config,
            mesh,
            known.boxed,
            memory.encoder_bytes(config),
            compiled.peak if compiled else sum(estimated.values()),
            topology.chip.memory,
            found,
            topology.two_axes,
        ),
    )


def _sent(
    config: MogaoConfig, shape: dict[str, int], vocab_size: int, found: list[Collective]
) -> list[tuple[str, str, float, float, float]]:
    """`Plan.sent`: of the program's collectives, else by formulas."""
    if found:
        return [
            (kind, axes, row["runs"], row["bytes"], row["sent"])
            for (kind, axes), row in traffic(found).items()
        ]
    by_axes = sent_by_formula(config, shape, vocab_size)
    return [(row["what"], axes, 0.0, 0.0, row["sent"]) for axes, row in by_axes.items()]


def _compile(
    config: MogaoConfig, known: Workload, topology: Topology, say: Callable[[str], None]
) -> tuple[Compiled | None, list[Collective], list[str]]:
    """(the compiler's figures, the program's collectives, flags: why there are none)."""
    mesh = make_mesh(config.mesh, topologies.devices(topology))
    say("tracing the step")
    lowered = lower_step(config, known.vocab_size, mesh)
    say(f"compiling it for {topology} (some minutes for a large model)")
    try:
        compiled, program = Compiled.of(lowered)
    except Exception as e:  # noqa: BLE001  (whatever the compiler raises)
        if "RESOURCE_EXHAUSTED" not in str(e):
            raise EnvironmentProblem(
                f"the compiler refuses the step for {topology}: {str(e).strip()[:600]}"
            ) from e
        return None, [], [out_of_memory(config, str(e))]
    return compiled, collectives(program.as_text(), dict(mesh.shape)), []


def lower_step(config: MogaoConfig, vocab_size: int, mesh: Mesh) -> Any:
    """The train step of `mogao train`, lowered for devices that are only described."""
    assembly = assemble(config, vocab_size, mesh, load_weights=False)
    batch = memory.abstract_batch(config, mesh)
    rate = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated(mesh))
    with assembly.on_mesh():
        return assembly.train_step.lower(assembly.state, assembly.encoders, batch, rate)
