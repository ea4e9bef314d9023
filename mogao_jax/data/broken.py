"""Broken records: skipped, counted, named in the log, and at last too many."""

from __future__ import annotations

import json
import logging

from mogao_jax.errors import DataError

NAMED = 20  # of each kind, in the log; the rest is only counted
REASONS = 3  # in the final error
USELESS_RUN = 1000  # records in a row without a single good one

logger = logging.getLogger(__name__)


class BrokenRecords:
    """Counts distinct broken records, so that small data sets can be repeated for ever.

    Over-long documents are counted apart: they are not defects, and have no limit, unless
    nothing else is found.
    """

    def __init__(self, limit: int):
        """`limit`: how many broken records are skipped (config data.max_broken)."""
        self._limit = limit
        self._broken: set[tuple[int, int]] = set()
        self._over_long: set[tuple[int, int]] = set()
        self._reasons: list[str] = []
        self._run = 0

    @property
    def num_broken(self) -> int:
        return len(self._broken)

    @property
    def num_over_long(self) -> int:
        return len(self._over_long)

    def good(self) -> None:
        """A record was fine."""
        self._run = 0

    def add(self, source: int, record: int, reason: str, *, over_long: bool = False) -> None:
        """A record was not.

        Raises:
          DataError: more than `limit` records are broken, or nothing usable was found for long.
        """
        found = self._over_long if over_long else self._broken
        self._run += 1
        if (source, record) not in found:
            found.add((source, record))
            self._reasons = [*self._reasons, reason][-REASONS:]
            if len(found) <= NAMED:
                logger.warning("Skipped: %s", reason)
            if len(found) == NAMED:
                logger.warning("Further such records are skipped without a word.")
        last = "".join(f"\n  - {r}" for r in self._reasons)
        if self.num_broken > self._limit:
            raise DataError(
                f"{self.num_broken} records are broken, more than data.max_broken "
                f"({self._limit}) allows. The last of them:{last}\n"
                "Repair or remove them, or raise data.max_broken."
            )
        if self._run >= USELESS_RUN:
            raise DataError(
                f"Of the last {self._run} records none could be used "
                f"({self.num_over_long} are over-long, {self.num_broken} broken). "
                f"The last reasons:{last}"
            )

    def get_state(self) -> str:
        """State as a JSON string (one string, whatever it holds: iterator states keep a shape)."""
        return json.dumps([sorted(self._broken), sorted(self._over_long), self._run])

    def set_state(self, state: str) -> None:
        broken, over_long, self._run = json.loads(state)
        self._broken = {(int(s), int(r)) for s, r in broken}
        self._over_long = {(int(s), int(r)) for s, r in over_long}
