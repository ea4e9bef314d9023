"""The gen stream's two parts, clean and noised tokens, as one array.

Where "context" splits a row over devices, each of them has its own share of both parts, and the
stream is the shares' concatenation, device by device: neither joining nor splitting moves a
token to another device. On one device it is simply clean tokens, then noised ones. Whatever is
per token of the stream (latents, positions, AdaLN's index) is joined by the same function.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mogao_jax.models.layers import constrain
from mogao_jax.sharding.ambient import LENGTH_AXES, ways


def join_gen(clean: jax.Array | None, noised: jax.Array | None) -> jax.Array:
    """[B, C, ...] and [B, N, ...] -> [B, C + N, ...]; one of them may be absent."""
    present = [x for x in (clean, noised) if x is not None]
    if len(present) == 1:
        return present[0]
    shares = _shares(*(x.shape[1] for x in present))
    if shares == 1:
        return jnp.concatenate(present, 1)
    joined = jnp.concatenate([_cut(x, shares) for x in present], 2)
    return _whole(joined)


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
    """Devices that a row is split over; 1 where they do not divide both parts."""
    devices = ways(LENGTH_AXES)
    return 1 if any(length % devices for length in lengths) else devices


def _cut(x: jax.Array, shares: int) -> jax.Array:
    x = x.reshape(x.shape[0], shares, -1, *x.shape[2:])
    return constrain(x, "act_batch", "act_len", *(None,) * (x.ndim - 2))


def _whole(x: jax.Array) -> jax.Array:
    x = x.reshape(x.shape[0], -1, *x.shape[3:])
    return constrain(x, "act_batch", "act_len", *(None,) * (x.ndim - 2))
