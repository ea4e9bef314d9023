"""Images of different sizes on one canvas, each treated exactly as if it stood alone.

Static shapes put every image top-left on a canvas of one size. What lies outside an image must
not reach it: a convolution has to see the zero padding it would see at the edge of a lone image,
a GroupNorm has to take its statistics over the image's own pixels, and attention has to stay
inside. The functions here do that; `mask` is bool[N, H, W, 1], true on an image's own pixels.

Axes: N images, H W rows and columns, C channels, B batch, T/S query/key length, K heads,
D head_dim.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

Array = jax.Array

_FAR_BELOW = -1e30  # a logit no softmax notices; finite, so that rows without keys give no NaN


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
    """A convolution that sees zeros outside the image (kernel HWIO).

    Attributes:
      features: output channels.
      kernel: side of the kernel.
      stride: 1 or 2.
      padding: zeros (before, after) on both axes, as beside a lone image.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    padding: tuple[int, int] = (1, 1)
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
    query: Array, key: Array, value: Array, segment: Array, *, chunk: int = 1024
) -> Array:
    """Full attention inside each segment; queries in chunks, so no T x S array of all rows.

    Args:
      query, key, value: float[B, T, K, D]; scaled by 1 / sqrt(D) here, softmax in float32.
      segment: int32[B, T]; 0 is padding, which is not attended to and gets zeros.
      chunk: queries at a time.
    Returns:
      float[B, T, K, D].
    """
    length = query.shape[1]
    scale = query.shape[-1] ** -0.5

    def rows(q, q_segment):
        logits = jnp.einsum("btkd,bskd->bkts", q, key, preferred_element_type=jnp.float32) * scale
        allowed = (q_segment[:, :, None] == segment[:, None, :]) & (segment[:, None, :] > 0)
        logits = jnp.where(allowed[:, None], logits, _FAR_BELOW)
        weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
        return jnp.einsum("bkts,bskd->btkd", weights, value)

    if length <= chunk:
        out = rows(query, segment)
    else:
        pad = -length % chunk
        q = jnp.pad(query, ((0, 0), (0, pad), (0, 0), (0, 0)))
        s = jnp.pad(segment, ((0, 0), (0, pad)))
        q = rearrange(q, "b (c t) k d -> c b t k d", t=chunk)
        s = rearrange(s, "b (c t) -> c b t", t=chunk)
        out = jax.lax.map(jax.checkpoint(lambda x: rows(*x)), (q, s))
        out = rearrange(out, "c b t k d -> b (c t) k d")[:, :length]
    return jnp.where(segment[:, :, None, None] > 0, out, jnp.zeros((), out.dtype))
