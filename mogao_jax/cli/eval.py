"""`mogao eval`: how good a model is, on the embedded world or on images of one's own."""

from __future__ import annotations

import importlib

from mogao_jax.errors import DataError

_BENCHMARKS = {
    "shapes": "mogao_jax.worlds.shapes.commands.eval",
    "retrieval": "mogao_jax.cli.eval_retrieval",
}
_RENAMED = {"pictures": "retrieval"}
USAGE = """usage: mogao eval BENCHMARK ...

  shapes     exact scores on held-out prompts of the embedded world; --validate checks the scorer
  retrieval  --documents PATH: how often the nearest of all the images of your documents is the
             one that was asked for

'mogao eval BENCHMARK --help' tells more."""


def main(argv: list[str]) -> int:
    """Dispatches on the benchmark; returns its exit status."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    name = argv[0]
    if name in _RENAMED:
        raise DataError(f"'mogao eval {name}' is called 'mogao eval {_RENAMED[name]}' now.")
    if name not in _BENCHMARKS:
        raise DataError(f"there is no benchmark {name!r} of 'mogao eval'.\n{USAGE}")
    return importlib.import_module(_BENCHMARKS[name]).main(argv[1:])
