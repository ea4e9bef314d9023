"""An integer checksum of arrays on devices, to notice files that were damaged on disk.

A restored checkpoint with flipped bits looks like any other. The checksum is a wrap-around sum
of every element's bit pattern times an odd number made from its position: integer sums do not
depend on their order, so that it is the same on every mesh, and as odd numbers are invertible
modulo 2^32, no change of a single element goes unnoticed.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

_MULTIPLIERS = (0x9E3779B1, 0x85EBCA77)  # odd, with mixed bits (golden ratio; xxHash's prime 2)


def fingerprint(tree: Any) -> dict[str, str]:
    """Checksums of a tree of arrays.

    Args:
      tree: arrays of 1, 2 or 4 bytes an element, sharded in any way.
    Returns:
      {path: 16 hexadecimal digits}, paths as in `path_name`, so that a subtree can be checked
      by itself and a message can say which array is damaged.
    """
    # One small program per shape, not one large one for the tree: it compiles much sooner.
    checksums = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        # One at a time: simulated CPU devices share a pool of threads, and programs that all
        # wait for an all-reduce at once can fill it, and wait for ever.
        pair = jax.device_get(jax.block_until_ready(_array_sums(leaf)))
        checksums[path_name(path)] = "".join(f"{int(s):08x}" for s in pair)
    return checksums


def path_name(path: tuple[Any, ...]) -> str:
    """'params/block/kernel': the same for dicts, attributes and tuples."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


@jax.jit
def _array_sums(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    bits = x.astype(unsigned) if x.dtype == jnp.bool_ else _bitcast(x, unsigned)
    bits = bits.astype(jnp.uint32)
    # The position is put together from one iota per axis: a reshape would gather a sharded array.
    position = jnp.zeros(x.shape, jnp.uint32)
    for axis in range(x.ndim):
        stride = math.prod(x.shape[axis + 1 :]) % 2**32
        iota = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        position = position + iota * jnp.uint32(stride)
    first, second = (jnp.sum(bits * _odd(position, m), dtype=jnp.uint32) for m in _MULTIPLIERS)
    return first, second


def _bitcast(x: jax.Array, dtype: Any) -> jax.Array:
    return x if x.dtype == dtype else jax.lax.bitcast_convert_type(x, dtype)


def _odd(position: jax.Array, multiplier: int) -> jax.Array:
    """A number with mixed bits, always odd, that belongs to the position."""
    mixed = (position + jnp.uint32(1)) * jnp.uint32(multiplier)
    mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(multiplier)
    return mixed | jnp.uint32(1)
