"""`mogao train --config=configs/X.py [--config.a.b=...] --workdir DIR`: trains, or resumes.

The run folder decides: where it holds a checkpoint of the same config, training resumes from it.
Everything that can be known to fail is checked before time is spent.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

from mogao_jax.config.files import parse_config_args
from mogao_jax.console.flags import Parser
from mogao_jax.errors import RequestError


def main(argv: list[str]) -> int:
    """Parses the command line and runs; returns the exit status."""
    arguments, rest = _parser().parse_known_args(argv)
    config, unknown = parse_config_args(rest, default=_own_recipe(arguments, rest))
    if unknown:
        raise RequestError(f"unknown: {' '.join(unknown)}; see `mogao train --help`.")
    from mogao_jax.cli.run_training import run  # JAX, which --help does without

    return run(config, arguments)


def _parser() -> Parser:
    parser = Parser(
        prog="mogao train (--config=FILE | --data PLACE) [--config.FIELD=VALUE ...]",
        description=__doc__,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--workdir", required=True, help="the run's folder; made if it is absent")
    add("--data", metavar="PLACE", help="your own: a JSONL file, a folder of documents or of "
        "images with captions, a tfds data set; a recipe for it is chosen")  # fmt: skip
    add("--init", metavar="NAME", default="", help="with --data: the checkpoint to start from")
    add("--restart-data", action="store_true", help="on resuming, start the data again")
    return parser


def _own_recipe(arguments: argparse.Namespace, rest: list[str]) -> str | None:
    """The recipe for --data, if it is given."""
    if arguments.data is None:
        if arguments.init:
            raise RequestError("--init needs --data; with --config it is --config.train.init_from.")
        return None
    if any(a == "--config" or a.startswith("--config=") for a in rest):
        raise RequestError("--data chooses a recipe, and --config names one; leave one out.")
    from mogao_jax.own_data import recipe_file

    file, notes = recipe_file(arguments.data, pathlib.Path(arguments.workdir), arguments.init)
    print("\n".join(f"  {note}" for note in ("Recipe for your data:", *notes)), file=sys.stderr)
    return str(file)
