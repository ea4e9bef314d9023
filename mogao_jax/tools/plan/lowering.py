"""The real train step of a config, lowered for devices that are only described."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mogao_jax.assembly import Assembly, assemble
from mogao_jax.config.schema import MogaoConfig
from mogao_jax.sequence.batch import PackedBatch
from mogao_jax.sharding.mesh import batch_sharding, replicated
from mogao_jax.tools.plan.memory import batch_row


def described(config: MogaoConfig, vocab_size: int, mesh: Mesh) -> Assembly:
    """What `mogao train` would run on this mesh: shapes and shardings, no arrays.

    Args:
      vocab_size: of the tokenizer, which need not be there.
    Raises:
      ConfigError: `train.global_batch_rows` cannot be sharded over the mesh.
    """
    return assemble(config, vocab_size, mesh, load_weights=False)


def abstract_batch(config: MogaoConfig, mesh: Mesh) -> PackedBatch:
    """A step's batch [A, B, ...] as ShapeDtypeStructs with shardings."""
    leading = (config.train.grad_accum_steps, config.train.global_batch_rows)
    rows = batch_sharding(mesh, batch_axis=1)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((*leading, *x.shape), x.dtype, sharding=rows),
        batch_row(config),
    )


def lower_step(config: MogaoConfig, vocab_size: int, mesh: Mesh) -> Any:
    """The train step, traced and lowered for the mesh's devices; `.compile()` is left to do."""
    assembly = described(config, vocab_size, mesh)  # eager operations: not under the mesh
    batch = abstract_batch(config, mesh)
    rate = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated(mesh))
    with assembly.on_mesh():
        return assembly.train_step.lower(assembly.state, assembly.encoders, batch, rate)
