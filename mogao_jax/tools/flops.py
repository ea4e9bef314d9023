"""Model FLOPs of a training step, counted from the config and the real tokens of its batches.

The convention (MFU): forward and backward of a matmul of N weights cost 6 N per token that
meets them, and attention 12 * layers * heads * head_dim per (query, key) pair that may attend
(forward 4: scores and reading; backward twice that). Frozen weights (`optimizer.frozen`) cost 4 N:
nothing is computed for their gradients, but what lies before them still has some. Padding,
recomputation and everything that is not a matmul earn nothing.

The frozen encoders' forward FLOPs, for the real pixels and patches of a batch, are stated beside
the model's, never in them: nothing in the encoders is trained.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mogao_jax.config.geometry import LATENT_PATCH, LATENT_STRIDE
from mogao_jax.config.schema import ModelConfig, MogaoConfig, VaeConfig, VitConfig
from mogao_jax.models.modules import EncoderParams, Modules
from mogao_jax.ops.attention.api import resolve
from mogao_jax.ops.attention.parts import Parts
from mogao_jax.ops.attention.tiles import tile_statistics
from mogao_jax.sequence.batch import PackedBatch, canvas


@dataclasses.dataclass(frozen=True)
class TokenCounts:
    """What one optimizer step works on; means over several steps, hence floats.

    Attributes:
      und, clean, noised: real tokens of each stream.
      trained_text: und tokens with a loss weight: those that meet the language head.
      vit_tokens: und tokens that come from the ViT (after its merge).
      images: lines that AdaLN is computed for: one per noised copy, and one per row for t = 1.
      pairs: (query, key) pairs that may attend.
      pairs_executed: pairs in the tiles that blockwise attention runs for them.
      fill_und, fill_gen: real tokens over the budgets' room.
    """

    und: float
    clean: float
    noised: float
    trained_text: float
    vit_tokens: float
    images: float
    pairs: float
    pairs_executed: float
    fill_und: float
    fill_gen: float

    @property
    def tokens(self) -> float:
        """All real tokens of the transformer."""
        return self.und + self.clean + self.noised


def count_work(batch: PackedBatch, config: MogaoConfig, platform: str | None = None) -> TokenCounts:
    """Counts a host batch [A, B, ...] (or [B, ...]) of numpy arrays.

    `platform`: of the devices that decide attention's blocks (None: those of this process).
    """
    rows = _rows(batch)
    und, clean, noised = (p.meta.segment > 0 for p in (rows.und, rows.clean, rows.noised))
    copies = np.stack([rows.noised.image, rows.noised.copy], -1)
    drawn = zip(copies, noised, strict=True)
    noised_copies = sum(len(np.unique(copy[real], axis=0)) for copy, real in drawn)
    meta = Parts(rows.und.meta, rows.clean.meta, rows.noised.meta)
    attention = resolve(config.model.attention, platform or jax.default_backend())
    pairs = tile_statistics(
        meta,
        meta,
        block_q=attention.block_q,
        block_kv=attention.block_kv,
        text_reads_vae=config.layout.understanding_encoder == "vae",
    )
    return TokenCounts(
        und=float(und.sum()),
        clean=float(clean.sum()),
        noised=float(noised.sum()),
        trained_text=float((rows.und.loss_weights != 0).sum()),
        vit_tokens=float((rows.und.vit_index >= 0).sum()),
        images=float(noised_copies + len(und)),
        pairs=float(pairs.pairs_needed),
        pairs_executed=float(pairs.pairs_executed),
        fill_und=float(und.mean()) if und.size else 0.0,
        fill_gen=float(clean.sum() + noised.sum()) / max(clean.size + noised.size, 1),
    )


def mean_work(works: Sequence[TokenCounts]) -> TokenCounts:
    """Field by field."""
    names = [f.name for f in dataclasses.fields(TokenCounts)]
    return TokenCounts(**{n: float(np.mean([getattr(w, n) for w in works])) for n in names})


def _rows(batch: PackedBatch) -> PackedBatch:
    """[A, B, ...] as [A * B, ...]; some fields may be empty."""
    leading = np.asarray(batch.und.tokens).shape[:-1]

    def flat(x: Any) -> np.ndarray:
        return np.reshape(x, (math.prod(leading), *np.shape(x)[len(leading) :]))

    return jax.tree.map(flat, batch)


def branch_weights(model: ModelConfig) -> int:
    """Weights of one branch's matmuls, all layers together (norms and biases left out)."""
    heads = (model.num_heads + 2 * model.num_kv_heads) * model.head_dim
    output = model.num_heads * model.head_dim
    per_layer = model.embed_dim * (heads + output + 3 * model.mlp_dim)
    return model.num_layers * per_layer


def per_weight(config: MogaoConfig, part: str) -> float:
    """FLOPs per weight and token of a part of `model_flops`, 2 of them forward."""
    frozen = config.optimizer.frozen == "llm" and part in ("und branch", "language head")
    return 4.0 if frozen else 6.0


def model_flops(config: MogaoConfig, vocab_size: int, work: TokenCounts) -> dict[str, float]:
    """FLOPs of a step's forward and backward pass, by part.

    Args:
      vocab_size: rows of the language head.
      work: of the step.
    """
    m, vit = config.model, config.vit
    d = m.embed_dim
    branch = branch_weights(m)
    adaln = m.num_layers * 6 * d * d + 2 * d * d  # every layer, and before the velocity head
    timestep = m.timestep_embed_dim * d + d * d
    channels = config.vae.latent_channels * LATENT_PATCH**2
    block = vit.merge_size**2 * vit.embed_dim
    vit_connector = block * (block + d) if m.connector == "merger" else vit.merger_dim * d
    latents_in, velocities_out = channels * d, d * channels
    gen = work.clean + work.noised
    connectors = work.vit_tokens * vit_connector + gen * latents_in + work.noised * velocities_out
    return {
        "und branch": per_weight(config, "und branch") * branch * work.und,
        "gen branch": 6.0 * branch * gen,
        "attention": 12.0 * m.num_layers * m.num_heads * m.head_dim * work.pairs,
        "language head": per_weight(config, "language head") * vocab_size * d * work.trained_text,
        "AdaLN and timesteps": 6.0 * (adaln + timestep) * work.images,
        "connectors": 6.0 * connectors,
    }


def total(parts: dict[str, float] | Iterable[float]) -> float:
    """Sum over the parts."""
    return float(sum(parts.values() if isinstance(parts, dict) else parts))


# ------------------------------------------------------------------------- frozen encoders


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
    """Convolutions counted on a canvas and divided in proportion to pixels; attention per image.

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
