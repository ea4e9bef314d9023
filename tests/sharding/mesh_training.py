"""Twenty optimizer steps of a tiny Mogao on a mesh of any sizes, by one process or by several.

As a program it is one of two processes with four devices each:
`python mesh_training.py PORT PROCESS FOLDER 2x4x1x1 ...` saves the losses and parameters of each.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tiny_system as tiny

from mogao_jax.config.schema import MeshConfig, OptimizerConfig
from mogao_jax.models.modules import EncoderParams, init_params
from mogao_jax.models.vit import VisionTower, stacked
from mogao_jax.sequence.document import Document, Image, Text
from mogao_jax.sharding import multihost, rules
from mogao_jax.sharding.mesh import (
    encoder_shardings,
    global_batch,
    make_mesh,
    replicated,
    row_reader,
)
from mogao_jax.training.optimizer import make_optimizer
from mogao_jax.training.state import abstract_state, shardings_of, state_from
from mogao_jax.training.step import make_train_step, total_loss

DEVICES, STEPS, ROWS = 8, 20, 8


class PooledVae(nn.Module):
    """Stands in for the autoencoder: means over squares of 8 pixels, in as many channels.

    It has next to nothing to compile, and this file compiles twenty programs.
    """

    def encode_latents(self, pixels, size, noise):
        shape = pixels.shape
        means = pixels.reshape(shape[0], shape[1] // 8, 8, shape[2] // 8, 8, 3).mean((2, 4))
        return jnp.tile(means, 6)[..., :16] + 0.1 * noise


def documents() -> list[list[Document]]:
    """Unequal rows: text alone, an image alone, interleaved ones, a question about an image."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(ROWS):
        question = Image(pixels=tiny.image(rng).pixels, loss=False)
        rows.append(
            [
                [Document([Text("a" * (1 + i))], id=f"text-{i}")],
                [Document([tiny.image(rng, 16, 16)], id=f"image-{i}")],
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
    modules = dataclasses.replace(tiny.load_modules(cfg), vae=PooledVae())
    batch = jax.tree.map(lambda x: x[None], tiny.rows(documents(), cfg))
    return modules, jax.device_get(tiny.make_params(modules)), batch


@functools.cache
def vision_tower() -> EncoderParams:
    batch = jax.tree.map(jnp.asarray, tiny.rows([[tiny.text_document("a")]]))
    init = jax.jit(VisionTower(tiny.CONFIG.vit).init)
    params = nn.unbox(init(jax.random.key(2), *batch.vit[:3])["params"])
    return EncoderParams({}, stacked(jax.device_get(params)))  # as `scan_layers` has them


def train(sizes: tuple[int, ...], param_axes: tuple[str, ...] = ("fsdp",)):
    """(losses float32[STEPS], parameters on the host) of a run on a mesh of these sizes.

    Args:
      param_axes: mesh axes that weights are sharded over, as config `mesh.param_axes` says.
    """
    modules, params, batch = case()
    mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: math.prod(sizes)])
    optimizer = make_optimizer(modules.config.optimizer, STEPS)
    step = make_train_step(modules, optimizer.transform)

    def run(state, encoders, batch):
        def one(state, _):
            state, metrics = step(state, encoders, batch, jnp.float32(1e-3))
            return state, total_loss(metrics["ntp_loss"], metrics["flow_loss"], 1.0)

        return jax.lax.scan(one, state, None, length=STEPS)

    with rules.on_mesh(mesh, param_axes):
        boxed = functools.partial(
            init_params, modules.config, modules.model, jax.random.key(0)
        )  # with the logical names of their axes
        abstract = abstract_state(boxed, optimizer.transform, mesh, param_axes=param_axes)
        placed = jax.device_put(params, shardings_of(abstract.params))
        state = state_from(placed, abstract, optimizer.transform)
        tower = vision_tower()
        encoders = jax.device_put(tower, encoder_shardings(mesh, tower, "sharded"))
        batch = global_batch(mesh, own_rows(mesh, batch), batch_axis=1)
        run = jax.jit(run, out_shardings=(shardings_of(abstract), replicated(mesh)))
        # The same arithmetic either way; unoptimised, it compiles in half the time.
        compiled = run.lower(state, encoders, batch).compile(
            {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
        )
        state, losses = jax.block_until_ready(compiled(state, encoders, batch))
        whole = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(state.params)
    return np.asarray(losses), jax.device_get(whole)


def own_rows(mesh: jax.sharding.Mesh, batch):
    """Of a batch with axes [1, ROWS, ...], the rows that this process reads."""
    reader, num_readers = row_reader(mesh)
    each = ROWS // num_readers
    return jax.tree.map(lambda x: x[:, reader * each : (reader + 1) * each], batch)


def main(port: str, process: str, folder: str, *meshes: str) -> None:
    jax.config.update("jax_num_cpu_devices", DEVICES // 2)
    assert multihost.initialize(f"127.0.0.1:{port}", 2, int(process), heartbeat_timeout_seconds=600)
    assert len(jax.devices()) == DEVICES
    for mesh in meshes:
        losses, params = train(tuple(map(int, mesh.split("x"))))
        if multihost.is_main():
            leaves = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(params))}
            np.savez(pathlib.Path(folder) / f"{mesh}.npz", losses=losses, **leaves)
        multihost.sync(mesh)


if __name__ == "__main__":
    main(*sys.argv[1:])
