"""Attention with rows, heads and queries split over a mesh is attention on one device."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from test_attention import assert_close, problem

from mogao_jax.ops.attention.api import MeshAxes, over_mesh
from mogao_jax.ops.attention.pallas_gpu import gpu_attention
from mogao_jax.ops.attention.pallas_tpu import pallas_attention
from mogao_jax.ops.attention.parts import Parts
from mogao_jax.ops.attention.xla import dense_attention

AXES = MeshAxes(batch=("data",))
LENGTHS = (24, 8, 16)


def make_mesh(*sizes: int):
    return jax.make_mesh(sizes, ("data", "tensor", "context"), axis_types=(AxisType.Auto,) * 3)


def step(compute, q, k, v, weights, meta):
    """A function to jit: outputs and gradients."""

    def run(q, k, v, meta):
        def loss(q, k, v):
            out = over_mesh(compute, q, k, AXES)(q, k, v, meta, meta)
            products = jax.tree.map(lambda o, w: jnp.sum(o * w), out, weights)
            return sum(jax.tree.leaves(products)), out

        (_, out), gradients = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(q, k, v)
        return out, gradients

    return jax.jit(run)


@pytest.mark.parametrize(
    ("sizes", "heads", "kv_heads"),
    [
        ((2, 2, 2), 4, 2),
        ((1, 8, 1), 8, 2),  # four devices share a KV head
        ((1, 2, 4), 6, 3),  # a device's heads read KV heads 0 and 1, or 1 and 2
        ((1, 4, 2), 6, 3),  # heads that do not divide: whole on each device
        ((1, 1, 8), 2, 1),
    ],
)
def test_every_split_is_the_whole(random_packing, sizes, heads, kv_heads):
    meta = jax.tree.map(jnp.asarray, random_packing(17, 2, LENGTHS))
    q, k, v, weights = problem(meta, meta, heads, kv_heads)
    alone = step(dense_attention, q, k, v, weights, meta)(q, k, v, meta)
    with jax.set_mesh(make_mesh(*sizes)):
        split = step(dense_attention, q, k, v, weights, meta)(q, k, v, meta)
    assert_close(jax.tree.map(np.asarray, split), jax.tree.map(np.asarray, alone))


def test_parts_that_do_not_divide_stay_whole(random_packing):
    meta = jax.tree.map(jnp.asarray, random_packing(18, 2, (25, 8, 16)))
    q, k, v, weights = problem(meta, meta, 2, 1)
    alone = step(dense_attention, q, k, v, weights, meta)(q, k, v, meta)
    with jax.set_mesh(make_mesh(1, 1, 8)):
        split = step(dense_attention, q, k, v, weights, meta)(q, k, v, meta)
    assert_close(jax.tree.map(np.asarray, split), jax.tree.map(np.asarray, alone))


@pytest.mark.parametrize("kernel", [pallas_attention, gpu_attention])
def test_kernels_run_per_device(random_packing, kernel):
    meta = jax.tree.map(jnp.asarray, random_packing(19, 2, LENGTHS))
    q, k, v, weights = problem(meta, meta, 4, 2)
    alone = step(dense_attention, q, k, v, weights, meta)(q, k, v, meta)
    compute = functools.partial(kernel, block_q=16, block_kv=16, interpret=True)
    with jax.set_mesh(make_mesh(2, 2, 2)):
        split = step(compute, q, k, v, weights, meta)(q, k, v, meta)
    assert_close(jax.tree.map(np.asarray, split), jax.tree.map(np.asarray, alone))


def test_context_gathers_keys_and_scatters_their_gradients(random_packing, collectives):
    """Queries, outputs and metadata stay where they are."""
    meta = jax.tree.map(jnp.asarray, random_packing(20, 2, LENGTHS))
    q, k, v, weights = problem(meta, meta, 4, 2)
    mesh = make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        lies = NamedSharding(mesh, PartitionSpec("data", "context", "tensor"))
        q, k, v, weights = jax.device_put((q, k, v, weights), lies)
        meta = jax.device_put(meta, NamedSharding(mesh, PartitionSpec("data")))

        def run(q, k, v, meta):
            out, vjp = jax.vjp(
                lambda *x: over_mesh(dense_attention, q, k, AXES)(*x, meta, meta), q, k, v
            )
            return vjp(Parts(*weights))

        text = jax.jit(run).lower(q, k, v, meta).compile().as_text()
    assert {kind for kind, _ in collectives(text)} == {"all-gather", "reduce-scatter"}
