"""The real train step of a config, lowered for devices that are described and not there."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mogao_jax.config.schema import MogaoConfig
from mogao_jax.models.encoder_weights import vae_template, vit_template
from mogao_jax.models.modules import EncoderParams, Modules, init_params, make_modules
from mogao_jax.models.vit import stacked
from mogao_jax.sequence.batch import PackedBatch
from mogao_jax.sharding import rules
from mogao_jax.sharding.mesh import batch_sharding, check_rows, encoder_shardings, replicated
from mogao_jax.tools.plan.memory import batch_row
from mogao_jax.training.optimizer import make_optimizer
from mogao_jax.training.state import TrainState, abstract_state, shardings_of
from mogao_jax.training.step import make_train_step


class Arguments(NamedTuple):
    """Everything the step takes, as ShapeDtypeStructs with shardings."""

    state: TrainState
    encoders: EncoderParams
    batch: PackedBatch
    learning_rate: Any


def abstract_arguments(config: MogaoConfig, modules: Modules, mesh: Mesh) -> Arguments:
    """What `mogao train` would hand to the step on this mesh.

    Raises:
      ConfigError: `train.global_batch_rows` cannot be shared out over the mesh.
    """
    check_rows(mesh, config.train.global_batch_rows)
    optimizer = make_optimizer(config.optimizer, config.train.num_steps)

    def init() -> Any:
        return init_params(config, modules.model, jax.random.key(0))

    def placed(tree: Any) -> Any:
        shardings = encoder_shardings(mesh, tree, config.mesh.encoders)
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
        )

    vit = vit_template(config.vit)
    if config.model.scan_layers:
        vit = jax.eval_shape(lambda vit: stacked(vit, jnp.stack), vit)
    encoders = EncoderParams(
        placed(vae_template(config.vae)), placed(vit) if modules.vit is not None else None
    )
    leading = (config.train.grad_accum_steps, config.train.global_batch_rows)
    rows = batch_sharding(mesh, batch_axis=1)
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((*leading, *x.shape), x.dtype, sharding=rows),
        batch_row(config),
    )
    rate = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated(mesh))
    state = abstract_state(
        init, optimizer.transform, mesh, config.optimizer.ema_decay, config.mesh.param_axes
    )
    return Arguments(state, encoders, batch, rate)


def lower_step(config: MogaoConfig, vocab_size: int, mesh: Mesh) -> Any:
    """The train step, traced and lowered for the mesh's devices; `.compile()` is left to do.

    Args:
      vocab_size: of the tokenizer, which need not be there.
    """
    platform = mesh.devices.flat[0].platform
    modules = make_modules(config, vocab_size, platform)
    optimizer = make_optimizer(config.optimizer, config.train.num_steps)
    arguments = abstract_arguments(config, modules, mesh)  # eager operations: not under the mesh
    with rules.on_mesh(mesh, config.mesh.param_axes):
        step = jax.jit(
            make_train_step(modules, optimizer.transform),
            donate_argnums=0,
            out_shardings=(shardings_of(arguments.state), None),
        )
        return step.lower(*arguments)
