"""`mogao bench layers|tiles|kernel|memory|keep-matmuls|context`: figures beside their bars."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys

from mogao_jax.console.parser import Parser
from mogao_jax.console.writing import write_text

NAMES = ("layers", "tiles", "kernel", "memory", "keep-matmuls", "context")
DEFAULT = "configs/mogao_7b_stage3.py"

_EXAMPLES = """  layers        FLOPs of a compiled layer over the ideal
  tiles         pairs that attention computes over pairs that attend
  kernel        whether the TPU compiler takes the kernel, and its temporaries
  memory        peak memory of the whole step for three TPUs, and the time to compile it
  keep-matmuls  the same at 16k tokens a chip with little recomputation
  context       rows of 256k tokens over several chips

examples:
  mogao bench tiles
  mogao bench memory --json memory.json
"""


def main(argv: list[str]) -> int:
    """Parses and runs; returns the exit status (1: a bar is not met)."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing is run; a TPU's compiler is asked
    from mogao_jax.config.convert import parse_config_args

    config, rest = parse_config_args(argv, default=DEFAULT, checked=False)
    parser = Parser(
        prog="mogao bench",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("benchmark", choices=NAMES)
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="also write the figures")
    arguments = parser.parse_args(rest)
    if arguments.json is not None:
        write_text(arguments.json, "", mode="a")  # tried before time is spent

    from mogao_jax.console.logs import configure_logging
    from mogao_jax.tools.bench import bars

    configure_logging()
    bars.check_config(config)
    rows = []
    for row in bars.BARS[arguments.benchmark](config, _say):
        print(bars.line(row), flush=True)
        rows.append(row)
    if arguments.json is not None:
        write_text(arguments.json, json.dumps([r._asdict() for r in rows], indent=2) + "\n")
    return 1 if any(row.is_met is False for row in rows) else 0


def _say(message: str) -> None:
    print(f"... {message}", file=sys.stderr, flush=True)
