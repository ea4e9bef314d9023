"""Key tables: which tensor of a file is which parameter of ours. A table is a list of rules.

`match` takes a table, what a file holds and what is wanted, and accounts for every key on both
sides: one that is unmatched, matched twice, missing or of the wrong shape is an error that lists
them all. No weight is ever left unloaded silently.

Transforms only reorder elements, so a round trip gives back every bit.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import einops
import numpy as np

from mogao_jax.errors import CheckpointError

Shape = tuple[int, ...]
_INDEX = "{i}"  # a layer's number in a pattern
_REMEDY = "Check that the files and the config's widths and depths belong together."


class Transform(NamedTuple):
    """A reordering of elements in einops' notation; results may be views.

    Attributes:
      their_axes, our_axes: of the file's tensor and of ours.
      sizes: of axes whose size our shape does not tell.
    """

    their_axes: str
    our_axes: str
    sizes: Mapping[str, int] = {}

    @property
    def by_rows(self) -> bool:
        """Whether rows of the file's tensor are rows of ours, so that it may be read in parts."""
        return self.their_axes == self.our_axes

    def theirs(self, ours: Shape) -> Shape:
        """The shape that the file's tensor must have, for our shape."""
        if self.by_rows:
            return ours
        sizes = {"1": 1, **self._sizes(ours)}
        groups = re.findall(r"\(.*?\)|\S+", self.their_axes)
        return tuple(math.prod(sizes[n] for n in group.strip("()").split()) for group in groups)

    def forward(self, x: np.ndarray, ours: Shape) -> np.ndarray:
        """The file's tensor in our shape."""
        if self.by_rows:
            return x
        return einops.rearrange(x, f"{self.their_axes} -> {self.our_axes}", **self._sizes(ours))

    def backward(self, x: np.ndarray) -> np.ndarray:
        """Our tensor as the file has it."""
        if self.by_rows:
            return x
        return einops.rearrange(x, f"{self.our_axes} -> {self.their_axes}", **self.sizes)

    def _sizes(self, ours: Shape) -> dict[str, int]:
        if "(" in self.our_axes:
            return {**self.sizes, self.our_axes.split()[-1]: ours[-1]}
        return dict(zip(self.our_axes.split(), ours, strict=True))


# PyTorch keeps a linear layer's weight as [out, in] and a convolution's as [out, in, h, w].
SAME = Transform("...", "...")
LINEAR = Transform("o i", "i o")
INTO_HEADS = Transform("(n h) d", "d n h")
HEADS_BIAS = Transform("(n h)", "n h")
OUT_OF_HEADS = Transform("d (n h)", "n h d")
CONV = Transform("o i h w", "h w i o")
POINTWISE = Transform("o i 1 1", "i o")  # a 1x1 convolution that is a linear layer here


def patch_embedding(frames: int, side: int, channels: int = 3) -> Transform:
    """A 3-D convolution as large as its patch, which is a linear layer here."""
    sizes = {"c": channels, "t": frames, "h": side, "w": side}
    return Transform("d c t h w", "(c t h w) d", sizes)


class Rule(NamedTuple):
    """One line of a table.

    Attributes:
      theirs: the key in the file; may hold `{i}`, a layer's number.
      ours: our name, with the same `{i}`; None: known, and not needed.
      transform: theirs -> ours.
    """

    theirs: str
    ours: str | None
    transform: Transform = SAME


class Pair(NamedTuple):
    """One tensor's way: `key` of the file <-> our `name`."""

    key: str
    name: str
    transform: Transform


class Plan(NamedTuple):
    """What `match` found.

    Attributes:
      pairs: one for each of our names that the file fills.
      missing: our names that it does not fill, as allowed.
      left: keys of the file that a rule says are not needed.
    """

    pairs: list[Pair]
    missing: list[str]
    left: list[str]


def identity(names: Iterable[str]) -> tuple[Rule, ...]:
    """The table of a file in our own layout: every parameter under its own name."""
    return tuple(Rule(name, name) for name in names)


def match(
    table: Sequence[Rule],
    theirs: Mapping[str, Shape],
    ours: Mapping[str, Shape],
    *,
    place: str,
    allow_missing: Sequence[str] = (),
    longer: Sequence[str] = (),
    remedy: str = _REMEDY,
) -> Plan:
    """Pairs the tensors of a file with ours.

    Args:
      table: the format's rules.
      theirs: key -> shape of everything in the file.
      ours: name -> shape of everything that the file is to fill.
      place: the file or folder, for the message.
      allow_missing: shell patterns of keys of the file (or of our names) that may be absent.
      longer: our names that may have more rows than the file's tensor (a larger vocabulary).
      remedy: the message's last sentence.
    Raises:
      CheckpointError: listing every key that is unmatched, matched twice, missing or of the
        wrong shape; or a pattern of `allow_missing` that nothing needs.
    """
    pairs, left, problems = _pair(table, theirs, ours)
    filled = {pair.name for pair in pairs}
    unfilled = [name for name in ours if name not in filled]
    absent, missing, unused = _unfilled(table, unfilled, allow_missing)
    problems += [f"{keys} is missing" for keys in compress(absent)]
    problems += [f"nothing is missing that --allow-missing {p!r} names" for p in unused]
    problems += _wrong_shapes(pairs, theirs, ours, longer)
    if problems:
        raise CheckpointError(
            f"{place} does not fit the config, {len(problems)} problem(s): {'; '.join(problems)}. "
            + remedy
        )
    return Plan(pairs, missing, left)


