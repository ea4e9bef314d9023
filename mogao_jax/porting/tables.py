"""Key tables: which tensor of a file is which of ours. A table is a list of rules, and no code.

`match` takes a table, what a file holds and what is wanted, and accounts for every key on both
sides: one that is unmatched, matched twice, missing or of the wrong shape is an error that lists
them all.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from mogao_jax.errors import CheckpointError
from mogao_jax.porting.transforms import SAME, Shape, Transform

_INDEX = "{i}"  # a layer's number in a pattern


class Rule(NamedTuple):
    """One line of a table.

    Attributes:
      theirs: the key in the file; may hold `{i}`, a layer's number.
      ours: our name (see `slots.py`), with the same `{i}`; None: known, and not needed.
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


def match(
    table: Sequence[Rule],
    theirs: Mapping[str, Shape],
    ours: Mapping[str, Shape],
    *,
    place: str,
    allow_missing: Sequence[str] = (),
    longer: Iterable[str] = (),
) -> Plan:
    """Pairs the tensors of a file with ours.

    Args:
      table: the format's rules.
      theirs: key -> shape of everything in the file.
      ours: name -> shape of everything that the file is to fill.
      place: the file or folder, for the message.
      allow_missing: shell patterns of keys of the file (or of our names) that may be absent.
      longer: our names that may have more rows than the file's tensor (a larger vocabulary).
    Raises:
      CheckpointError: listing every key that is unmatched, matched twice, missing or of the
        wrong shape; or a pattern of `allow_missing` that nothing needs.
    """
    rules = _Side((rule.theirs, rule) for rule in table)
    problems: list[str] = []
    pairs: list[Pair] = []
    left: list[str] = []
    unmatched: list[str] = []
    for key in theirs:
        found = rules.find(key)
        names = [rule.ours.replace(_INDEX, i) for rule, i in found if rule.ours is not None]
        if len(found) > 1:
            problems.append(f"{key} is matched twice, by {_and(rule.theirs for rule, _ in found)}")
        elif not found or (names and names[0] not in ours):
            unmatched.append(key)
        elif not names:
            left.append(key)
        else:
            pairs.append(Pair(key, names[0], found[0][0].transform))
    problems += [f"{keys} is not expected" for keys in compress(unmatched)]
    problems += _filled_twice(pairs)
    filled = {pair.name for pair in pairs}
    absent, missing, unused = _absent(table, ours, filled, allow_missing)
    problems += [f"{keys} is missing" for keys in compress(absent)]
    problems += [f"nothing is missing that --allow-missing {p!r} names" for p in unused]
    problems += _wrong_shapes(pairs, theirs, ours, set(longer))
    if problems:
        raise CheckpointError(
            f"{place} does not fit the config, {len(problems)} problem(s): {'; '.join(problems)}. "
            "Check that the files and the config's widths and depths belong together."
        )
    return Plan(pairs, missing, left)


def compress(keys: Iterable[str]) -> list[str]:
    """Keys that differ in one layer number as one: "layers.{0-35}.norm.weight"; order kept."""
    groups: dict[tuple[str, str], list[int]] = {}
    for key in keys:
        head, number, tail = _first_number(key)
        groups.setdefault((head, tail), []).append(number)
    return [_joined(head, numbers, tail) for (head, tail), numbers in groups.items()]


def invert(table: Sequence[Rule], names: Iterable[str]) -> list[Pair]:
    """The pairs that carry our names back into the file's keys.

    Raises:
      CheckpointError: a name that the table does not have.
    """
    rules = _Side((rule.ours, rule) for rule in table if rule.ours is not None)
    pairs, unknown = [], []
    for name in names:
        found = rules.find(name)
        if found:
            rule, index = found[0]
            pairs.append(Pair(rule.theirs.replace(_INDEX, index), name, rule.transform))
        else:
            unknown.append(name)
    if unknown:
        raise CheckpointError(
            f"this format has no place for {'; '.join(compress(unknown))}; export another part."
        )
    return pairs


# ---------------------------------------------------------------------------------------- helpers


class _Side:
    """The patterns of one side of a table, for looking names up."""

    def __init__(self, rules: Iterable[tuple[str, Rule]]):
        self._exact: dict[str, list[Rule]] = {}
        self._patterns: list[tuple[re.Pattern[str], Rule]] = []
        for text, rule in rules:
            if _INDEX in text:
                text = re.escape(text).replace(re.escape(_INDEX), "(0|[1-9][0-9]*)")
                self._patterns.append((re.compile(text), rule))
            else:
                self._exact.setdefault(text, []).append(rule)

    def find(self, name: str) -> list[tuple[Rule, str]]:
        """(rule, layer number or "") of every rule that has the name on this side."""
        found = [(rule, "") for rule in self._exact.get(name, ())]
        for pattern, rule in self._patterns:
            hit = pattern.fullmatch(name)
            if hit:
                found.append((rule, hit[1]))
        return found


def _filled_twice(pairs: Sequence[Pair]) -> list[str]:
    keys: dict[str, list[str]] = {}
    for pair in pairs:
        keys.setdefault(pair.name, []).append(pair.key)
    return [
        f"parameter {name} is matched twice, by {_and(found)}"
        for name, found in keys.items()
        if len(found) > 1
    ]


def _absent(
    table: Sequence[Rule], ours: Mapping[str, Shape], filled: set[str], allowed: Sequence[str]
) -> tuple[list[str], list[str], list[str]]:
    """(keys that are missing, our names that may be, patterns that nothing needed)."""
    rules = _Side((rule.ours, rule) for rule in table if rule.ours is not None)
    absent: list[str] = []
    missing: list[str] = []
    used: set[str] = set()
    for name in ours:
        if name in filled:
            continue
        found = rules.find(name)
        key = f"parameter {name}"
        if found:
            key = found[0][0].theirs.replace(_INDEX, found[0][1])
        hits = [p for p in allowed if fnmatch.fnmatch(key, p) or fnmatch.fnmatch(name, p)]
        used.update(hits)
        (missing if hits else absent).append(name if hits else key)
    return absent, missing, [p for p in allowed if p not in used]


def _wrong_shapes(
    pairs: Sequence[Pair], theirs: Mapping[str, Shape], ours: Mapping[str, Shape], longer: set[str]
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


def _and(parts: Iterable[str]) -> str:
    return " and ".join(parts)


def _first_number(key: str) -> tuple[str, int, str]:
    """(before, number or -1, after) of the first part of a dotted name that is a number."""
    hit = re.search(r"(?<=\.)(0|[1-9][0-9]*)(?=\.)", key)
    return (key[: hit.start()], int(hit[0]), key[hit.end() :]) if hit else (key, -1, "")


def _joined(head: str, numbers: list[int], tail: str) -> str:
    if numbers == [-1]:
        return head
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    text = ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)
    return f"{head}{text}{tail}" if len(numbers) == 1 else f"{head}{{{text}}}{tail}"
