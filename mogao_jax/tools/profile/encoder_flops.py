"""Forward FLOPs of the frozen encoders, for the real pixels and patches of a batch.

They are stated beside the model's FLOPs, never in them: nothing in the encoders is trained.
Padding of canvases and of patch rows earns nothing.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mogao_jax.config.geometry import LATENT_STRIDE
from mogao_jax.config.schema import VaeConfig, VitConfig
from mogao_jax.models.modules import EncoderParams, Modules
from mogao_jax.sequence.batch import PackedBatch, canvas


def encoder_flops(
    modules: Modules, encoders: EncoderParams, batch: PackedBatch
) -> dict[str, float]:
    """{"VAE": ..., "ViT": ...} of a host batch [A, B, ...]; those that the step runs."""
    flops = {}
    if batch.images.moments is None:
        size = np.asarray(batch.images.size).reshape(-1, 2)
        shape = (*canvas(batch.images), 3)
        flops["VAE"] = vae_flops(modules.vae, encoders.vae, modules.config.vae, size, shape)
    if modules.vit is not None and batch.vit.features is None:
        flops["ViT"] = vit_flops(modules.config.vit, np.asarray(batch.vit.segment))
    return flops


def vit_flops(vit: VitConfig, segment: np.ndarray) -> float:
    """2 per weight and patch, and 4 * depth * width per pair of patches of one image.

    Args:
      segment: int32[..., P] image of each patch in its row, from 1; 0 = padding.
    """
    rows = segment.reshape(-1, segment.shape[-1])
    lengths = [n for row in rows for n in np.bincount(row[row > 0])[1:]]
    width, block = vit.embed_dim, vit.merge_size**2
    patch = 3 * vit.temporal_patch_size * vit.patch_size**2
    weights = patch * width + vit.depth * (4 * width**2 + 2 * width * vit.mlp_dim)
    flops = 2.0 * weights * sum(lengths)
    flops += 4.0 * vit.depth * width * sum(int(n) ** 2 for n in lengths)
    if vit.merger_dim:
        merger = block * width * (block * width + vit.merger_dim)
        flops += 2.0 * merger * sum(lengths) / block
    return flops


def vae_flops(
    vae: Any, params: Any, config: VaeConfig, size: np.ndarray, canvas: tuple[int, ...]
) -> float:
    """Convolutions counted on a canvas and shared out by pixels; attention per image.

    Args:
      size: int32[N, 2] height and width in pixels; (0, 0) = no image.
      canvas: (Hc, Wc, 3).
    """
    pixels = jax.ShapeDtypeStruct((1, *canvas), jnp.float32)
    one = jax.ShapeDtypeStruct((1, 2), jnp.int32)

    def encode(params, pixels, size):
        return vae.apply({"params": params}, pixels, size, method=type(vae).encode_latents)

    jaxpr = jax.make_jaxpr(encode)(params, pixels, one)
    per_pixel = convolution_flops(jaxpr.jaxpr) / math.prod(canvas[:2])
    area = size.astype(np.float64).prod(-1)
    flops = per_pixel * float(area.sum())
    if config.kind == "flux":  # one block of single-head attention over the latents
        width, latents = config.block_channels[-1], area / LATENT_STRIDE**2
        flops += float((8 * width**2 * latents + 4 * width * latents**2).sum())
    return flops


def convolution_flops(jaxpr: Any) -> float:
    """2 * outputs * (weights per output) of all convolutions, those in called functions too."""
    flops = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            out, kernel = equation.outvars[0].aval, equation.invars[1].aval
            out_channels = equation.params["dimension_numbers"].rhs_spec[0]
            weights = math.prod(kernel.shape) / kernel.shape[out_channels]
            flops += 2.0 * math.prod(out.shape) * weights
        for value in jax.tree.leaves(tuple(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(value):
                flops += convolution_flops(getattr(value, "jaxpr", value))
    return flops


def _is_jaxpr(x: Any) -> bool:
    return hasattr(x, "eqns")
