"""`mogao bench sampling` and `mogao bench soak`: what sampling costs, and whether it lasts.

The benchmarks of the training step are in command_bars.py, command_passes.py and
command_peers.py.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from typing import TYPE_CHECKING, Any

from mogao_jax.console.logs import configure_logging
from mogao_jax.console.writing import write_text
from mogao_jax.errors import ConfigError
from mogao_jax.tools.bench import command_bars, command_passes, command_peers

if TYPE_CHECKING:
    from mogao_jax.sampling.loading import Model

_EXAMPLES = """examples:
  mogao bench sampling
  mogao bench sampling --checkpoint runs/mine --json bench.json
  mogao bench sampling --config=configs/emoji.py --config.vae.weights=FOLDER --only picture
  mogao bench soak --num 200
of the training step (each has its own --help):
  mogao bench layers | tiles | kernel | memory | keep-matmuls | context
  mogao bench passes
  mogao bench peers --bagel FOLDER --transfusion
"""


def main(argv: list[str]) -> int:
    """Parses and runs; returns the exit status (1: a soak that found something wrong)."""
    benchmark = next((a for a in argv if not a.startswith("-")), "")
    if benchmark in command_bars.NAMES:
        return command_bars.main(argv)
    if benchmark == "passes":
        return command_passes.main(argv)
    if benchmark == "peers":
        return command_peers.main(argv)
    config, argv = _config(argv)
    arguments = _parser().parse_args(argv)
    for name in ("rounds", "steps", "tokens", "num", "batch_size"):
        if getattr(arguments, name) < 1:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} must be 1 or more, got {getattr(arguments, name)}.")
    if config is not None and arguments.checkpoint is not None:
        raise ConfigError("give --checkpoint or --config (random parameters), not both.")
    groups = _groups(arguments.only)
    if arguments.json is not None:
        write_text(arguments.json, "", mode="a")  # tried before time is spent
    configure_logging()
    model = _model(config, arguments)
    if arguments.benchmark == "soak":
        return _soak(model, arguments)
    return _sampling(model, groups, arguments)


def _groups(text: str) -> tuple[str, ...]:
    from mogao_jax.tools.bench.speed import GROUPS

    groups = tuple(g.strip() for g in text.split(",") if g.strip())
    unknown = [g for g in groups if g not in GROUPS]
    if unknown or not groups:
        what = unknown[0] if unknown else text
        known = ", ".join(GROUPS)
        raise ConfigError(f"--only: there is no group {what!r}; the groups are {known}.")
    return groups


def _sampling(model: Model, groups: tuple[str, ...], arguments: argparse.Namespace) -> int:
    from mogao_jax.tools.bench import printing, speed

    setting = speed.Setting(arguments.rounds, arguments.steps, arguments.tokens)
    measured = speed.measure(model, setting, groups, _say)
    about = _about(model), setting, measured, _machine()
    print(printing.speed_text(*about))
    _save(arguments.json, printing.speed_json(*about))
    return 0


def _soak(model: Model, arguments: argparse.Namespace) -> int:
    from mogao_jax.tools.bench import printing
    from mogao_jax.tools.bench.soak import soak

    found = soak(
        model,
        arguments.num,
        seed=arguments.seed,
        num_steps=min(arguments.steps, 8),
        batch_size=arguments.batch_size,
        say=_say,
    )
    about = _about(model), found, _machine()
    print(printing.soak_text(*about))
    _save(arguments.json, printing.soak_json(*about))
    return 1 if found.broken or found.recompiled else 0


def _config(argv: list[str]) -> tuple[Any, list[str]]:
    """The config, where one is given, and the other arguments."""
    from mogao_jax.config.convert import parse_config_args

    if not any(a == "--config" or a.startswith(("--config=", "--config.")) for a in argv):
        return None, argv
    return parse_config_args(argv)


def _model(config: Any, arguments: argparse.Namespace) -> Model:
    from mogao_jax.console.compile_cache import keep_compiled_programs
    from mogao_jax.sampling.loading import DEMO, load_model
    from mogao_jax.tools.bench.fixtures import random_model

    keep_compiled_programs()
    if config is not None:
        return random_model(config)
    return load_model(arguments.checkpoint or DEMO)


def _about(model: Model) -> str:
    import jax

    from mogao_jax.models.modules import count_parameters

    millions = sum(count_parameters(model.params).values()) / 1e6
    kind = "random parameters" if model.weights == "random" else f"step {model.step}"
    return f"{model.name!r} ({millions:.1f} million parameters, {kind}) on {jax.default_backend()}"


def _machine() -> dict[str, str]:
    import jax

    from mogao_jax.tools.report.run_facts import machine_facts

    return machine_facts(jax.devices())


def _say(message: str) -> None:
    print(f"... {message}", file=sys.stderr, flush=True)


def _save(path: pathlib.Path | None, record: dict[str, Any]) -> None:
    if path is not None:
        write_text(path, json.dumps(record, indent=2) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mogao bench",
        description="sampling: what a picture, a batch and text cost, as ratios of things that "
        "are run in turn, each with its bar. soak: many mixed generations in one process: their "
        "form, the compilations, the memory.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("benchmark", choices=("sampling", "soak"))
    add("--checkpoint", help="demo (default), an exported file, a run's folder, or a checkpoint")
    add("--config", metavar="FILE",
        help="a config file instead (with --config.a.b=VALUE): random parameters")  # fmt: skip
    add("--json", type=pathlib.Path, metavar="FILE", help="also write the numbers to this file")

    add = parser.add_argument_group("sampling").add_argument
    add("--only", default="picture,batch,text,compilations", metavar="GROUPS",
        help="of picture,batch,text,compilations (all)")  # fmt: skip
    add("--rounds", type=int, default=7, metavar="N", help="that medians are taken of (7)")
    add("--steps", type=int, default=50, metavar="N", help="of a picture (50; a soak: at most 8)")
    add("--tokens", type=int, default=128, metavar="N", help="of a text (128)")

    add = parser.add_argument_group("soak").add_argument
    add("--num", type=int, default=200, metavar="N", help="generations (200)")
    add("--batch-size", type=int, default=8, metavar="N", help="requests served together (8)")
    add("--seed", type=int, default=0, help="of prompts and options")
    return parser
