"""Memory per chip by formulas, for a search and for machines without a compiler.

The state and the batch are exact. Activations and temporaries are estimates; the plan prints the
compiler's figures beside them where there are any.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh

from mogao_jax.config.geometry import LATENT_STRIDE
from mogao_jax.config.schema import MogaoConfig
from mogao_jax.errors import ConfigError
from mogao_jax.models.encoder_weights import vae_template, vit_template
from mogao_jax.models.modules import Modules, count_parameters, init_params
from mogao_jax.models.mogao import vit_feature_shape
from mogao_jax.sequence.batch import PackedBatch
from mogao_jax.sequence.packing import budgets, empty_row
from mogao_jax.sharding import rules
from mogao_jax.sharding.ambient import BATCH_AXES
from mogao_jax.sharding.mesh import MeshSizes, axis_sizes, batch_sharding
from mogao_jax.tools.plan.roofline import transformer_weights
from mogao_jax.training.optimizer import count_trained, make_optimizer
from mogao_jax.training.state import TrainState, num_bytes

AnyMesh = Mesh | AbstractMesh


def abstract_mesh(sizes: MeshSizes, num_devices: int) -> AbstractMesh:
    """The config's mesh without devices: enough to say how arrays are sharded."""
    found = axis_sizes(sizes, num_devices)
    return AbstractMesh(found, rules.MESH_AXES, axis_types=(AxisType.Auto,) * len(found))


def state_shapes(config: MogaoConfig, modules: Modules) -> TrainState:
    """The training state as shapes, boxed with the logical names of its axes."""
    optimizer = make_optimizer(config.optimizer, config.train.num_steps)

    def create():
        params = init_params(config, modules.model, jax.random.key(0))
        return TrainState.create(params, optimizer.transform, config.optimizer.ema_decay)

    return jax.eval_shape(create)


def state_bytes(
    boxed: TrainState, mesh: AnyMesh, param_axes: tuple[str, ...] = rules.FSDP
) -> dict[str, int]:
    """Bytes per chip of the state's parts, sharded by the table of rules."""
    parts = {"parameters": boxed.params, "moments": boxed.opt_state}
    if boxed.ema_params is not None:
        parts["moving average"] = boxed.ema_params
    return {name: _sharded_bytes(tree, mesh, param_axes) for name, tree in parts.items()}


def _sharded_bytes(boxed: Any, mesh: AnyMesh, param_axes: tuple[str, ...]) -> int:
    shardings = jax.tree.leaves(rules.tree_shardings(boxed, mesh, param_axes))
    leaves = jax.tree.leaves(rules.unbox(boxed))
    return sum(
        math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize
        for x, s in zip(leaves, shardings, strict=True)
    )


def encoder_bytes(config: MogaoConfig) -> int:
    """Bytes of the frozen encoders' float32 parameters, unsharded."""
    trees = [vae_template(config.vae)]
    if config.layout.understanding_encoder == "vit":
        trees.append(vit_template(config.vit))
    return num_bytes(trees)


def batch_row(config: MogaoConfig) -> PackedBatch:
    """A row as training hands it to the step, empty: with pixels and patches, or, where images
    are precomputed (`data.encoded`), with the VAE's moments and the ViT's features."""
    p, vae, side = config.packing, config.vae, config.images.max_side
    row = empty_row(budgets(p), side)
    if not config.data.encoded:
        return row
    parts = 2 if vae.kind == "flux" and vae.sample_posterior else 1  # mean and log-variance
    canvas = p.images, side // LATENT_STRIDE, side // LATENT_STRIDE
    moments = np.zeros((*canvas, parts * vae.latent_channels), np.float32)
    images = row.images._replace(pixels=row.images.pixels[:, :0, :0], moments=moments)
    row = row._replace(images=images)
    if config.layout.understanding_encoder != "vit":
        return row
    _, width = vit_feature_shape(config.vit, config.model.connector, p.vit_patches)
    features = np.zeros((p.vit_patches, width), np.float32)
    return row._replace(vit=row.vit._replace(pixels=row.vit.pixels[:, :0], features=features))


def abstract_batch(config: MogaoConfig, mesh: Mesh) -> PackedBatch:
    """A step's batch [A, B, ...] as ShapeDtypeStructs with shardings."""
    leading = (config.train.grad_accum_steps, config.train.global_batch_rows)
    rows = batch_sharding(mesh, batch_axis=1)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((*leading, *x.shape), x.dtype, sharding=rows),
        batch_row(config),
    )


