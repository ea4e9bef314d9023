"""Our transformer, as `mogao train` runs it on this machine: a row per device."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mogao_jax.config.schema import MeshConfig
from mogao_jax.models.mogao import build, example_inputs, make_inputs, vit_feature_shape
from mogao_jax.sequence.batch import PackedBatch
from mogao_jax.sharding import rules
from mogao_jax.sharding.mesh import batch_sharding, make_mesh, replicated
from mogao_jax.tokenizer import ByteTokenizer
from mogao_jax.tools.bench.packed_documents import Setting


def make_step(setting: Setting, batch: PackedBatch) -> Callable[[], None]:
    """A call that computes the gradients of all parameters, and waits for them."""
    config = setting.config()
    model = build(
        config.model,
        config.vae,
        config.vit,
        vocab_size=ByteTokenizer().vocab_size,
        text_reads_vae=False,
    )
    channels = 4 * config.vae.latent_channels
    features = vit_feature_shape(config.vit, config.model.connector, batch.vit.pixels.shape[1])
    count = min(setting.rows, len(jax.devices()))
    mesh = make_mesh(MeshConfig(), jax.devices()[:count])
    rng = np.random.default_rng(1)
    rows, copies = batch.noised.image.shape[0], batch.images.size.shape[1]

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape, np.float32))

    inputs = make_inputs(
        batch,
        vit_features=normal(rows, *features),
        clean_latents=normal(rows, batch.clean.image.shape[1], channels),
        noised_latents=normal(rows, batch.noised.image.shape[1], channels),
        timesteps=jnp.asarray(rng.random((rows, copies), np.float32)),
        noised_index=batch.noised.image,
    )
    inputs = jax.device_put(inputs, batch_sharding(mesh))
    tiny = example_inputs((1, 8, 4, 4, 1), channels, (4, features[1]))
    params = rules.unbox(jax.jit(model.init)(jax.random.key(0), tiny)["params"])
    params = jax.device_put(params, replicated(mesh))

    def loss(params, inputs):
        out = model.apply({"params": params}, inputs)
        return jnp.mean(out.und_hidden**2) + jnp.mean(out.velocity**2)

    with rules.on_mesh(mesh):
        gradients = jax.jit(jax.grad(loss)).lower(params, inputs).compile()

    def step() -> None:
        jax.block_until_ready(gradients(params, inputs))

    return step