def invert(table: Sequence[Rule], names: Iterable[str]) -> list[Pair]:
    """The pairs that carry our names back into the file's keys.

    Raises:
      CheckpointError: a name that the table does not have.
    """
    rules = _Lookup(table, by_ours=True)
    found = {name: rules.find(name) for name in names}
    unknown = [name for name, hits in found.items() if not hits]
    if unknown:
        raise CheckpointError(
            f"this format has no place for {'; '.join(compress(unknown))}; export another part."
        )
    return [Pair(str(key), name, rule.transform) for name, ((rule, key), *_) in found.items()]


def compress(keys: Iterable[str]) -> list[str]:
    """Keys that differ in one layer number as one: "layers.{0-35}.norm.weight"; order kept."""
    groups: dict[tuple[str, str], list[int]] = {}
    for key in keys:
        hit = re.search(r"(?<=\.)(0|[1-9][0-9]*)(?=\.)", key)
        head, tail = (key[: hit.start()], key[hit.end() :]) if hit else (key, "")
        groups.setdefault((head, tail), []).append(int(hit[0]) if hit else -1)
    return [
        head if numbers == [-1] else f"{head}{_runs(numbers)}{tail}"
        for (head, tail), numbers in groups.items()
    ]


# ---------------------------------------------------------------------------------------- helpers


class _Lookup:
    """The rules of a table by the names of one side."""

    def __init__(self, table: Iterable[Rule], *, by_ours: bool):
        self._exact: dict[str | None, list[tuple[Rule, str | None]]] = {}
        self._patterns: list[tuple[re.Pattern[str], Rule, str | None]] = []
        for rule in table:
            text, other = (rule.ours, rule.theirs) if by_ours else (rule.theirs, rule.ours)
            if text is not None and _INDEX in text:
                text = re.escape(text).replace(re.escape(_INDEX), "(0|[1-9][0-9]*)")
                self._patterns.append((re.compile(text), rule, other))
            else:
                self._exact.setdefault(text, []).append((rule, other))

    def find(self, name: str) -> list[tuple[Rule, str | None]]:
        """(rule, name on the other side) of every rule that has the name on this side."""
        found = list(self._exact.get(name, ()))
        for pattern, rule, other in self._patterns:
            hit = pattern.fullmatch(name)
            if hit:
                found.append((rule, other and other.replace(_INDEX, hit[1])))
        return found


def _pair(
    table: Sequence[Rule], theirs: Iterable[str], ours: Mapping[str, Shape]
) -> tuple[list[Pair], list[str], list[str]]:
    """(pairs, keys that are not needed, problems)."""
    rules = _Lookup(table, by_ours=False)
    pairs: list[Pair] = []
    left: list[str] = []
    unexpected: list[str] = []
    problems: list[str] = []
    for key in theirs:
        found = rules.find(key)
        name = found[0][1] if found else ""
        if len(found) > 1:
            by = " and ".join(rule.theirs for rule, _ in found)
            problems.append(f"{key} is matched twice, by {by}")
        elif name is None:
            left.append(key)
        elif name in ours:
            pairs.append(Pair(key, name, found[0][0].transform))
        else:
            unexpected.append(key)
    problems += [f"{keys} is not expected" for keys in compress(unexpected)]
    return pairs, left, problems + _filled_twice(pairs)


def _filled_twice(pairs: Iterable[Pair]) -> list[str]:
    keys: dict[str, list[str]] = {}
    for pair in pairs:
        keys.setdefault(pair.name, []).append(pair.key)
    return [
        f"parameter {name} is matched twice, by {' and '.join(found)}"
        for name, found in keys.items()
        if len(found) > 1
    ]


def _unfilled(
    table: Sequence[Rule], names: Iterable[str], allowed: Sequence[str]
) -> tuple[list[str], list[str], list[str]]:
    """(keys that are missing, our names that may be, patterns that nothing needed)."""
    rules = _Lookup(table, by_ours=True)
    absent: list[str] = []
    missing: list[str] = []
    used: set[str] = set()
    for name in names:
        found = rules.find(name)
        key = str(found[0][1]) if found else f"parameter {name}"
        hits = {p for p in allowed if fnmatch.fnmatch(key, p) or fnmatch.fnmatch(name, p)}
        used |= hits
        (missing if hits else absent).append(name if hits else key)
    return absent, missing, [p for p in allowed if p not in used]


def _wrong_shapes(
    pairs: Sequence[Pair],
    theirs: Mapping[str, Shape],
    ours: Mapping[str, Shape],
    longer: Sequence[str],
) -> list[str]:
    wrong: dict[tuple[Shape, Shape], list[str]] = {}
    for key, name, transform in pairs:
        have, want = tuple(theirs[key]), tuple(transform.theirs(ours[name]))
        grows = name in longer and have[1:] == want[1:] and have[:1] < want[:1]
        if have != want and not grows:
            wrong.setdefault((have, want), []).append(key)
    return [
        f"{keys} has shape {list(have)}, the config wants {list(want)}"
        for (have, want), found in wrong.items()
        for keys in compress(found)
    ]


def _runs(numbers: list[int]) -> str:
    """[0, 1, 3] -> "{0-1,3}"; a single number stays bare."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    text = ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)
    return text if len(numbers) == 1 else f"{{{text}}}"
