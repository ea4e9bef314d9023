"""An integer checksum of arrays on devices, to notice files that were damaged on disk.

A restored checkpoint with flipped bits looks like any other. The checksum is a wrap-around sum
of every element's bit pattern times an odd number made from its position: integer sums do not
depend on their order, so that it is the same on every mesh, and as odd numbers are invertible
modulo 2^32, no change of a single element goes unnoticed.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_MULTIPLIERS = (0x9E3779B1, 0x85EBCA77)  # odd, with mixed bits (golden ratio; xxHash's prime 2)
PIECE = 2**20  # elements that a running fingerprint takes at a time


def fingerprint(tree: Any) -> dict[str, str]:
    """Checksums of a tree of arrays of 1, 2 or 4 bytes an element, sharded in any way.

    {path: 16 hexadecimal digits}, paths as in `path_name`, so that a subtree can be checked by
    itself and a message can say which array is damaged.
    """
    # One small program per shape, not one large one for the tree: it compiles much sooner.
    checksums = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        # One at a time: simulated CPU devices share a pool of threads, and programs that all
        # wait for an all-reduce at once can fill it, and wait for ever.
        pair = jax.device_get(jax.block_until_ready(_array_sums(leaf)))
        checksums[path_name(path)] = "".join(f"{int(s):08x}" for s in pair)
    return checksums


class RunningFingerprint:
    """The checksum of one array that is only ever seen in parts, in any order; on the host."""

    def __init__(self) -> None:
        self._sums = [0, 0]

    def add(self, part: np.ndarray, start: int) -> None:
        """Adds a chunk that starts at flat index `start`: whole rows of the first axis."""
        unsigned = np.dtype(f"uint{8 * part.dtype.itemsize}")
        bits = np.ascontiguousarray(part).reshape(-1).view(unsigned)
        for i in range(0, bits.size, PIECE):
            piece = bits[i : i + PIECE]
            # One program for whole pieces, none for what is left: small arrays compile nothing.
            sums = _device_sums if piece.size == PIECE else _host_sums
            pair = sums(piece, np.uint32((start + i) % 2**32))
            self._sums = [(a + int(b)) % 2**32 for a, b in zip(self._sums, pair, strict=True)]

    def hexdigest(self) -> str:
        """As in `fingerprint`."""
        return "".join(f"{s:08x}" for s in self._sums)


def path_name(path: tuple[Any, ...]) -> str:
    """'params/block/kernel': the same for dicts, attributes and tuples."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


@jax.jit
def _array_sums(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    bits = x.astype(unsigned) if x.dtype == bool else jax.lax.bitcast_convert_type(x, unsigned)
    bits = bits.astype(jnp.uint32)
    # The position is put together from one iota per axis: a reshape would gather a sharded array.
    position = jnp.zeros(x.shape, jnp.uint32)
    for axis in range(x.ndim):
        stride = math.prod(x.shape[axis + 1 :]) % 2**32
        iota = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        position = position + iota * jnp.uint32(stride)
    first, second = (jnp.sum(bits * _odd(position, m), dtype=jnp.uint32) for m in _MULTIPLIERS)
    return first, second


def _flat_sums(xp: Any, bits: Any, start: Any) -> tuple[Any, Any]:
    """As `_array_sums`, of the elements from flat index `start` on, with `xp` jnp or np."""
    bits = bits.astype(np.uint32)
    position = xp.arange(bits.size, dtype=np.uint32) + start
    first, second = (xp.sum(bits * _odd(position, m), dtype=np.uint32) for m in _MULTIPLIERS)
    return first, second


_device_sums = jax.jit(functools.partial(_flat_sums, jnp))
_host_sums = functools.partial(_flat_sums, np)


def _odd(position: Any, multiplier: int) -> Any:
    """Hashes a flat index to an odd uint32 (jax or numpy)."""
    mixed = (position + np.uint32(1)) * np.uint32(multiplier)
    mixed = (mixed ^ (mixed >> np.uint32(15))) * np.uint32(multiplier)
    return mixed | np.uint32(1)
