"""Images of different sizes on one canvas, each treated exactly as if it stood alone.

Static shapes put every image top-left on a canvas of one size. The rest of the canvas must not
affect it: a convolution has to see the zero padding it would see at the edge of a lone image, a
GroupNorm has to take its statistics over the image's own pixels, and attention has to stay inside.
`mask` is bool[N, H, W, 1], true on an image's own pixels.

Axes: N images, H W rows and columns, C channels, B batch, T/S query/key length, K heads,
D head_dim.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

Array = jax.Array

_FAR_BELOW = -1e30  # a masked logit; finite, so that rows without keys give no NaN


def image_mask(size: Array | np.ndarray, height: int, width: int, *, stride: int = 1) -> Array:
    """Which cells of a canvas belong to the image.

    Args:
      size: int32[..., 2] height and width of each image in pixels; (0, 0) for no image.
      height, width: of the canvas, in cells.
      stride: pixels per cell; sizes must be multiples of it.
    Returns:
      bool[..., height, width, 1].
    """
    cells = size // stride
    rows = jnp.arange(height)[:, None] < cells[..., 0, None, None]
    columns = jnp.arange(width)[None, :] < cells[..., 1, None, None]
    return (rows & columns)[..., None]


def inside(x: Array, mask: Array) -> Array:
    """x[N, H, W, C] with zeros outside the images."""
    return jnp.where(mask, x, jnp.zeros((), x.dtype))


class Conv(nn.Module):
    """A convolution that sees zeros outside the image (kernel HWIO)."""

    features: int  # output channels
    kernel: int = 3  # its side
    stride: int = 1  # or 2
    padding: tuple[int, int] = (1, 1)  # zeros (before, after) on both axes, beside a lone image
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        y = jax.lax.conv_general_dilated(
            inside(x, mask),
            kernel.astype(x.dtype),
            window_strides=(self.stride, self.stride),
            padding=(self.padding, self.padding),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = y + bias.astype(x.dtype)
        return y


class GroupNorm(nn.Module):
    """GroupNorm with statistics over the image's own pixels, computed in float32.

    Two passes (mean, then centred squares): the one-pass form loses digits.
    """

    groups: int
    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        x32 = inside(x, mask).astype(jnp.float32)
        count = jnp.maximum(mask.sum((1, 2, 3)), 1) * (channels // self.groups)

        weights = mask.astype(jnp.float32)

        def over_group(values):  # float32[N, H, W, C] -> mean over image and group, [N, 1, 1, C]
            sums = jnp.einsum("nhwc,nhwx->nc", values, weights, preferred_element_type=jnp.float32)
            sums = rearrange(sums, "n (g c) -> n g c", g=self.groups)
            means = sums.sum(-1) / count[:, None]
            return jnp.repeat(means, channels // self.groups, axis=-1)[:, None, None, :]

        centred = x32 - over_group(x32)
        variance = over_group(jnp.square(centred))
        return (centred * (jax.lax.rsqrt(variance + self.eps) * scale) + bias).astype(x.dtype)


def upsample(x: Array) -> Array:
    """Nearest-neighbour doubling: [N, H, W, C] -> [N, 2H, 2W, C] (also of a mask)."""
    n, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (n, h, 2, w, 2, c)).reshape(n, 2 * h, 2 * w, c)


def halve(mask: Array) -> Array:
    """The mask after a stride-2 convolution (image sides are even)."""
    return mask[:, ::2, ::2]


def segment_attention(
    query: Array, key: Array, value: Array, segment: Array, *, chunk: int | None = None
) -> Array:
    """Full attention inside each segment, block by block: no T x S array of all rows.

    Pairs of blocks that share no segment are skipped: with contiguous segments, a packed row costs
    little more than its images alone. The result is right in any order.

    Args:
      query, key, value: float[B, T, K, D]; scaled by 1 / sqrt(D) here, softmax in float32.
      segment: int32[B, T]; 0 is padding, which is not attended to and gets zeros.
      chunk: tokens per block; default: 128, or more so that there are at most 16 blocks. Rows of
        up to two blocks are one block.
    Returns:
      float[B, T, K, D].
    """
    length = query.shape[1]
    chunk = chunk or max(128, -(-length // 16))
    if length <= 2 * chunk:
        chunk = length
    pad = -length % chunk
    arrays = [jnp.pad(x, ((0, 0), (0, pad), (0, 0), (0, 0))) for x in (query, key, value)]
    q, k, v = (rearrange(x, "b (n t) k d -> n b k t d", t=chunk) for x in arrays)
    s = rearrange(jnp.pad(segment, ((0, 0), (0, pad))), "b (n t) -> n b t", t=chunk)
    # The range of real segments of each block and row; empty (low > high) if there is none.
    low = jnp.where(s > 0, s, jnp.iinfo(jnp.int32).max).min(-1)
    high = s.max(-1)

    @jax.checkpoint
    def rows(block):
        q, q_segment, q_low, q_high = block

        def read(carry, key_block):
            k, v, k_segment, k_low, k_high = key_block
            shares = ((q_low <= k_high) & (k_low <= q_high)).any()
            update = functools.partial(_online_softmax, q, k, v, q_segment, k_segment)
            if len(s) == 1:
                return update(carry), None
            return jax.lax.cond(shares, update, lambda carry: carry, carry), None

        zeros = jnp.zeros(q.shape, jnp.float32)
        carry = zeros[..., :1] + _FAR_BELOW, zeros[..., :1], zeros
        if len(s) == 1:
            (_, total, out), _ = read(carry, (k[0], v[0], s[0], low[0], high[0]))
        else:
            (_, total, out), _ = jax.lax.scan(read, carry, (k, v, s, low, high))
        out = out / jnp.where(total > 0, total, 1.0)
        return jnp.where(q_segment[:, None, :, None] > 0, out, 0).astype(q.dtype)

    if len(s) == 1:
        out = rows((q[0], s[0], low[0], high[0]))[None]
    else:
        out = jax.lax.map(rows, (q, s, low, high))
    return rearrange(out, "n b k t d -> b (n t) k d")[:, :length]


def _online_softmax(q, k, v, q_segment, k_segment, carry):
    """Adds one block of keys to (greatest logit, sum of weights, weighted sum of values)."""
    greatest, total, out = carry
    logits = jnp.einsum("bktd,bksd->bkts", q, k, preferred_element_type=jnp.float32)
    allowed = (q_segment[:, :, None] == k_segment[:, None, :]) & (k_segment[:, None, :] > 0)
    logits = jnp.where(allowed[:, None], logits * q.shape[-1] ** -0.5, _FAR_BELOW)
    # The shift cancels in the quotient: no gradient through it.
    new = jax.lax.stop_gradient(jnp.maximum(greatest, logits.max(-1, keepdims=True)))
    weights = jnp.where(allowed[:, None], jnp.exp(logits - new), 0)
    keep = jnp.exp(greatest - new)
    read = jnp.einsum("bkts,bksd->bktd", weights.astype(v.dtype), v).astype(jnp.float32)
    return new, total * keep + weights.sum(-1, keepdims=True), out * keep + read
