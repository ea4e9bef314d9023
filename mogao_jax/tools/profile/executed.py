"""FLOPs that a step really runs: padding, recomputation and whole tiles included.

Beside `flops.model_flops`, which counts what is useful. The difference is what a recipe can
still win.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from mogao_jax.config.schema import MogaoConfig
from mogao_jax.sequence.batch import PackedBatch
from mogao_jax.tools import flops
from mogao_jax.tools.flops import vae_flops, vit_flops

# Matmuls of attention per pair: two forward, five backward in a kernel that keeps no scores
# (FlashAttention-2, arXiv 2307.08691); the convention credits four of the latter.
_FORWARD, _BACKWARD = 2, 5


def scaled(work: flops.TokenCounts, factor: float) -> flops.TokenCounts:
    """The work of `factor` times as many rows."""
    counts = {
        f.name: getattr(work, f.name) * (1.0 if f.name.startswith("fill") else factor)
        for f in dataclasses.fields(work)
    }
    return flops.TokenCounts(**counts)


def executed_flops(
    config: MogaoConfig, vocab_size: int, work: flops.TokenCounts, num_rows: int
) -> dict[str, float]:
    """FLOPs of a step by what they are for; "padding" and "recomputation" apart.

    Args:
      vocab_size: rows of the language head.
      work: of the step's rows.
      num_rows: rows of a step, all micro-steps together.
    Returns:
      the parts of `model_flops`, then what is run beside them.
    """
    m, p = config.model, config.packing
    useful = flops.model_flops(config, vocab_size, work)
    whole = dataclasses.replace(
        work,
        und=num_rows * p.und_tokens,
        clean=num_rows * p.clean_tokens,
        noised=num_rows * p.noised_tokens,
        vit_tokens=num_rows * p.vit_patches / config.vit.merge_size**2,
        images=num_rows * (1 + p.images * config.layout.noised_copies),
    )
    full = flops.model_flops(config, vocab_size, whole)
    padding = sum(full[part] - useful[part] for part in useful)
    per_pair = 2.0 * m.num_layers * m.num_heads * m.head_dim
    tiles = (_FORWARD + _BACKWARD) * per_pair * work.pairs_executed - useful["attention"]
    recomputed = recomputed_share(config)
    parts = ("und branch", "gen branch", "AdaLN and timesteps")
    branches = sum(full[part] * _FORWARD / flops.per_weight(config, part) for part in parts)
    again = recomputed["matmuls"] * branches
    again += recomputed["attention"] * _FORWARD * per_pair * work.pairs_executed
    # Its logits are computed again in the backward pass.
    head = useful["language head"] * _FORWARD / flops.per_weight(config, "language head")
    return useful | {
        "padding of rows": padding,
        "attention: masked pairs of tiles, scores anew": tiles,
        "recomputation (remat)": again,
        "recomputation of logits": head,
    }


def recomputed_share(config: MogaoConfig) -> dict[str, float]:
    """What the backward pass computes again, as a share of the forward pass's layers.

    With remat "full" a layer is run again up to the input of its last matmul, whose result
    nothing needs. keep_matmuls keeps the results of the projections; keep_attention that of
    attention alone.
    """
    m = config.model
    down = m.embed_dim * m.mlp_dim
    layer = flops.branch_weights(m) / m.num_layers
    return {
        "none": {"matmuls": 0.0, "attention": 0.0},
        "keep_matmuls": {"matmuls": 0.0, "attention": 0.0},
        "keep_attention": {"matmuls": (layer - down) / layer, "attention": 0.0},
        "full": {"matmuls": (layer - down) / layer, "attention": 1.0},
    }[m.remat]


def encoder_work(
    config: MogaoConfig, vae: Any, vae_params: Any, rows: PackedBatch, factor: float
) -> dict[str, dict[str, float]]:
    """{"VAE": {"useful": ..., "executed": ...}, "ViT": ...}: forward FLOPs of the encoders.

    Executed: every place for an image, over its whole canvas, and every place for a patch.

    Args:
      vae, vae_params: the module, and its parameters or their shapes.
      rows: packed rows [R, ...].
      factor: the step's rows over R.
    """
    canvas = rows.images.pixels.shape[-3:]
    sizes = rows.images.size.reshape(-1, 2)
    places = sizes * 0 + list(canvas[:2])
    found = {
        "VAE": {
            "useful": factor * vae_flops(vae, vae_params, config.vae, sizes, canvas),
            "executed": factor * vae_flops(vae, vae_params, config.vae, places, canvas),
        }
    }
    if config.layout.understanding_encoder == "vit":
        patches = rows.vit.segment
        useful = vit_flops(config.vit, patches)
        real = max(1, int((patches > 0).sum()))
        found["ViT"] = {
            "useful": factor * useful,
            # Patches of padding go through the matmuls, and attend to nothing.
            "executed": factor * useful * math.prod(patches.shape) / real,
        }
    return found
