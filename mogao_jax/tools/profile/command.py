"""`mogao profile --config=configs/X.py [--config.a.b=...] [--steps N] [--json FILE]`.

Prints memory, tokens/s, the share of the machine's own matmul rate that the training step
reaches, and where the time goes. Trains nothing and writes no run folder.
"""

from __future__ import annotations

import argparse
import pathlib

from mogao_jax.config.files import parse_config_args
from mogao_jax.console.output import configure_logging, progress, require_writable_json, write_json


def main(argv: list[str]) -> int:
    """Parses the command line and runs; returns the exit status."""
    config, rest = parse_config_args(argv)
    parser = argparse.ArgumentParser(
        prog="mogao profile --config=FILE [--config.FIELD=VALUE ...]", description=__doc__
    )
    parser.add_argument("--steps", type=int, default=10, help="steps to time (default 10)")
    parser.add_argument("--json", type=pathlib.Path, help="also write the numbers to this file")
    arguments = parser.parse_args(rest)
    if arguments.steps < 1:
        parser.error(f"--steps must be at least 1, got {arguments.steps}")
    require_writable_json(arguments.json)
    import jax  # only now: --help does without

    from mogao_jax.sharding.mesh import split_cpu
    from mogao_jax.tools.profile.measure import measure
    from mogao_jax.tools.profile.printing import as_json, as_text
    from mogao_jax.training.workdir import machine_facts

    configure_logging()
    split_cpu(config.mesh.cpu_devices)
    profile = measure(config, arguments.steps, say=progress)
    machine = machine_facts(jax.devices())
    print(as_text(profile, machine))
    write_json(arguments.json, as_json(profile, machine))
    return 0
