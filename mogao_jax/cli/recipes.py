"""`mogao recipes`: what `--config=NAME` can name, with what each recipe costs and reaches."""

from __future__ import annotations

import textwrap

from mogao_jax.config import recipes
from mogao_jax.console.flags import Parser

_WIDTH = 96


def main(argv: list[str]) -> int:
    """Prints every recipe; returns the exit status."""
    Parser(prog="mogao recipes", description=__doc__).parse_args(argv)
    for name in recipes.names():
        recipe = recipes.describe(name)
        print(name)
        for label, text in (
            ("", recipe.title),
            ("costs: ", recipe.costs),
            ("reach: ", recipe.reach),
        ):
            if text:
                print(
                    textwrap.fill(
                        label + text, _WIDTH, initial_indent="  ", subsequent_indent="    "
                    )
                )
        print()
    print(f"Use: mogao train --config=NAME --workdir DIR. The files are in {recipes.folder()}.")
    return 0
