"""`mogao bench passes`: documents of several pictures in one pass, against one pass per picture."""

from __future__ import annotations

import os

from mogao_jax.console.parser import Parser
from mogao_jax.errors import RequestError


def main(argv: list[str]) -> int:
    """Parses and runs; returns the exit status."""
    parser = Parser(
        prog="mogao bench passes",
        description="The transformer's forward and backward pass over documents of 2, 4 and 8 "
        "pictures: all noised pictures at once (ECTF), against a pass for each, in turn; and the "
        "ratio that the arithmetic of both would give.",
    )
    parser.add_argument("benchmark", choices=("passes",))
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="of the medians (7)")
    arguments = parser.parse_args(argv)
    if arguments.rounds < 1:
        raise RequestError(f"--rounds must be 1 or more, got {arguments.rounds}.")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from mogao_jax.sharding.mesh import split_cpu
    from mogao_jax.tools.bench import passes
    from mogao_jax.tools.bench.packed_documents import Setting

    setting = Setting()
    split_cpu(min(setting.rows, os.cpu_count() or 1))
    print(
        f"{setting.layers} layers of width {setting.width}, a document in each of {setting.rows} "
        f"rows, pictures of 64 tokens; medians of {arguments.rounds} rounds [quartiles]"
    )
    for line in passes.lines(setting, arguments.rounds):
        print(line, flush=True)
    return 0
