"""How one tensor of a file becomes one of ours, and back: each transform has its inverse.

PyTorch keeps a linear layer's weight as [out, in] and a convolution's as [out, in, h, w]; ours
are [in, out] and [h, w, in, out]. Nothing here computes: every transform only orders elements
anew, so that a round trip gives back every bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Shape = tuple[int, ...]


class Transform(NamedTuple):
    """A reordering of elements.

    Attributes:
      name: for people.
      theirs: our shape -> the shape that the file's tensor must have.
      forward: (the file's tensor, our shape) -> ours.
      backward: ours -> the file's tensor.
      by_rows: rows of the file's tensor are rows of ours, so that it may be read in parts.
    """

    name: str
    theirs: Callable[[Shape], Shape]
    forward: Callable[[np.ndarray, Shape], np.ndarray]
    backward: Callable[[np.ndarray], np.ndarray]
    by_rows: bool = False


SAME = Transform("same", lambda s: s, lambda x, s: x, lambda x: x, by_rows=True)

# A linear layer, [out, in] -> [in, out].
LINEAR = Transform("linear", lambda s: (s[1], s[0]), lambda x, s: x.T, lambda x: x.T)

# A projection into heads, [N * H, D] -> [D, N, H], and its bias, [N * H] -> [N, H].
INTO_HEADS = Transform(
    "into heads",
    lambda s: (s[1] * s[2], s[0]),
    lambda x, s: x.T.reshape(s),
    lambda x: x.reshape(x.shape[0], -1).T,
)
HEADS_BIAS = Transform(
    "bias of heads",
    lambda s: (s[0] * s[1],),
    lambda x, s: x.reshape(s),
    lambda x: x.reshape(-1),
)
# The projection out of heads, [D, N * H] -> [N, H, D].
OUT_OF_HEADS = Transform(
    "out of heads",
    lambda s: (s[2], s[0] * s[1]),
    lambda x, s: x.T.reshape(s),
    lambda x: x.reshape(-1, x.shape[-1]).T,
)

# A convolution, [out, in, h, w] -> [h, w, in, out]; one of 1x1 that is a linear layer here.
CONV = Transform(
    "convolution",
    lambda s: (s[3], s[2], s[0], s[1]),
    lambda x, s: x.transpose(2, 3, 1, 0),
    lambda x: x.transpose(3, 2, 0, 1),
)
POINTWISE = Transform(
    "1x1 convolution",
    lambda s: (s[1], s[0], 1, 1),
    lambda x, s: x[:, :, 0, 0].T,
    lambda x: x.T[:, :, None, None],
)


def patch_embedding(frames: int, side: int, channels: int = 3) -> Transform:
    """A 3-D convolution as large as its patch, [D, C, T, h, w] -> [C * T * h * w, D]."""
    patch = (channels, frames, side, side)
    return Transform(
        "patch embedding",
        lambda s: (s[1], *patch) if s[0] == math.prod(patch) else (s[1], s[0]),
        lambda x, s: x.reshape(x.shape[0], -1).T,
        lambda x: x.T.reshape(x.shape[1], *patch),
    )
