"""The KV cache of sampling, as the layers see it.

A row of the cache holds one history in two parts, as a training row does: und (text and ViT
tokens) and clean (VAE tokens of finished images). Noised tokens are never kept. Each part is an
array of fixed capacity S. The caller names the place of each new token; its metadata is written
with it and decides who reads it (sequence/masking.py). Unwritten places have segment 0, which is
padding that nobody reads.

Axes: B rows, L new tokens, S capacity, K key/value heads, H head_dim.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

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

    def pick(arrays):
        return arrays if index is None else arrays[index]

    return LayerCache(
        Parts(*(None if p is None else pick(p.keys) for p in cache)),
        Parts(*(None if p is None else pick(p.values) for p in cache)),
    )


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
