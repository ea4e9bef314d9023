"""The fastest combination of mesh, rows and remat that fits: formulas first, then the compiler."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import Any, Literal

from mogao_jax.config.checks import check_without_files
from mogao_jax.config.schema import MeshConfig, MogaoConfig
from mogao_jax.errors import ConfigError, MogaoError
from mogao_jax.tools.plan import topology as topologies
from mogao_jax.tools.plan.plan import Plan, Subject, make_plan, subject
from mogao_jax.tools.plan.topology import Topology

Remat = Literal["none", "keep_matmuls", "keep_attention", "full"]
REMAT: tuple[Remat, ...] = ("none", "keep_matmuls", "keep_attention", "full")
ROWS = (1, 2, 4)  # per data x fsdp
ROOM = 0.85  # share of memory that estimates may fill
TRIES = 3  # compiled at most, for each that is to fit


def candidates(config: MogaoConfig, topology: Topology) -> Iterator[MogaoConfig]:
    """Configs of the same batch per step, as nearly as rows divide."""
    slices = topology.num_slices
    inside = topology.num_chips // slices
    wanted = config.train.global_batch_rows * config.train.grad_accum_steps
    for tensor in (1, 2, 4):
        for context in (1, 2, 4):
            rest, remainder = divmod(inside, tensor * context)
            if remainder or not rest or config.model.num_heads % tensor:
                continue
            for repeat in {1, 2, 4, 8} & {n for n in (1, 2, 4, 8) if rest % n == 0}:
                for rows in ROWS:
                    for remat in REMAT:
                        ways = slices * rest
                        batch_rows = rows * ways
                        if batch_rows > max(wanted, ways):
                            continue
                        yield dataclasses.replace(
                            config,
                            mesh=dataclasses.replace(
                                config.mesh,
                                **_weights(topology, repeat, rest, context),
                                tensor=tensor,
                                context=context,
                                num_slices=slices,
                            ),
                            train=dataclasses.replace(
                                config.train,
                                global_batch_rows=batch_rows,
                                grad_accum_steps=max(1, round(wanted / batch_rows)),
                            ),
                            model=dataclasses.replace(config.model, remat=remat),
                        )


def _weights(topology: Topology, repeat: int, rest: int, context: int) -> dict[str, Any]:
    """The data and fsdp axes of `rest` chips in each slice that repeat the weights so often.

    Where one slice of a TPU holds them once, the two axes lie along different axes of its torus.
    Where rows are split, weights are cut over those devices too.
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
) -> list[tuple[MogaoConfig, Plan]]:
    """What fits, fastest first; those that were compiled and fit stand before the others.

    Where there is a compiler, its word stands: what it finds too large is left out, and the next
    are compiled in its place, up to TRIES times as many as are wanted. If none of them fits, the
    first of the list is one that was not compiled; the list may then be empty.

    Args:
      compile_best: how many are to be compiled and fit.
    Raises:
      ConfigError: nothing fits by the formulas, or the config contradicts itself.
      EnvironmentProblem: there is no compiler, or it does not know the machine.
    """
    # Its own mesh is of no account, but what else is wrong would be so with every mesh.
    check_without_files(dataclasses.replace(config, mesh=MeshConfig()))
    known: Subject = subject(config, topology, say)
    found: list[tuple[MogaoConfig, Plan]] = []
    logger = logging.getLogger("mogao_jax.sharding.rules")
    level, logger_level = logging.ERROR, logger.level
    logger.setLevel(level)  # what a candidate keeps whole is said of the chosen ones alone
    try:
        tried = 0
        for candidate in candidates(config, topology):
            tried += 1
            try:
                plan = make_plan(candidate, topology, compile_it=False, known=known)
            except MogaoError:
                continue
            if plan.held <= ROOM * topology.chip.memory:
                found.append((candidate, plan))
    finally:
        logger.setLevel(logger_level)
    if not found:
        raise ConfigError(
            f"none of {tried} combinations of mesh, rows and remat fits {topology} by the "
            "formulas; shorten rows (config.packing) or take more chips."
        )
    # Of equals the simpler: fewer axes, then less recomputation.
    found.sort(
        key=lambda x: (
            -round(x[1].tokens_per_second, -2),
            sum(n > 1 for n in x[1].mesh.values()),
            REMAT.index(x[0].model.remat),
        )
    )
    say(f"{len(found)} of {tried} combinations fit by the formulas")
    if not topology.compiles or compile_best == 0:
        return found
    topologies.devices(topology)  # a compiler that is not there is no reason to try another mesh
    best: list[tuple[MogaoConfig, Plan]] = []
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


def as_table(found: list[tuple[MogaoConfig, Plan]], num: int = 10) -> str:
    """One line per combination."""
    lines = [
        f"{'data':>5} {'fsdp':>5} {'weights over':<13} {'tensor':>6} {'context':>7} "
        f"{'rows':>6} {'micro':>5} {'remat':<15} {'GiB':>6} {'tokens/s':>11} {'MFU':>6}  limited by"
    ]
    for config, plan in found[:num]:
        m = plan.mesh
        compiled = " (compiled)" if plan.compiled else ""
        lines.append(
            f"{m['data']:>5} {m['fsdp']:>5} {'+'.join(config.mesh.param_axes):<13} "
            f"{m['tensor']:>6} {m['context']:>7} "
            f"{config.train.global_batch_rows:>6} {config.train.grad_accum_steps:>5} "
            f"{config.model.remat:<15} {plan.held / 2**30:>6.1f} "
            f"{plan.tokens_per_second:>11,.0f} {plan.mfu:>6.1%}  {plan.roofline.limit}{compiled}"
        )
    return "\n".join(lines)
