"""`mogao bench NAME`: what sampling costs, long runs, and the training step beside its bars."""

from __future__ import annotations

import argparse
import os
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from mogao_jax.config.files import parse_config_args
from mogao_jax.config.schema import MogaoConfig
from mogao_jax.console.flags import Parser
from mogao_jax.console.output import configure_logging, progress, require_writable_json, write_json
from mogao_jax.errors import RequestError

if TYPE_CHECKING:
    from mogao_jax.sampling.loading import Model

BARS_CONFIG = "configs/mogao_7b_stage3.py"
GROUPS = "image,batch,text,compilations"

_EXAMPLES = """examples:
  mogao bench sampling
  mogao bench sampling --checkpoint runs/mine --json bench.json
  mogao bench sampling --config=configs/emoji.py --config.vae.weights=FOLDER --only image
  mogao bench soak --num 200
  mogao bench memory --json memory.json
"""
_PEERS_EXAMPLES = """examples (in an environment that has torch beside this package):
  git clone https://github.com/ByteDance-Seed/Bagel
  pip install 'transformers==4.49.0' transfusion-pytorch
  mogao bench peers --bagel Bagel --transfusion
"""


def main(argv: list[str]) -> int:
    """Parses and runs; returns the exit status (1: a bar is not met, or a soak found a fault)."""
    config, argv = _config(argv)
    arguments = _parser().parse_args(argv)
    for field in ("rounds", "steps", "tokens", "num", "batch_size"):
        value = getattr(arguments, field, 1)
        if value < 1:
            raise RequestError(f"--{field.replace('_', '-')} must be 1 or more, got {value}.")
    require_writable_json(arguments.json)
    configure_logging()
    return BENCHMARKS[arguments.benchmark].run(config, arguments)


def _config(argv: list[str]) -> tuple[MogaoConfig | None, list[str]]:
    """The config of a benchmark that takes one, where it is given; and the other arguments."""
    benchmark = BENCHMARKS.get(next((a for a in argv if not a.startswith("-")), ""))
    if benchmark and benchmark.run is run_bars:
        return parse_config_args(argv, default=BARS_CONFIG, checked=False)
    is_given = any(a.startswith("--config") for a in argv)
    if benchmark and "--config" in benchmark.flags and is_given:
        return parse_config_args(argv)
    return None, argv


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="mogao bench", description=__doc__, epilog=_EXAMPLES, formatter_class=raw)
    parser.set_defaults(json=None)
    add = parser.add_subparsers(dest="benchmark", required=True, metavar="NAME").add_parser
    for name, (_, about, flags, more, epilog) in BENCHMARKS.items():
        sub = add(name, help=about, description=more or about, epilog=epilog, formatter_class=raw)
        for flag in flags:
            sub.add_argument(flag, **_FLAGS[flag])
    return parser


# ------------------------------------------------------------------------------------- sampling


def _sampling(config: MogaoConfig | None, arguments: argparse.Namespace) -> int:
    groups = tuple(g.strip() for g in arguments.only.split(",") if g.strip())
    known = GROUPS.split(",")
    for what in [g for g in groups if g not in known] or ([] if groups else [arguments.only]):
        raise RequestError(
            f"--only: there is no group {what!r}; the groups are {', '.join(known)}."
        )
    model, name, machine = _model(config, arguments.checkpoint)
    from mogao_jax.tools.bench import speed

    setting = speed.Setting(arguments.rounds, arguments.steps, arguments.tokens)
    measured = speed.measure(model, setting, groups, progress)
    print(speed.as_text(name, setting, measured, machine))
    write_json(arguments.json, speed.as_json(name, setting, measured, machine))
    return 0


def _soak(config: MogaoConfig | None, arguments: argparse.Namespace) -> int:
    model, name, machine = _model(config, arguments.checkpoint)
    from mogao_jax.tools.bench import soak

    steps, batch_size = min(arguments.steps, 8), arguments.batch_size
    options = {"seed": arguments.seed, "num_steps": steps, "batch_size": batch_size}
    found = soak.soak(model, arguments.num, **options, say=progress)
    print(soak.as_text(name, found, machine))
    write_json(arguments.json, soak.as_json(name, found, machine))
    return 1 if found.broken or found.recompiled else 0


def _model(config: MogaoConfig | None, checkpoint: str | None) -> tuple[Model, str, dict[str, str]]:
    """The model, a line about it, and facts of the machine."""
    if config is not None and checkpoint is not None:
        raise RequestError("give --checkpoint or --config (random parameters), not both.")
    import jax

    from mogao_jax.compile_cache import keep_compiled_programs
    from mogao_jax.models.modules import count_parameters
    from mogao_jax.sampling.loading import DEMO, load_model
    from mogao_jax.tools.bench.fixtures import random_model
    from mogao_jax.training.workdir import machine_facts

    keep_compiled_programs()
    model = load_model(checkpoint or DEMO) if config is None else random_model(config)
    millions = sum(count_parameters(model.params).values()) / 1e6
    kind = "random parameters" if model.weights == "random" else f"step {model.step}"
    name = f"{model.name!r} ({millions:.1f} million parameters, {kind}) on {jax.default_backend()}"
    return model, name, machine_facts(jax.devices())


