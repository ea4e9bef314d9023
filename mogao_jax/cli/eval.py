"""`mogao eval`: how good a model is, on the embedded world or on pictures of one's own."""

from __future__ import annotations

from mogao_jax.cli import eval_retrieval
from mogao_jax.errors import DataError
from mogao_jax.worlds.shapes.commands import eval as eval_shapes

USAGE = """usage: mogao eval BENCHMARK ...

  shapes    exact scores on held-out prompts of the embedded world; --validate checks the scorer
  pictures  --documents PATH: how often the nearest of all the pictures of your documents is the
            one that was asked for

'mogao eval BENCHMARK --help' tells more."""


def main(argv: list[str]) -> int:
    """Dispatches on the benchmark; returns its exit status."""
    benchmarks = {"shapes": eval_shapes.main, "pictures": eval_retrieval.main}
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    if argv[0] not in benchmarks:
        raise DataError(f"there is no benchmark {argv[0]!r} of 'mogao eval'.\n{USAGE}")
    return benchmarks[argv[0]](argv[1:])
