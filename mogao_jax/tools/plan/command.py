"""`mogao plan --config=configs/X.py --topology v5p:4x4x4`: what a run costs, before paying for it.

Compiles the real training step for a machine that is not at hand and reports memory, arithmetic,
communication and an estimate of the time. Needs no weights, no data and no tokenizer.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import sys
from typing import Any

from mogao_jax.console.parser import Parser
from mogao_jax.console.writing import write_text
from mogao_jax.errors import RequestError

_EXAMPLES = """examples:
  mogao plan --config=configs/mogao_7b_stage3.py:v5p-64 --topology v5p:4x4x4
  mogao plan --config=configs/mogao_7b_stage3.py:v5p-64 --topology v5p:4x4x4 --search
  mogao plan --config=configs/mogao_7b_stage3.py:v5p-64 --topology v5p:4x4x4 --num-slices 2
  mogao plan --config=configs/mogao_7b_stage3.py:8xH100 --topology 8xH100 --tokens 1e11
  mogao plan --config=configs/mogao_7b_stage3.py --topology 1xH200 --what sample
"""


def main(argv: list[str]) -> int:
    """Parses the command line and runs; returns the exit status (1: the step does not fit)."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing is run; a TPU's compiler is asked
    from mogao_jax.config.convert import parse_config_args

    config, rest = parse_config_args(argv, checked=False)
    arguments = _parser().parse_args(rest)
    if not arguments.tokens > 0:
        raise RequestError(f"--tokens is {arguments.tokens}; it must be above 0.")
    if arguments.num_slices < 1:
        raise RequestError(f"--num-slices is {arguments.num_slices}; it must be 1 or more.")
    if arguments.pictures < 1:
        raise RequestError(f"--pictures is {arguments.pictures}; it must be 1 or more.")
    if arguments.compile < 0:
        raise RequestError(
            f"--compile is {arguments.compile}; it must be 0 (formulas alone) or more."
        )
    if arguments.search and arguments.what == "sample":
        raise RequestError("--search is for --what train: the sampler runs on one chip.")
    if arguments.json is not None:
        write_text(arguments.json, "", mode="a")  # tried before time is spent

    from mogao_jax.console.logs import configure_logging
    from mogao_jax.tools.plan import topology as topologies

    configure_logging()
    topology = topologies.parse(arguments.topology, arguments.num_slices)
    if arguments.what == "sample":
        return _sample(config, topology, arguments)
    if arguments.num_slices > 1 and config.mesh.num_slices == 1:
        config = _over_slices(config, topology, keep_mesh=arguments.search)
    return _search(config, topology, arguments) if arguments.search else _plan(
        config, topology, arguments
    )  # fmt: skip


def _over_slices(config: Any, topology: Any, keep_mesh: bool) -> Any:
    """The recipe of one slice on several: each takes a whole batch, as its data parallelism.

    Weights that one slice cuts over data and fsdp are cut over as many devices of fsdp instead:
    the data axis now goes over the network, which no layer's weights should cross.

    Args:
      keep_mesh: leave the mesh as it is (a search makes its own).
    """
    from mogao_jax.tools.plan.memory import abstract_mesh

    slices = topology.num_slices
    train = dataclasses.replace(
        config.train, global_batch_rows=config.train.global_batch_rows * slices
    )
    config = dataclasses.replace(config, train=train)
    if keep_mesh:
        return config
    sizes = dict(abstract_mesh(config.mesh, topology.num_chips // slices).shape)
    param_axes = config.mesh.param_axes
    if "data" in param_axes:
        sizes["data"], sizes["fsdp"], param_axes = 1, sizes["data"] * sizes["fsdp"], ("fsdp",)
    sizes["data"] *= slices
    mesh = dataclasses.replace(config.mesh, **sizes, param_axes=param_axes, num_slices=slices)
    return dataclasses.replace(config, mesh=mesh)


def _plan(config: Any, topology: Any, arguments: argparse.Namespace) -> int:
    from mogao_jax.tools.plan.plan import make_plan
    from mogao_jax.tools.plan.printing import as_json, as_text

    plan = make_plan(config, topology, compile_it=not arguments.no_compile, say=_say)
    print(as_text(plan, arguments.tokens))
    if arguments.json is not None:
        write_text(arguments.json, json.dumps(as_json(plan, arguments.tokens), indent=2) + "\n")
    return 0 if plan.held <= topology.chip.memory and _fits(plan) else 1


def _sample(config: Any, topology: Any, arguments: argparse.Namespace) -> int:
    from mogao_jax.tools.plan import sampling

    plan = sampling.make_sampling_plan(
        config,
        topology,
        pictures=arguments.pictures,
        compile_it=not arguments.no_compile,
        say=_say,
    )
    print(sampling.as_text(plan))
    if arguments.json is not None:
        write_text(arguments.json, json.dumps(sampling.as_json(plan), indent=2) + "\n")
    return 0 if plan.held <= topology.chip.memory else 1


def _fits(plan: Any) -> bool:
    return not any(flag.startswith("OUT OF MEMORY") for flag in plan.flags)


def _search(config: Any, topology: Any, arguments: argparse.Namespace) -> int:
    from mogao_jax.tools.plan.printing import as_json, as_text
    from mogao_jax.tools.plan.search import as_table, search

    best = 0 if arguments.no_compile else arguments.compile
    found = search(config, topology, compile_best=best, say=_say)
    if found:
        print(as_table(found))
    if arguments.json is not None:
        records = [as_json(p, arguments.tokens) for _, p in found[:20]]
        write_text(arguments.json, json.dumps(records, indent=2) + "\n")
    if best and topology.compiles and not (found and found[0][1].compiled):
        print(
            f"\nNo combination that was compiled fits {topology}; those that fit by the formulas "
            f"and were not compiled: {len(found)}. Try more of them (--compile {2 * best}), more "
            "chips, or shorter rows (config.packing)."
        )
        return 1
    chosen, plan = found[0]
    mesh, train = chosen.mesh, chosen.train
    print(
        f"\nThe best: --config.mesh.data={mesh.data} --config.mesh.fsdp={mesh.fsdp} "
        f"--config.mesh.param_axes={','.join(mesh.param_axes)} "
        f"--config.mesh.tensor={mesh.tensor} --config.mesh.context={mesh.context} "
        f"--config.mesh.num_slices={mesh.num_slices} "
        f"--config.train.global_batch_rows={train.global_batch_rows} "
        f"--config.train.grad_accum_steps={train.grad_accum_steps} "
        f"--config.model.remat={chosen.model.remat}\n"
    )
    print(as_text(plan, arguments.tokens))
    return 0


def _say(message: str) -> None:
    print(f"... {message}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="mogao plan",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--topology", required=True, metavar="NAME",
        help="v5p:4x4x4, v5e:16x16, v6e:8x8, v5p-64, ..., or 8xH100, 64xH100, 1xH200")  # fmt: skip
    add("--num-slices", type=int, default=1, metavar="N", help="slices of a TPU topology (1)")
    add("--what", choices=("train", "sample"), default="train",
        help="the training step (default), or drawing a picture on one chip")  # fmt: skip
    add("--pictures", type=int, default=1, metavar="N", help="sample: drawn together (1)")
    add("--tokens", type=float, default=1e12, metavar="N", help="real tokens to train on (1e12)")
    add("--search", action="store_true", help="the fastest mesh, rows and remat that fit")
    add("--compile", type=int, default=2, metavar="N", help="of a search's best (2)")
    add("--no-compile", action="store_true", help="formulas alone")
    add("--json", type=pathlib.Path, metavar="FILE", help="also write the figures to this file")
    return parser
