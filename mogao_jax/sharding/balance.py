"""The order of a row's tokens that gives every "context" device as much attention to compute.

Causal attention reads ever more towards the end of a document: cut in order, a long one would
leave the first device half idle. With n devices, each gets two stretches of 2n: the i-th and the
i-th from the end. The mask is a predicate on the tokens' metadata and losses are sums over
tokens, so the order is free.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from mogao_jax.sharding.ambient import LENGTH_AXES, ways


def balanced(stream: Any) -> Any:
    """Reorders axis 1 of all arrays [B, L, ...] of a tree, alike.

    As they were where the mesh in context does not split rows, or 2n does not divide L.
    """
    devices = ways(LENGTH_AXES)
    length = jax.tree.leaves(stream)[0].shape[1]
    if devices == 1 or not length or length % (2 * devices):
        return stream
    order = balanced_order(length, devices)
    return jax.tree.map(lambda x: x[:, order], stream)


def balanced_order(length: int, devices: int) -> np.ndarray:
    """Which token stands at each place, int[length]; device i has the i-th nth of the places."""
    stretches = np.arange(length).reshape(2 * devices, -1)
    return np.stack([stretches[:devices], stretches[::-1][:devices]], 1).reshape(-1)
