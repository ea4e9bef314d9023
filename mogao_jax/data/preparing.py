"""A drawn record becomes a laid-out document that fits a row, or the reason why it does not."""

from __future__ import annotations

import dataclasses
import json
import logging
from typing import NamedTuple

import grain
import numpy as np

from mogao_jax.config.schema import MogaoConfig, SourceConfig
from mogao_jax.data.encoded import EncodedImages, open_encoded
from mogao_jax.data.mixture import Draw, make_mixture
from mogao_jax.data.sources import Source, Split, open_source
from mogao_jax.errors import DataError, DocumentError
from mogao_jax.sequence.batch import PackedBatch, Sizes, sizes
from mogao_jax.sequence.document import Document
from mogao_jax.sequence.layout import lay_out
from mogao_jax.sequence.packing import budgets, exceeds
from mogao_jax.tokenizer import Tokenizer

NAMED = 20  # of each kind, in the log; the rest is only counted
REASONS = 3  # in the final error
USELESS_RUN = 1000  # records in a row without a single good one

logger = logging.getLogger(__name__)


class Unusable(NamedTuple):
    """Why a record is skipped."""

    reason: str
    over_long: bool = False


class Prepared(NamedTuple):
    """A laid-out document, exact sizes."""

    batch: PackedBatch
    size: Sizes


@dataclasses.dataclass(frozen=True, eq=False)
class Preparer:
    """Reads, lays out and, where config says so, cuts documents. The same draw gives the same.

    Attributes:
      config, tokenizer: of the run.
      names, settings, sources: the sources with a place in the config, in its order; a draw's
        `source` counts in these.
      context: FULL, IMAGE_ONLY or EMPTY puts every target image into that context.
      encoded: what the encoders made of the images, where that was computed beforehand.
    """

    config: MogaoConfig
    tokenizer: Tokenizer
    names: tuple[str, ...]
    settings: tuple[SourceConfig, ...]
    sources: tuple[Source, ...]
    context: int | None = None
    encoded: EncodedImages | None = None

    def __deepcopy__(self, memo: dict) -> Preparer:
        return self  # immutable

    def document(self, draw: Draw) -> Document:
        """Raises DocumentError, naming the source."""
        try:
            return self.sources[draw.source][draw.record]
        except DocumentError as e:
            raise DocumentError(f"{self.names[draw.source]}: {e}") from None

    def lay_out(self, document: Document, draw: Draw) -> PackedBatch:
        """Raises DocumentError, naming the source and the document."""
        config, settings = self.config, self.settings[draw.source]
        try:
            return lay_out(
                document,
                tokenizer=self.tokenizer,
                config=config,
                rng=np.random.default_rng([config.seed, draw.source, draw.number]),
                source=draw.source,
                ntp_weight=settings.ntp_weight,
                flow_weight=settings.flow_weight,
                context=self.context,
            )
        except DocumentError as e:
            name, reason = self.names[draw.source], str(e)
            named = "" if document.id in reason else f"document {document.id!r}: "
            raise DocumentError(f"{name}: {named}{reason}") from None

    def draws(self, shard: int = 0, num_shards: int = 1) -> grain.MapDataset:
        """An endless MapDataset of Draws from the mixture, or a shard of it."""
        return make_mixture(
            [len(source) for source in self.sources],
            [settings.weight for settings in self.settings],
            seed=self.config.seed,
            shard=shard,
            num_shards=num_shards,
        )

    def __call__(self, draw: Draw) -> Prepared | Unusable:
        try:
            document = self.document(draw)
            batch = self.lay_out(document, draw)
        except DocumentError as e:
            return Unusable(str(e))
        limits = budgets(self.config.packing)
        problem = exceeds(sizes(batch), limits)
        if problem is None:
            return self._prepared(batch, document)
        reason = f"{self.names[draw.source]}: document {document.id!r} {problem}"
        if self.config.packing.over_long == "cut":
            return self._cut(document, draw) or Unusable(f"{reason}, even when cut", True)
        return Unusable(reason, over_long=True)

    def _cut(self, document: Document, draw: Draw) -> Prepared | None:
        """The longest beginning, in whole items, that fits and still has something to learn."""
        limits = budgets(self.config.packing)
        for end in range(len(document.items) - 1, 0, -1):
            try:
                shorter = Document(document.items[:end], id=document.id, complete=False)
                batch = self.lay_out(shorter, draw)
            except DocumentError:  # nothing is left to learn, or only empty texts
                return None
            if exceeds(sizes(batch), limits) is None:
                return self._prepared(batch, document)
        return None

    def _prepared(self, batch: PackedBatch, document: Document) -> Prepared:
        if self.encoded is not None:
            batch = self.encoded.attach(batch, document.id)
        return Prepared(batch, sizes(batch))


def make_preparer(
    config: MogaoConfig, tokenizer: Tokenizer, split: Split, context: int | None = None
) -> Preparer:
    """Opens all sources of weight above 0, and the images encoded beforehand if there are any.

    Raises:
      DataError: naming the source that is missing or empty.
    """
    used = list(config.data.sources.items())
    return Preparer(
        config=config,
        tokenizer=tokenizer,
        names=tuple(name for name, _ in used),
        settings=tuple(settings for _, settings in used),
        sources=tuple(
            open_source(
                name,
                settings,
                seed=config.seed,
                split=split,
                images=config.images,
            )
            if settings.weight > 0
            else ()
            for name, settings in used
        ),
        context=context,
        encoded=open_encoded(config.data.encoded) if config.data.encoded else None,
    )


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
