"""`mogao plan --config=configs/X.py --topology v5p:4x4x4`: what a run costs, before paying for it.

Compiles the real training step for a machine you do not have. Reports memory, arithmetic and
communication, and estimates the time. Needs no weights, no data and no tokenizer.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib

from mogao_jax.config.files import parse_config_args
from mogao_jax.config.schema import MogaoConfig
from mogao_jax.console.flags import Parser
from mogao_jax.console.output import configure_logging, progress, require_writable_json, write_json
from mogao_jax.errors import RequestError
from mogao_jax.tools.plan import topology as topologies
from mogao_jax.tools.plan.topology import Topology

_EXAMPLES = """examples:
  mogao plan --config=configs/mogao_7b_stage3.py:v5p-64 --topology v5p:4x4x4
  mogao plan --config=configs/mogao_7b_stage3.py:v5p-64 --topology v5p:4x4x4 --search
  mogao plan --config=configs/mogao_7b_stage3.py:v5p-64 --topology v5p:4x4x4 --num-slices 2
  mogao plan --config=configs/mogao_7b_stage3.py:8xH100 --topology 8xH100 --tokens 1e11
  mogao plan --config=configs/mogao_7b_stage3.py --topology 1xH200 --what sample
"""


def main(argv: list[str]) -> int:
    """Parses the command line and runs; returns the exit status (1: the step does not fit)."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing is run: a TPU's compiler is asked
    config, rest = parse_config_args(argv, checked=False)
    arguments = _parser().parse_args(rest)
    _check(arguments)
    require_writable_json(arguments.json)
    configure_logging()
    topology = topologies.parse(arguments.topology, arguments.num_slices)
    if arguments.what == "sample":
        return _sample(config, topology, arguments)
    if arguments.num_slices > 1 and config.mesh.num_slices == 1:
        config = _over_slices(config, topology, keep_mesh=arguments.search)
    return (_search if arguments.search else _plan)(config, topology, arguments)


def _check(arguments: argparse.Namespace) -> None:
    wanted = {
        "tokens": (arguments.tokens > 0, "above 0"),
        "num-slices": (arguments.num_slices >= 1, "1 or more"),
        "images": (arguments.images >= 1, "1 or more"),
        "compile": (arguments.compile >= 0, "0 (formulas alone) or more"),
    }
    for flag, (is_right, what) in wanted.items():
        if not is_right:
            value = getattr(arguments, flag.replace("-", "_"))
            raise RequestError(f"--{flag} is {value}; it must be {what}.")
    if arguments.search and arguments.what == "sample":
        raise RequestError("--search is for --what train: the sampler runs on one chip.")


def _over_slices(config: MogaoConfig, topology: Topology, keep_mesh: bool) -> MogaoConfig:
    """The recipe of one slice on several: each takes a whole batch, as its data parallelism.

    Weights that one slice shards over data and fsdp are sharded over as many devices of fsdp
    instead: the data axis now goes over the network, which no layer's weights should cross.

    Args:
      keep_mesh: leave the mesh as it is (a search makes its own).
    """
    from mogao_jax.tools.plan.memory import abstract_mesh

    slices = topology.num_slices
    rows = config.train.global_batch_rows * slices
    train = dataclasses.replace(config.train, global_batch_rows=rows)
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


def _plan(config: MogaoConfig, topology: Topology, arguments: argparse.Namespace) -> int:
    from mogao_jax.tools.plan.plan import make_plan
    from mogao_jax.tools.plan.printing import as_json, as_text

    plan = make_plan(config, topology, compile_it=not arguments.no_compile, say=progress)
    print(as_text(plan, arguments.tokens))
    write_json(arguments.json, as_json(plan, arguments.tokens))
    is_over = any(flag.startswith("OUT OF MEMORY") for flag in plan.flags)
    return 1 if is_over or plan.held > topology.chip.memory else 0


def _sample(config: MogaoConfig, topology: Topology, arguments: argparse.Namespace) -> int:
    from mogao_jax.tools.plan import sampling

    plan = sampling.make_sampling_plan(
        config,
        topology,
        images=arguments.images,
        compile_it=not arguments.no_compile,
        say=progress,
    )
    print(sampling.as_text(plan))
    write_json(arguments.json, sampling.as_json(plan))
    return 0 if plan.held <= topology.chip.memory else 1


def _search(config: MogaoConfig, topology: Topology, arguments: argparse.Namespace) -> int:
    from mogao_jax.tools.plan.printing import as_json, as_text
    from mogao_jax.tools.plan.search import as_flags, as_table, search

    best = 0 if arguments.no_compile else arguments.compile
    found = search(config, topology, compile_best=best, say=progress)
    if found:
        print(as_table(found))
    write_json(arguments.json, [as_json(plan, arguments.tokens) for _, plan in found[:20]])
    if best and topology.compiles and not (found and found[0][1].compiled):
        print(
            f"\nNo combination that was compiled fits {topology}; those that fit by the formulas "
            f"and were not compiled: {len(found)}. Try more of them (--compile {2 * best}), more "
            "chips, or shorter rows (config.packing)."
        )
        return 1
    chosen, plan = found[0]
    print(f"\nThe best: {as_flags(chosen)}\n")
    print(as_text(plan, arguments.tokens))
    return 0


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
        help="the training step (default), or sampling images on one chip")  # fmt: skip
    add("--images", "--pictures", type=int, default=1, metavar="N",
        help="sample: images in a batch (1)")  # fmt: skip
    add("--tokens", type=float, default=1e12, metavar="N", help="real tokens to train on (1e12)")
    add("--search", action="store_true", help="find the fastest mesh, rows and remat that fit")
    add("--compile", type=int, default=2, metavar="N", help="search: compile the N best (2)")
    add("--no-compile", action="store_true", help="use formulas alone")
    add("--json", type=pathlib.Path, metavar="FILE", help="also write the figures to this file")
    return parser
