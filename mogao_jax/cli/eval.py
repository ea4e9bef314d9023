"""`mogao eval`: how good a model is, on the embedded world or on images of one's own."""

from __future__ import annotations

from mogao_jax import registry
from mogao_jax.errors import DataError
from mogao_jax.registry import Command

_BENCHMARKS = {
    **{name: registry.EVALS.get(name) for name in registry.EVALS.names()},  # of worlds
    "retrieval": Command(
        "--documents PATH: how often the nearest of all the images of your documents is the one "
        "that was asked for",
        "mogao_jax.cli.eval_retrieval:main",
    ),
}
_RENAMED = {"pictures": "retrieval"}


def main(argv: list[str]) -> int:
    """Dispatches on the benchmark; returns its exit status."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0 if argv else 2
    name = argv[0]
    if name in _RENAMED:
        raise DataError(f"'mogao eval {name}' is called 'mogao eval {_RENAMED[name]}' now.")
    if name not in _BENCHMARKS:
        raise DataError(f"there is no benchmark {name!r} of 'mogao eval'.\n{_usage()}")
    return _BENCHMARKS[name].run(argv[1:])


def _usage() -> str:
    lines = [f"  {name:10} {command.help}" for name, command in _BENCHMARKS.items()]
    head, tail = "usage: mogao eval BENCHMARK ...", "'mogao eval BENCHMARK --help' tells more."
    return "\n".join([head, "", *lines, "", tail])
