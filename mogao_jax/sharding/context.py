"""Context parallelism: which of a row's tokens each "context" device holds.

`balanced` orders the tokens of a row, once per step, so that all devices have as much attention to
compute. `join_gen` and `split_gen` go between the gen stream and its two parts in such a way that
no token moves to another device.

Axes: B rows, L tokens (C clean, N noised).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mogao_jax.sharding.ambient import LENGTH_AXES, axis_size
from mogao_jax.sharding.rules import constrain


def balanced(stream: Any) -> Any:
    """Reorders axis 1 of all arrays [B, L, ...] of a tree, alike.

    Causal attention reads ever more towards the end of a document: in order, the first device
    would be half idle in a long one. With n devices, each gets two stretches of 2n: the i-th and
    the i-th from the end. The order of tokens is free, since the mask is a predicate on their
    metadata and losses are sums over tokens. Arrays stay as they are where the mesh in context
    does not shard rows, or 2n does not divide L.
    """
    devices = axis_size(LENGTH_AXES)
    length = jax.tree.leaves(stream)[0].shape[1]
    if devices == 1 or not length or length % (2 * devices):
        return stream
    order = balanced_order(length, devices)
    return jax.tree.map(lambda x: x[:, order], stream)


def balanced_order(length: int, devices: int) -> np.ndarray:
    """The token at each place, int[length]; device i holds the i-th nth of the places."""
    stretches = np.arange(length).reshape(2 * devices, -1)
    return np.stack([stretches[:devices], stretches[::-1][:devices]], 1).reshape(-1)


def join_gen(clean: jax.Array | None, noised: jax.Array | None) -> jax.Array:
    """The gen stream of clean and noised tokens, or anything that is per token of it.

    Where "context" shards rows, each device has its own share of both parts, and the stream is
    the shares' concatenation, device by device. Elsewhere it is clean tokens, then noised ones.

    Args:
      clean: [B, C, ...]; None if absent.
      noised: [B, N, ...]; None if absent, but not both.
    Returns:
      [B, C + N, ...]
    """
    present = [x for x in (clean, noised) if x is not None]
    if len(present) == 1:
        return present[0]
    shares = _shares(*(x.shape[1] for x in present))
    if shares == 1:
        return jnp.concatenate(present, 1)
    return _whole(jnp.concatenate([_cut(x, shares) for x in present], 2))


def split_gen(gen: jax.Array, num_clean: int) -> tuple[jax.Array, jax.Array]:
    """The inverse: [B, C + N, ...] -> [B, C, ...], [B, N, ...]; either may be of length zero."""
    num_noised = gen.shape[1] - num_clean
    shares = _shares(num_clean, num_noised)
    if shares == 1 or not num_clean or not num_noised:
        return gen[:, :num_clean], gen[:, num_clean:]
    cut = _cut(gen, shares)
    border = num_clean // shares
    return _whole(cut[:, :, :border]), _whole(cut[:, :, border:])


def _shares(*lengths: int) -> int:
    """Devices that a row is sharded over; 1 where they do not divide both parts."""
    devices = axis_size(LENGTH_AXES)
    return 1 if any(length % devices for length in lengths) else devices


def _cut(x: jax.Array, shares: int) -> jax.Array:
    """[B, L, ...] -> [B, shares, L / shares, ...]"""
    x = x.reshape(x.shape[0], shares, -1, *x.shape[2:])
    return constrain(x, "act_batch", "act_len", *(None,) * (x.ndim - 2))


def _whole(x: jax.Array) -> jax.Array:
    """The inverse of `_cut`."""
    x = x.reshape(x.shape[0], -1, *x.shape[3:])
    return constrain(x, "act_batch", "act_len", *(None,) * (x.ndim - 2))
