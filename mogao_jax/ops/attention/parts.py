"""A row in three parts, und | clean | noised, and its layout in blocks.

Parts are cut into blocks of equal size (the last of each part padded with segment 0), and the
blocks of all parts and rows are numbered consecutively. Inside a block, KV heads come first, and
the G query heads that share one are stacked as rows, so that every contraction of a tile (block
of queries x block of keys) is a batch of plain matmuls:

    q     [B * blocks, K, G * block_q, H]
    k, v  [B * blocks, K, block_kv, H]

Axes: B rows of the batch, L tokens of a part, N query heads, K key/value heads, G = N / K, H head
dimension.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mogao_jax.sequence.masking import PADDING_SEGMENT, TokenMeta


class Parts(NamedTuple):
    """One thing (array, TokenMeta, ...) per part of a row; None where the part is absent.

    Training has all three. In sampling, queries are often one part (a text token, a noised
    image), and keys are what the cache holds.
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


def part_lengths(parts: Parts) -> tuple[int, int, int]:
    """Tokens of each part (arrays [B, L, ...] or TokenMeta); 0 for an absent one."""
    und, clean, noised = (0 if p is None else jax.tree.leaves(p)[0].shape[1] for p in parts)
    return und, clean, noised


def join_parts(parts: Parts) -> jax.Array:
    """All tokens of the parts that are present, [B, sum of L, ...]."""
    return jnp.concatenate([p for p in parts if p is not None], axis=1)


def split_parts(
    x: jax.Array, like: Parts, strides: Sequence[int] | None = None, axis: int = 1
) -> Parts:
    """The inverse: x's tokens cut into parts as long as those of `like`, absent ones None.

    Args:
      strides: tokens of x that each part takes, its padding included; default: its length.
      axis: of x that counts tokens.
    """
    lengths = part_lengths(like)
    starts = itertools.accumulate(lengths if strides is None else strides, initial=0)
    before = (slice(None),) * axis
    pieces = zip(like, starts, lengths, strict=False)  # `starts` has the end as well
    return Parts(*(None if p is None else x[(*before, slice(s, s + n))] for p, s, n in pieces))


class Blocks(NamedTuple):
    """How the parts of one side (queries or keys) are cut. All static.

    `lengths` are tokens per part (0 for an absent one), `counts` blocks per part.
    """

    size: int
    lengths: tuple[int, int, int]
    counts: tuple[int, int, int]

    @property
    def total(self) -> int:
        return sum(self.counts)

    @property
    def padded(self) -> tuple[int, ...]:
        """Tokens per part, padding included."""
        return tuple(count * self.size for count in self.counts)

    @property
    def part_of_block(self) -> np.ndarray:
        return np.repeat(np.arange(3), self.counts)


def cut(lengths: tuple[int, int, int], block: int, *, exact: bool = False) -> Blocks:
    """Cuts parts into blocks of `block` tokens.

    Where all parts are shorter than a block, blocks are smaller, unless they must be `exact`.
    """
    longest = max(lengths, default=0)
    rounded = math.ceil(longest / 8) * 8 if longest > 1 else longest
    size = block if exact else max(1, min(block, rounded))
    und, clean, noised = (math.ceil(length / size) for length in lengths)
    return Blocks(size, lengths, (und, clean, noised))


class Static(NamedTuple):
    """What is known of a call while it is traced."""

    queries: Blocks
    keys: Blocks
    kv_heads: int
    groups: int  # query heads per KV head
    text_reads_vae: bool


class Blocked(NamedTuple):
    """The arrays of a call in blocks; metadata int32[B, blocks, size]."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    q_meta: TokenMeta
    k_meta: TokenMeta


def static_of(
    queries: Parts,
    keys: Parts,
    block_q: int,
    block_kv: int,
    text_reads_vae: bool,
    *,
    exact: bool = False,
) -> Static:
    """Cuts the parts of both sides; lengths need not be multiples of the blocks."""
    kv_heads = next(p.shape[2] for p in keys if p is not None)
    heads = next(p.shape[2] for p in queries if p is not None)
    return Static(
        cut(part_lengths(queries), block_q, exact=exact),
        cut(part_lengths(keys), block_kv, exact=exact),
        kv_heads,
        heads // kv_heads,
        text_reads_vae,
    )


def blocked(
    static: Static,
    queries: Parts,
    keys: Parts,
    values: Parts,
    query_meta: Parts,
    key_meta: Parts,
) -> Blocked:
    """Parts [B, L, heads, H] and their metadata in blocks."""
    return Blocked(
        _to_blocks(queries, static.queries, static.kv_heads),
        _to_blocks(keys, static.keys, static.kv_heads),
        _to_blocks(values, static.keys, static.kv_heads),
        blocked_meta(jax.tree.map(jnp.asarray, query_meta), static.queries),
        blocked_meta(jax.tree.map(jnp.asarray, key_meta), static.keys),
    )


def from_blocks(x: jax.Array, blocks: Blocks, like: Parts) -> Parts:
    """Outputs in blocks as parts [B, L, heads, H]; absent and empty parts are as in `like`."""
    rows, kv_heads, _, head_dim = x.shape
    batch = rows // blocks.total
    x = x.reshape(rows, kv_heads, -1, blocks.size, head_dim).transpose(0, 3, 1, 2, 4)
    x = x.reshape(batch, blocks.total * blocks.size, -1, head_dim)
    return split_parts(x, like, blocks.padded)


def _to_blocks(parts: Parts, blocks: Blocks, kv_heads: int) -> jax.Array:
    pieces = []
    for part, length, padded in zip(parts, blocks.lengths, blocks.padded, strict=True):
        if length:
            pieces.append(jnp.pad(part, ((0, 0), (0, padded - length), (0, 0), (0, 0))))
    x = jnp.concatenate(pieces, axis=1)
    head_dim = x.shape[-1]
    x = x.reshape(x.shape[0] * blocks.total, blocks.size, kv_heads, -1, head_dim)
    return x.transpose(0, 2, 3, 1, 4).reshape(x.shape[0], kv_heads, -1, head_dim)


def blocked_meta(meta: Parts, blocks: Blocks) -> TokenMeta:
    """Metadata of all parts, padded and cut: int32[B, blocks, size] each.

    In numpy if it is on the host (reports, tests), else in jax.numpy.
    """
    xp: Any = np if isinstance(jax.tree.leaves(meta)[0], np.ndarray) else jnp
    columns = []
    for field in range(3):
        pieces = []
        for part, length, padded in zip(meta, blocks.lengths, blocks.padded, strict=True):
            if length:
                fill = PADDING_SEGMENT if field == 0 else 0
                width = ((0, 0), (0, padded - length))
                pieces.append(xp.pad(part[field], width, constant_values=fill))
        joined = xp.concatenate(pieces, axis=1)
        columns.append(joined.reshape(joined.shape[0], blocks.total, blocks.size))
    return TokenMeta(*columns)
