"""The three parts of a row and which of them can read which: und | clean | noised."""

from __future__ import annotations

from typing import Any, NamedTuple


class Parts(NamedTuple):
    """One thing (array, TokenMeta, ...) per part of a row; None where the part is absent.

    In training all three stand there. While sampling, queries are often one part (a text token,
    a noised image), and keys are what the cache holds.
    """

    und: Any = None
    clean: Any = None
    noised: Any = None


UND, CLEAN, NOISED = range(3)


def readable_parts(text_reads_vae: bool = False) -> tuple[tuple[int, ...], ...]:
    """For each part of queries, the parts of keys it can read at all (docs/method.md section 4).

    What is not listed is never computed; `can_attend` decides the rest.
    """
    und = (UND, CLEAN) if text_reads_vae else (UND,)
    return (und, (UND, CLEAN), (UND, CLEAN, NOISED))
