"""Random rows in ECTF form, and where a compiled program communicates."""

from __future__ import annotations

import re

import numpy as np
import pytest

from mogao_jax.ops.attention.parts import Parts
from mogao_jax.sequence.masking import TEXT, VAE_CLEAN, VAE_NOISED, VIT, TokenMeta

KINDS = (TEXT, VAE_CLEAN, VAE_NOISED)


def _document(rng, segment, und, clean, noised):
    """Adds one random document (some are a single token) to the three parts."""
    order = 0
    for _ in range(rng.choice([1, 1, 2, 3, 5])):
        if rng.random() < 0.6:
            for _ in range(rng.choice([1, 1, 3, 6])):
                und.append((segment, order, TEXT))
                order += 1
            continue
        size = int(rng.integers(1, 7))
        if rng.random() < 0.7:
            noised.extend([(segment, order, VAE_NOISED)] * size)
        if rng.random() < 0.7:
            und.extend([(segment, order, VIT)] * int(rng.integers(1, 5)))
        if rng.random() < 0.7:
            clean.extend([(segment, order, VAE_CLEAN)] * size)
        order += 1


def _row(rng, lengths):
    parts, segment = ([], [], []), 0
    while True:
        trial = tuple(list(p) for p in parts)
        _document(rng, segment + 1, *trial)
        if any(len(p) > size for p, size in zip(trial, lengths, strict=True)):
            break
        parts, segment = trial, segment + 1
    return [
        np.array(p + [(0, 0, kind)] * (size - len(p)), np.int32).reshape(size, 3)
        for p, size, kind in zip(parts, lengths, KINDS, strict=True)
    ]


@pytest.fixture(scope="session")
def random_packing():
    """(seed, batch, (und, clean, noised) lengths) -> Parts of TokenMeta int32[B, L], padded.

    Documents are added until one does not fit; an empty part forces documents without it.
    """

    def make(seed: int, batch: int, lengths: tuple[int, int, int]) -> Parts:
        rng = np.random.default_rng(seed)
        rows = []
        for _ in range(batch):
            best = max((_row(rng, lengths) for _ in range(20)), key=lambda r: r[0][:, 0].max())
            rows.append(best)
        stacked = [np.stack(part) for part in zip(*rows, strict=True)]
        return Parts(*(TokenMeta(p[..., 0], p[..., 1], p[..., 2]) for p in stacked))

    return make


@pytest.fixture(scope="session")
def collectives():
    """(text of a compiled program) -> {(operation, whether in the entry computation)}."""

    def find(text: str) -> set[tuple[str, bool]]:
        found, in_entry = set(), False
        for line in text.splitlines():
            if line and not line[0].isspace():
                in_entry = line.startswith("ENTRY")
            match = re.search(
                r" (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)"
                r"(?:-start)?\(",
                line,
            )
            if match:
                found.add((match[1], in_entry))
        return found

    return find