def batch_bytes(config: MogaoConfig, mesh: AnyMesh) -> int:
    """Bytes per chip of a step's batch, all micro-steps."""
    row = sum(x.nbytes for x in jax.tree.leaves(batch_row(config)))
    return int(row * rows_per_chip(config, mesh) * config.train.grad_accum_steps)


def rows_per_chip(config: MogaoConfig, mesh: AnyMesh) -> float:
    return config.train.global_batch_rows / math.prod(mesh.shape[a] for a in BATCH_AXES)


def tokens_per_chip(config: MogaoConfig, mesh: AnyMesh) -> float:
    """Of a micro-step, padding included."""
    p = config.packing
    row = p.und_tokens + p.clean_tokens + p.noised_tokens
    return row * rows_per_chip(config, mesh) / mesh.shape["context"]


def estimate(
    config: MogaoConfig, boxed: TrainState, mesh: AnyMesh, vocab_size: int
) -> dict[str, float]:
    """Bytes per chip by part; the sum is near what the compiler finds, not equal to it.

    Args:
      boxed: of `state_shapes`.
      vocab_size: rows of the embedding.
    """
    m, p = config.model, config.packing
    state = state_bytes(boxed, mesh, config.mesh.param_axes)
    tokens, rows = tokens_per_chip(config, mesh), rows_per_chip(config, mesh)
    tensor, width = mesh.shape["tensor"], jnp.dtype(m.dtype).itemsize
    heads = (m.num_heads + 2 * m.num_kv_heads) * m.head_dim / tensor
    attended = m.num_heads * (m.head_dim * width + 4) / tensor  # and the log-sum-exp of its scores
    kept = {
        "full": 0.0,
        "keep_attention": attended,
        "keep_matmuls": attended + width * (heads + 2 * m.mlp_dim / tensor + 2 * m.embed_dim),
        "none": attended + width * (2 * heads + 4 * m.mlp_dim / tensor + 6 * m.embed_dim),
    }[m.remat]
    saved = m.num_layers * tokens * (m.embed_dim * width + kept)
    # While a layer's backward pass runs: its FFN and norms, and the next layer's gathered weights.
    layer = tokens * (4 * m.mlp_dim / tensor + 10 * m.embed_dim) * width
    gathered = 2 * transformer_weights(m) / m.num_layers / tensor * width
    chunk = 3 * rows * m.cross_entropy_chunk * 4  # logits and their derivatives, per token
    head = vocab_size * (m.embed_dim * (width + 4) + chunk)
    channels = config.vae.block_channels[0] if config.vae.kind == "flux" else 64
    canvas = rows * p.images * config.images.max_side**2
    vae = 0.0 if config.data.encoded else canvas * channels * 4 * 3
    encoders = encoder_bytes(config)
    if config.mesh.encoders == "sharded":
        encoders //= mesh.shape["fsdp"]
    params = rules.unbox(boxed.params)
    trained = count_trained(params, config.optimizer) / sum(count_parameters(params).values())
    gradients = 4.0 * state["parameters"] * trained / jnp.dtype(m.param_dtype).itemsize
    return {
        **{name: float(n) for name, n in state.items()},
        "frozen encoders": float(encoders),
        "batch": float(batch_bytes(config, mesh)),
        "gradients": gradients,
        # The encoders run before the transformer and free their temporaries.
        "activations, encoders or model": max(vae, saved + layer + gathered + head),
    }


def check_fits_at_all(state: Mapping[str, float], memory: float, name: str, chips: int) -> None:
    """Raises ConfigError where the state and the batch alone are over a chip's memory."""
    held = sum(state.values())
    if held > memory:
        parts = ", ".join(f"{k} {v / 2**30:.1f}" for k, v in state.items())
        raise ConfigError(
            f"the step cannot fit: a chip of {name} has {memory / 2**30:.1f} GiB, and the state, "
            f"encoders and batch alone are {held / 2**30:.1f} GiB on each ({parts}). Shard the "
            f"parameters over more chips (config.mesh.fsdp, up to {chips}), take more chips, or "
            "set config.optimizer.moments_dtype='bfloat16' or config.optimizer.ema_decay=0."
        )
