"""The fastest combination of mesh, rows and remat that fits: formulas first, then the compiler."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterator
from typing import Any, Literal

from mogao_jax.config.checks import check_without_files
from mogao_jax.config.schema import MeshConfig, MogaoConfig
from mogao_jax.errors import ConfigError, MogaoError
from mogao_jax.tools.plan import topology as topologies
from mogao_jax.tools.plan.plan import Plan, Workload, make_plan, make_workload
from mogao_jax.tools.plan.topology import Topology

Remat = Literal["none", "keep_matmuls", "keep_attention", "full"]
REMAT: tuple[Remat, ...] = ("none", "keep_matmuls", "keep_attention", "full")
ROWS = (1, 2, 4)  # per data x fsdp
ROOM = 0.85  # share of memory that estimates may fill
TRIES = 3  # compiled at most, for each that is to fit

Found = list[tuple[MogaoConfig, Plan]]


def candidates(config: MogaoConfig, topology: Topology) -> Iterator[MogaoConfig]:
    """Configs of the same batch per step, as nearly as rows divide."""
    slices = topology.num_slices
    inside = topology.num_chips // slices
    wanted = config.train.global_batch_rows * config.train.grad_accum_steps
    sizes = itertools.product((1, 2, 4), (1, 2, 4), (1, 2, 4, 8), ROWS, REMAT)
    for tensor, context, repeat, rows, remat in sizes:
        rest, remainder = divmod(inside, tensor * context)
        if remainder or not rest or rest % repeat or config.model.num_heads % tensor:
            continue
        batch_rows = rows * slices * rest
        if batch_rows > max(wanted, slices * rest):
            continue
        mesh = dataclasses.replace(
            config.mesh,
            **_weights(topology, repeat, rest, context),
            tensor=tensor,
            context=context,
            num_slices=slices,
        )
        steps = max(1, round(wanted / batch_rows))
        train = dataclasses.replace(
            config.train, global_batch_rows=batch_rows, grad_accum_steps=steps
        )
        model = dataclasses.replace(config.model, remat=remat)
        yield dataclasses.replace(config, mesh=mesh, train=train, model=model)


def _weights(topology: Topology, repeat: int, rest: int, context: int) -> dict[str, Any]:
    """The data and fsdp axes of `rest` chips in each slice that hold `repeat` copies of weights.

    Where one slice of a TPU holds them once, the two axes lie along different axes of its torus.
    Where rows are split over context, weights are sharded over it too.
    """
    if topology.two_axes and topology.num_slices == repeat == 1 and rest == topology.num_chips:
        data, fsdp = topology.two_axes
        return {"data": data, "fsdp": fsdp, "param_axes": ("fsdp", "data")}
    axes = ("fsdp", "context") if context > 1 else ("fsdp",)
    return {"data": topology.num_slices * repeat, "fsdp": rest // repeat, "param_axes": axes}


def search(
    config: MogaoConfig,
    topology: Topology,
    *,
    compile_best: int = 2,
    say: Callable[[str], None] = lambda _: None,
) -> Found:
    """What fits, fastest first; those that were compiled and fit stand before the others.

    Where there is a compiler, it decides: what it finds too large is left out, and the next are
    compiled in its place, up to TRIES times as many as are wanted. If none of them fits, the first
    of the list is one that was not compiled; the list may then be empty.

    Args:
      compile_best: how many are to be compiled and fit.
    Raises:
      ConfigError: nothing fits by the formulas, or the config contradicts itself.
      EnvironmentProblem: there is no compiler, or it does not know the machine.
    """
    # Check everything but the mesh, which the search replaces.
    check_without_files(dataclasses.replace(config, mesh=MeshConfig()))
    known = make_workload(config, topology, say)
    found = _by_formulas(config, topology, known, say)
    if not topology.compiles or compile_best == 0:
        return found
    topologies.devices(topology)  # raises if there is no compiler, which no other mesh would mend
    best: Found = []
    compiled = 0
    for candidate, _ in found[: TRIES * compile_best]:
        if len(best) == compile_best:
            break
        compiled += 1
        try:
            plan = make_plan(candidate, topology, known=known, say=say)
        except MogaoError as e:  # a mesh that the torus does not have, for instance
            say(f"left out: {e}")
            continue
        if plan.compiled and plan.held <= topology.chip.memory:
            best.append((candidate, plan))
        else:
            say(f"left out: {next(iter(plan.flags), 'it does not fit')}")
    best.sort(key=lambda x: -x[1].tokens_per_second)
    return best + found[compiled:]


def _by_formulas(
    config: MogaoConfig, topology: Topology, known: Workload, say: Callable[[str], None]
) -> Found:
    """Candidates that fit by the formulas, fastest first."""
    found: Found = []
    tried = 0
    with _without_warnings("mogao_jax.sharding.rules"):  # they are given for the chosen ones alone
        for candidate in candidates(config, topology):
            tried += 1
            with contextlib.suppress(MogaoError):
                plan = make_plan(candidate, topology, compile_it=False, known=known)
                if plan.held <= ROOM * topology.chip.memory:
                    found.append((candidate, plan))
    if not found:
        raise ConfigError(
            f"none of {tried} combinations of mesh, rows and remat fits {topology} by the "
            "formulas; shorten rows (config.packing) or take more chips."
        )
    say(f"{len(found)} of {tried} combinations fit by the formulas")
    # Ties: fewer axes, then less recomputation.
    return sorted(
        found,
        key=lambda x: (
            -round(x[1].tokens_per_second, -2),
            sum(n > 1 for n in x[1].mesh.values()),
            REMAT.index(x[0].model.remat),
        ),
    )


@contextlib.contextmanager
def _without_warnings(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def as_flags(config: MogaoConfig) -> str:
    """What a candidate changes in the config, as flags of the command line."""
    sections = {
        "mesh": ("data", "fsdp", "param_axes", "tensor", "context", "num_slices"),
        "train": ("global_batch_rows", "grad_accum_steps"),
        "model": ("remat",),
    }
    flags = []
    for section, fields in sections.items():
        for field in fields:
            value = getattr(getattr(config, section), field)
            text = ",".join(value) if isinstance(value, tuple) else value
            flags.append(f"--config.{section}.{field}={text}")
    return " ".join(flags)


def as_table(found: Found, num: int = 10) -> str:
    """One line per combination."""
    lines = [
        f"{'data':>5} {'fsdp':>5} {'weights over':<13} {'tensor':>6} {'context':>7} "
        f"{'rows':>6} {'micro':>5} {'remat':<15} {'GiB':>6} {'tokens/s':>11} {'MFU':>6}  limited by"
    ]
    for config, plan in found[:num]:
        m, train, axes = plan.mesh, config.train, "+".join(config.mesh.param_axes)
        compiled = " (compiled)" if plan.compiled else ""
        lines.append(
            f"{m['data']:>5} {m['fsdp']:>5} {axes:<13} {m['tensor']:>6} {m['context']:>7} "
            f"{train.global_batch_rows:>6} {train.grad_accum_steps:>5} {config.model.remat:<15} "
            f"{plan.held / 2**30:>6.1f} {plan.tokens_per_second:>11,.0f} {plan.mfu:>6.1%}  "
            f"{plan.roofline.limit}{compiled}"
        )
    return "\n".join(lines)
