"""Log lines of the command line: ours from INFO on, other libraries' from WARNING on."""

from __future__ import annotations

import logging
import sys


def configure_logging() -> None:
    """Plain lines on stderr."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", force=True)
    logging.getLogger("mogao_jax").setLevel(logging.INFO)
    # absl repeats Orbax's every save at INFO; its warnings name internals no user can act on.
    for library in ("absl", "orbax", "jax"):
        logging.getLogger(library).setLevel(logging.ERROR)


def progress(message: str) -> None:
    """Says on stderr what a long command is doing."""
    print(f"... {message}", file=sys.stderr, flush=True)