# ------------------------------------------------------------------------------ the training step


def run_bars(config: MogaoConfig, arguments: argparse.Namespace) -> int:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing is run: a TPU's compiler is asked
    from mogao_jax.tools.bench import bars

    bars.check_config(config)
    rows = []
    for row in bars.BARS[arguments.benchmark](config, progress):
        print(bars.line(row), flush=True)
        rows.append(row)
    write_json(arguments.json, [row._asdict() for row in rows])
    return 1 if any(row.is_met is False for row in rows) else 0


def _passes(_: None, arguments: argparse.Namespace) -> int:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from mogao_jax.tools.bench import passes

    for line in passes.report(arguments.rounds):
        print(line, flush=True)
    return 0


def _peers(_: None, arguments: argparse.Namespace) -> int:
    if arguments.bagel is None and not arguments.transfusion:
        raise RequestError("name a peer: --bagel FOLDER, --transfusion, or both.")
    os.environ["JAX_PLATFORMS"] = "cpu"
    from mogao_jax.tools.bench import peers

    record, is_met = peers.compare(arguments.bagel, arguments.transfusion, arguments.rounds)
    write_json(arguments.json, record)
    return 0 if is_met else 1


# -------------------------------------------------------------------------------------- the table


class Benchmark(NamedTuple):
    """A subcommand: what runs it, a line about it, its flags, more for its --help."""

    run: Callable[[Any, argparse.Namespace], int]
    about: str
    flags: tuple[str, ...] = ("--config", "--json")
    more: str = ""
    epilog: str = ""


BENCHMARKS = {
    "sampling": Benchmark(
        _sampling,
        "what an image, a batch and text cost, as ratios of things that are run in turn",
        ("--checkpoint", "--config", "--json", "--only", "--rounds", "--steps", "--tokens"),
    ),
    "soak": Benchmark(
        _soak,
        "many mixed generations in one process: their form, the compilations, the memory",
        ("--checkpoint", "--config", "--json", "--num", "--batch-size", "--steps", "--seed"),
    ),
    "layers": Benchmark(run_bars, "FLOPs of a compiled layer over the ideal"),
    "tiles": Benchmark(run_bars, "pairs that attention computes over pairs that attend"),
    "kernel": Benchmark(run_bars, "whether the TPU compiler takes the kernel, and its temporaries"),
    "memory": Benchmark(
        run_bars, "peak memory of the whole step for three TPUs, and the time to compile it"
    ),
    "keep-matmuls": Benchmark(run_bars, "the same at 16k tokens a chip with little recomputation"),
    "long-rows": Benchmark(run_bars, "rows of 256k tokens, each over several chips"),
    "passes": Benchmark(
        _passes,
        "documents of several images in one pass, against one pass per image",
        ("--rounds",),
        "The transformer's forward and backward pass over documents of 2, 4 and 8 images: all\n"
        "noised images at once (ECTF), against one pass per image, in turn; and the ratio of "
        "their\nFLOPs.",
    ),
    "peers": Benchmark(
        _peers,
        "a training step of ours beside those of other implementations",
        ("--bagel", "--transfusion", "--rounds", "--json"),
        "The transformer's forward and backward pass in float32 on the CPU, on the same packed\n"
        "documents with the same mask, depth and width, in turn.",
        _PEERS_EXAMPLES,
    ),
}


def _count(default: int, what: str) -> dict[str, Any]:
    return {"type": int, "default": default, "metavar": "N", "help": f"{what} ({default})"}


_FLAGS: dict[str, dict[str, Any]] = {
    "--checkpoint": {"help": "demo (default), an exported file, a run's folder, or a checkpoint"},
    "--config": {
        "metavar": "FILE",
        "help": "a config file, with --config.a.b=VALUE (sampling and soak: random parameters "
        f"instead of a checkpoint; others: {BARS_CONFIG})",
    },
    "--json": {"type": pathlib.Path, "metavar": "FILE", "help": "also write the figures"},
    "--only": {"default": GROUPS, "metavar": "GROUPS", "help": f"of {GROUPS} (all)"},
    "--rounds": _count(7, "rounds to take medians over"),
    "--steps": _count(50, "steps of an image; soak: at most 8"),
    "--tokens": _count(128, "tokens of a text"),
    "--num": _count(200, "generations"),
    "--batch-size": _count(8, "requests served together"),
    "--seed": {"type": int, "default": 0, "help": "of prompts and options"},
    "--bagel": {"type": pathlib.Path, "metavar": "FOLDER", "help": "a clone of BAGEL's repository"},
    "--transfusion": dict(action="store_true", help="transfusion-pytorch, which must be installed"),
}
