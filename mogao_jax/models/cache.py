"""Keys and values of what has been computed: a transformer's memory while sampling.

A row of the cache holds one history in two parts, as a training row does: und (text and ViT
tokens) and clean (VAE tokens of finished pictures). Noised tokens are never kept. Each part is an
array of fixed capacity S; a token is written to the place that the caller names for it, with its
metadata, and what stands in the metadata decides who reads it (sequence/masking.py). Places that
nothing was written to have segment 0 there: padding, which nobody reads.

Axes: B rows, L new tokens, S capacity, K key/value heads, H head_dim.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mogao_jax.ops.attention.parts import Parts
from mogao_jax.sequence.masking import TokenMeta


class PartCache(NamedTuple):
    """One part of the cache. `Parts(und=PartCache, clean=PartCache)` is a whole one.

    Keys and values are one array [B, S, K, H] per layer, in a tuple; with `scan_layers`, where
    a loop runs over them, a single array [layers, B, S, K, H].
    """

    keys: Any
    values: Any
    meta: TokenMeta  # int32[B, S] each


class LayerCache(NamedTuple):
    """What one layer sees of the cache: arrays [B, S, K, H] per part, None for an absent part."""

    keys: Parts
    values: Parts


class Places(NamedTuple):
    """What is the same for all layers: where new tokens go, and who everything in it is."""

    destination: Parts  # int32[B, L] per part; a place outside of 0..S-1 writes nothing
    meta: Parts  # TokenMeta of int32[B, S] per part, the new tokens included


def write(array: jax.Array, new: jax.Array, destination: jax.Array) -> jax.Array:
    """Puts new[B, L, ...] into array[B, S, ...] at destination int32[B, L].

    Tokens whose destination is S or more (padding) are dropped.
    """
    rows = jnp.arange(array.shape[0])[:, None]
    return array.at[rows, destination].set(new.astype(array.dtype), mode="drop")


def write_meta(meta: TokenMeta, new: TokenMeta, destination: jax.Array) -> TokenMeta:
    """A part's metadata int32[B, S] with that of new tokens int32[B, L] written into it."""
    return TokenMeta(*(write(a, b, destination) for a, b in zip(meta, new, strict=True)))


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
