"""Qwen2-VL's vision tower at any width, on packed rows of images of any size.

The patches of all images of a row follow each other; `segment` names the image of a patch, and
attention is full within it. Weights, features and the 2-D rotary embedding are
those of Qwen2-VL (arXiv 2409.12191 section 2.1 and the released model's config).

Axes: B rows, P patches, N heads, H head_dim, D embed, C T h w channel, frame, row and column in
a patch.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from mogao_jax.config.schema import AttentionConfig, VitConfig
from mogao_jax.ops.attention.api import MeshAxes, attention
from mogao_jax.ops.attention.parts import Parts
from mogao_jax.ops.rope import apply_rope
from mogao_jax.sequence.masking import VIT, TokenMeta
from mogao_jax.sharding.ambient import SPARE_AXES
from mogao_jax.sharding.rules import constrain

Array = jax.Array

# CLIP's channel statistics, of pixels in [0, 1].
PIXEL_MEAN = np.asarray((0.48145466, 0.4578275, 0.40821073), np.float32)
PIXEL_STD = np.asarray((0.26862954, 0.26130258, 0.27577711), np.float32)


def normalise(patches: Array, channels: int = 3) -> Array:
    """uint8[..., C * h * w] -> float32 of the same shape, with CLIP's mean and deviation."""
    mean, std = (np.repeat(x, patches.shape[-1] // channels) for x in (PIXEL_MEAN, PIXEL_STD))
    return (patches.astype(jnp.float32) / 255.0 - mean) / std


def rotary_angles(positions: Array, head_dim: int, theta: float) -> Array:
    """Angles of the 2-D rotary embedding.

    Args:
      positions: int32[B, P, 2], row and column of each patch.
      head_dim: a multiple of 4. Its first quarter of rotary pairs turns with the row, the second
        with the column; pair i is made of dimensions i and i + head_dim / 2.
    Returns:
      float32[B, P, head_dim / 2].
    """
    quarter = head_dim // 4
    frequencies = theta ** (-np.arange(quarter, dtype=np.float32) / quarter)
    angles = positions[..., None].astype(jnp.float32) * frequencies  # [B, P, 2, quarter]
    return rearrange(angles, "b p hw f -> b p (hw f)")


def _attention_within_images(
    q: Array, k: Array, v: Array, segment: Array, implementation: str
) -> Array:
    """Full attention among the patches of each image: [B, P, N, H] each, segment int32[B, P].

    The patches of an image are tokens of one order, which attend to each other
    (sequence/masking.py). So the transformer's own attention serves, and skips all tiles between
    different images.
    """
    meta = Parts(und=TokenMeta(segment, jnp.zeros_like(segment), jnp.full_like(segment, VIT)))
    queries, keys, values = (Parts(und=x) for x in (q, k, v))
    config = AttentionConfig(implementation)  # type: ignore[arg-type]
    # Frozen weights are whole on every device: patches are sharded instead of heads.
    axes = MeshAxes(heads=(), length=SPARE_AXES)
    return attention(queries, keys, values, meta, meta, config, axes=axes).und


class PatchEmbed(nn.Module):
    """The 3-D convolution over (C, T, h, w) whose kernel is as large as its input: one matrix."""

    embed_dim: int

    @nn.compact
    def __call__(self, patches: Array) -> Array:
        return nn.Dense(self.embed_dim, use_bias=False, dtype=patches.dtype, name="proj")(patches)


class VisionBlock(nn.Module):
    """Pre-norm attention and MLP."""

    num_heads: int
    mlp_dim: int
    eps: float
    attention: str

    @nn.compact
    def __call__(self, x: Array, angles: Array, segment: Array) -> Array:
        dim = x.shape[-1]
        h = nn.LayerNorm(self.eps, dtype=x.dtype, name="norm1")(x)
        qkv = nn.Dense(3 * dim, dtype=x.dtype, name="attn_qkv")(h)
        q, k, v = rearrange(qkv, "b p (three n h) -> three b p n h", three=3, n=self.num_heads)
        rotation = jnp.cos(angles), jnp.sin(angles)
        q, k = apply_rope(q, *rotation), apply_rope(k, *rotation)
        h = _attention_within_images(q, k, v, segment, self.attention)
        h = rearrange(h, "b p n h -> b p (n h)")
        x = x + nn.Dense(dim, dtype=x.dtype, name="attn_proj")(h)
        h = nn.LayerNorm(self.eps, dtype=x.dtype, name="norm2")(x)
        h = nn.Dense(self.mlp_dim, dtype=x.dtype, name="mlp_fc1")(h)
        h *= nn.sigmoid(1.702 * h)  # the quick form of GELU
        return x + nn.Dense(dim, dtype=x.dtype, name="mlp_fc2")(h)


class PatchMerger(nn.Module):
    """Qwen2-VL's own merger: four neighbouring patches become one token."""

    out_dim: int
    merge: int  # patches per token
    eps: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.LayerNorm(self.eps, dtype=x.dtype, name="ln_q")(x)
        x = rearrange(x, "b (p merge) d -> b p (merge d)", merge=self.merge)
        x = nn.Dense(x.shape[-1], dtype=x.dtype, name="mlp_0")(x)
        x = nn.gelu(x, approximate=False)
        return nn.Dense(self.out_dim, dtype=x.dtype, name="mlp_2")(x)


class VisionTower(nn.Module):
    """Patches -> features.

    Parameters have a module per block, "blocks_0", ..., or are `stacked`; then one compiled block
    runs in a loop.
    """

    config: VitConfig
    dtype: jnp.dtype = jnp.float32  # of the computation (softmax and RoPE in float32)
    attention: str = "auto"  # config `model.attention.implementation`

    @nn.compact
    def __call__(self, patches: Array, positions: Array, segment: Array) -> Array:
        """Features of every patch, before the merger; or, with `merger_dim`, of every token.

        Args:
          patches: uint8[B, P, 3 * 14 * 14], each (C, h, w), in the merge order (images.py).
          positions: int32[B, P, 2], row and column of each patch in its image.
          segment: int32[B, P], which image of the row, from 1; 0 = padding.
        Returns:
          float32[B, P, embed_dim], or float32[B, P / merge**2, merger_dim]; zeros at padding.
        """
        c = self.config
        x = normalise(patches).reshape(*patches.shape[:2], 3, 1, -1)
        x = jnp.broadcast_to(x, (*x.shape[:3], c.temporal_patch_size, x.shape[-1]))
        x = x.reshape(*patches.shape[:2], -1).astype(self.dtype)  # a still image, as frames
        x = PatchEmbed(c.embed_dim, name="patch_embed")(x)
        x = constrain(x, "act_batch", "act_patches", None)
        angles = rotary_angles(positions, c.embed_dim // c.num_heads, c.rope_theta)
        fields = (c.num_heads, c.mlp_dim, c.layer_norm_eps, self.attention)
        if self.has_variable("params", _STACK):
            block = VisionBlock(*fields, parent=None)
            x = _loop(block, self.get_variable("params", _STACK), x, angles, segment)
        else:
            for i in range(c.depth):
                x = VisionBlock(*fields, name=f"blocks_{i}")(x, angles, segment)
        real = segment > 0
        if c.merger_dim:
            merge = c.merge_size**2
            x = PatchMerger(c.merger_dim, merge, c.layer_norm_eps, name="merger")(x)
            real = real[:, ::merge]
        return jnp.where(real[..., None], x, 0).astype(jnp.float32)


def _loop(block: VisionBlock, params: Any, x: Array, *given: Array) -> Array:
    def one(x: Array, params: Any) -> tuple[Array, None]:
        return block.apply({"params": whole(params)}, x, *given), None

    return jax.lax.scan(one, x, params)[0]


_STACK = "blocks"
_BLOCK = re.compile("blocks_([0-9]+)")


def stacked(params: Any, stack: Callable[..., Any] = np.stack) -> Any:
    """A tower's parameters with those of all blocks in one array, [depth, ...].

    Files store blocks separately; a program with a stack compiles sooner. numpy's `stack` stays
    on the host.
    """
    rest = {name: x for name, x in params.items() if not _BLOCK.fullmatch(name)}
    blocks = [params[f"blocks_{i}"] for i in range(len(params) - len(rest))]
    return {**rest, _STACK: jax.tree.map(lambda *layers: stack(layers), *blocks)}


def unstacked(params: Any) -> Any:
    """The inverse of `stacked`; parameters that are not stacked are returned as they are."""
    if _STACK not in params:
        return params

    def block(i: int) -> Any:
        return jax.tree.map(lambda x: x[i], params[_STACK])

    rest = {name: x for name, x in params.items() if name != _STACK}
    depth = len(jax.tree.leaves(params[_STACK])[0])
    return {**rest, **{f"blocks_{i}": block(i) for i in range(depth)}}


def whole(params: Any) -> Any:
    """All-gathers frozen parameters that may be sharded; not those of a stack of blocks.

    The loop gathers each block of a stack when it comes to it.
    """
    if isinstance(params, dict) and _STACK in params:
        return {**whole({n: x for n, x in params.items() if n != _STACK}), _STACK: params[_STACK]}
    return jax.tree.map(lambda x: constrain(x, *(None,) * x.ndim), params)
