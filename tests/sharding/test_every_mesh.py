"""Twenty optimizer steps on every mesh of eight devices, against one device."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_system as tiny

from mogao_jax.config.schema import MeshConfig, OptimizerConfig
from mogao_jax.models.system import EncoderParams, init_params
from mogao_jax.models.vit import VisionTower
from mogao_jax.sequence.document import Document, Image, Text
from mogao_jax.sharding import rules
from mogao_jax.sharding.mesh import global_batch, make_mesh, replicated
from mogao_jax.training.objective import total_loss
from mogao_jax.training.optimizer import make_optimizer
from mogao_jax.training.state import abstract_state, shardings_of, state_from
from mogao_jax.training.step import make_train_step

DEVICES, STEPS, ROWS = 8, 20, 8
MESHES = [
    sizes for sizes in itertools.product((1, 2, 4, 8), repeat=4) if math.prod(sizes) == DEVICES
]


class PooledVae(nn.Module):
    """Stands in for the autoencoder: means over squares of 8 pixels, in as many channels.

    It has next to nothing to compile, and this file compiles twenty programs.
    """

    def encode_latents(self, pixels, size, noise):
        shape = pixels.shape
        means = pixels.reshape(shape[0], shape[1] // 8, 8, shape[2] // 8, 8, 3).mean((2, 4))
        return jnp.tile(means, 6)[..., :16] + 0.1 * noise


def documents() -> list[list[Document]]:
    """Unequal rows: text alone, a picture alone, interleaved ones, a question about a picture."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(ROWS):
        question = Image(pixels=tiny.picture(rng).pixels, loss=False)
        rows.append(
            [
                [Document([Text("a" * (1 + i))], id=f"text-{i}")],
                [Document([tiny.picture(rng, 16, 16)], id=f"image-{i}")],
                [tiny.interleaved_document(i), tiny.interleaved_document(i + 50, 1)],
                [Document([question, Text("what?", loss=False), Text("x")], id=f"answer-{i}")],
            ][i % 4]
        )
    return rows


@functools.cache
def case():
    """Eight heads for "tensor" 8, on two KV heads; a loop over two layers; parts that divide."""
    cfg = tiny.config(
        model={"num_heads": 8, "num_kv_heads": 2, "head_dim": 8, "scan_layers": True,
               "remat": "full"}
    )  # fmt: skip
    cfg = dataclasses.replace(cfg, optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=0))
    system = dataclasses.replace(tiny.make_system(cfg), vae=PooledVae())
    batch = jax.tree.map(lambda x: x[None], tiny.rows(documents(), cfg))
    return system, jax.device_get(tiny.make_params(system)), batch


@functools.cache
def vision_tower() -> EncoderParams:
    batch = jax.tree.map(jnp.asarray, tiny.rows([[tiny.text_document("a")]]))
    init = jax.jit(VisionTower(tiny.CONFIG.vit).init)
    return EncoderParams({}, nn.unbox(init(jax.random.key(2), *batch.vit[:3])["params"]))


def train(sizes: tuple[int, ...]):
    """(losses float32[STEPS], parameters on the host) of a run on a mesh of these sizes."""
    system, params, batch = case()
    mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: math.prod(sizes)])
    optimizer = make_optimizer(system.config.optimizer, STEPS)
    step = make_train_step(system, optimizer.transform)

    def run(state, encoders, batch):
        def one(state, _):
            state, metrics = step(state, encoders, batch, jnp.float32(1e-3))
            return state, total_loss(metrics["ntp_loss"], metrics["flow_loss"], 1.0)

        return jax.lax.scan(one, state, None, length=STEPS)

    with rules.on_mesh(mesh):
        boxed = functools.partial(
            init_params, system.config, system.model, jax.random.key(0)
        )  # with the logical names of their axes
        abstract = abstract_state(boxed, optimizer.transform, mesh)
        placed = jax.device_put(params, shardings_of(abstract.params))
        state = state_from(placed, abstract, optimizer.transform)
        encoders = jax.device_put(vision_tower(), replicated(mesh))
        batch = global_batch(mesh, batch, batch_axis=1)
        run = jax.jit(run, out_shardings=(shardings_of(abstract), None))
        # The same arithmetic either way; unoptimised, it compiles in half the time.
        compiled = run.lower(state, encoders, batch).compile(
            {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
        )
        state, losses = jax.block_until_ready(compiled(state, encoders, batch))
    return np.asarray(losses), jax.device_get(state.params)


@functools.cache
def alone():
    return train((1, 1, 1, 1))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", MESHES, ids=lambda s: "x".join(map(str, s)))
def test_training_is_that_of_one_device(sizes):
    losses, params = train(sizes)
    expected_losses, expected = alone()
    assert expected_losses[-1] < 0.9 * expected_losses[0]  # it learns
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert tiny.relative_error(params, expected) < 1e-4
    for ours, theirs in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
        assert tiny.relative_error(ours, theirs) < 1e-3
