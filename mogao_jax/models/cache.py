"""The KV cache of sampling: its parts, as the layers see it, and as a pool of rows.

A row of the cache holds one history in two parts, as a training row does: und (text and ViT
tokens) and clean (VAE tokens of finished images). Noised tokens are never kept. Each part is an
array of fixed capacity S. The caller names the place of each new token; its metadata is written
with it and decides who reads it (sequence/masking.py). Unwritten places have segment 0, which is
padding that nobody reads.

A batch's cache is a pool, with a row per request and guidance context. A program works on some of
its rows (those that write text, or all contexts of an image): it takes them out, computes, and
puts them back. Rows that stand for padding lie beyond the pool: taken, they are empty; put back,
they are dropped.

Axes: R rows of the pool, B rows of a program, L new tokens, S capacity, K key/value heads, H
head_dim.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mogao_jax.config.schema import ModelConfig
from mogao_jax.ops.attention.parts import Parts
from mogao_jax.sequence.masking import TokenMeta


class PartCache(NamedTuple):
    """One part of a cache, which is `Parts(und=PartCache, clean=PartCache)`.

    Keys and values are a tuple of arrays [B, S, K, H], one per layer; with `scan_layers`, a single
    array [layers, B, S, K, H] to loop over.
    """

    keys: Any
    values: Any
    meta: TokenMeta  # int32[B, S] each


class LayerCache(NamedTuple):
    """One layer's part of the cache: arrays [B, S, K, H] per part, None for an absent part."""

    keys: Parts
    values: Parts


class Places(NamedTuple):
    """Per-call cache arguments shared by all layers.

    Write positions, and the metadata of all cached tokens, the new ones included.
    """

    destination: Parts  # int32[B, L] per part; a place outside of 0..S-1 writes nothing
    meta: Parts  # TokenMeta of int32[B, S] per part


def write(array: jax.Array, new: jax.Array, destination: jax.Array) -> jax.Array:
    """Puts new[B, L, ...] into array[B, S, ...] at destination int32[B, L].

    Tokens whose destination is S or more (padding) are dropped.
    """
    rows = jnp.arange(array.shape[0])[:, None]
    return array.at[rows, destination].set(new.astype(array.dtype), mode="drop")


def make_places(cache: Parts, new: Parts, destination: Parts) -> Places:
    """Writes the metadata of new tokens into the cache's; layers write their keys and values.

    Args:
      cache: PartCache per part.
      new: TokenMeta of int32[B, L] per part.
      destination: see `Places`; None for a part without new tokens.
    """

    def merge(part: PartCache | None, new: TokenMeta, places: jax.Array | None):
        if part is None or places is None:
            return part and part.meta
        pairs = zip(part.meta, new, strict=True)
        return TokenMeta(*(write(a, b, places) for a, b in pairs))

    meta = (merge(*x) for x in zip(cache[:2], new[:2], destination[:2], strict=True))
    return Places(destination, Parts(*meta))


def extend(
    cache: LayerCache, keys: Parts, values: Parts, destination: Parts
) -> tuple[LayerCache | None, Parts, Parts]:
    """Writes new und and clean tokens into a layer's cache.

    Args:
      keys, values: of the new tokens, [B, L, K, H] per part.
      destination: see `Places`.
    Returns:
      the cache, None if nothing was to be written; and the keys and values that queries read:
      all of the cache, and the new noised tokens.
    """

    def put(kept: Parts, new: Parts) -> Parts:
        parts = zip(kept[:2], new[:2], destination[:2], strict=True)
        return Parts(*(a if places is None else write(a, b, places) for a, b, places in parts))

    written = LayerCache(put(cache.keys, keys), put(cache.values, values))
    is_written = any(places is not None for places in destination)
    return (
        written if is_written else None,
        written.keys._replace(noised=keys.noised),
        written.values._replace(noised=values.noised),
    )


def layer(cache: Parts, index: int | None) -> LayerCache:
    """One layer's arrays; `index` None: those of all layers, stacked, for a loop to run over."""

    def pick(name: str) -> Parts:
        arrays = (p and getattr(p, name) for p in cache)
        return Parts(*(a if a is None or index is None else a[index] for a in arrays))

    return LayerCache(pick("keys"), pick("values"))


def join(cache: Parts, layers: Any, meta: Parts) -> Parts:
    """The inverse of `layer`: the cache with the arrays that the layers returned.

    Args:
      cache: which parts there are.
      layers: a LayerCache per layer in a list, or one of stacked arrays.
      meta: the metadata after writing.
    """

    def part(name: str) -> PartCache | None:
        if getattr(cache, name) is None:
            return None
        if isinstance(layers, LayerCache):
            keys, values = getattr(layers.keys, name), getattr(layers.values, name)
        else:
            keys = tuple(getattr(x.keys, name) for x in layers)
            values = tuple(getattr(x.values, name) for x in layers)
        return PartCache(keys, values, getattr(meta, name))

    return Parts(und=part("und"), clean=part("clean"))


# ----------------------------------------------------------------------------------- pool of rows


def allocate(config: ModelConfig, num_rows: int, capacity: int) -> PartCache | None:
    """An empty part of a cache; None for no capacity."""
    if not capacity:
        return None
    shape = (num_rows, capacity, config.num_kv_heads, config.head_dim)

    def arrays() -> Any:
        if config.scan_layers:
            return jnp.zeros((config.num_layers, *shape), config.dtype)
        return tuple(jnp.zeros(shape, config.dtype) for _ in range(config.num_layers))

    # Every leaf an array of its own: programs overwrite them in place.
    meta = TokenMeta(*(jnp.zeros(shape[:2], jnp.int32) for _ in range(3)))
    return PartCache(arrays(), arrays(), meta)


def grow(part: PartCache | None, config: ModelConfig, num_rows: int, capacity: int):
    """The part with a larger capacity: what is in it stays where it is."""
    if part is None:
        return allocate(config, num_rows, capacity)
    old = part.meta.segment.shape[1]

    def pad(x: jax.Array) -> jax.Array:
        width = [(0, 0)] * x.ndim
        width[_row_axis(x) + 1] = (0, capacity - old)
        return jnp.pad(x, width)

    return jax.tree.map(pad, part)


def capacity_of(part: PartCache | None) -> int:
    return 0 if part is None else part.meta.segment.shape[1]


def _row_axis(x: jax.Array) -> int:
    """Arrays of all layers, stacked, have five axes; one layer's four; metadata two."""
    return 1 if x.ndim == 5 else 0


def take(part: PartCache | None, rows: jax.Array, length: int | None = None) -> PartCache | None:
    """The given rows int32[n] of a part, up to `length` places; zeros for rows beyond the pool."""
    if part is None:
        return None

    def pick(x: jax.Array) -> jax.Array:
        axis = _row_axis(x)
        if length is not None:
            x = jax.lax.slice_in_dim(x, 0, length, axis=axis + 1)
        return jnp.take(x, rows, axis=axis, mode="fill", fill_value=0)

    return jax.tree.map(pick, part)


def put(part: PartCache | None, rows: jax.Array, changed: PartCache | None) -> PartCache | None:
    """The part with rows int32[n] replaced; rows beyond the pool are dropped."""
    if part is None or changed is None:
        return part

    def replace(x: jax.Array, y: jax.Array) -> jax.Array:
        index = (slice(None),) * _row_axis(x) + (rows,)
        return x.at[index].set(y, mode="drop")

    return jax.tree.map(replace, part, changed)


def num_bytes(cache: Parts) -> int:
    """Memory of a cache, in bytes."""
    return sum(x.nbytes for x in jax.tree.leaves(cache))
