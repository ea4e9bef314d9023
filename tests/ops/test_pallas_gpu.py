"""The GPU kernels: interpreted, against the whole mask in float64; and lowered for CUDA."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_attention import problem, reference
from test_pallas_tpu import TOLERANCE, relative_errors

from mogao_jax.ops.attention.pallas_gpu import gpu_attention
from mogao_jax.ops.attention.parts import Parts


def run(q, k, v, weights, q_meta, k_meta, **options):
    def loss(q, k, v):
        out = gpu_attention(q, k, v, q_meta, k_meta, interpret=True, **options)
        products = jax.tree.map(lambda o, w: jnp.sum(o * w), out, weights)
        return sum(jax.tree.leaves(products)), out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    return out, *gradients


@pytest.mark.parametrize("text_reads_vae", [False, True])
def test_values_and_gradients(random_packing, text_reads_vae):
    meta = random_packing(3, 2, (33, 20, 40))
    given = problem(meta, meta, 4, 2, head_dim=12)  # a head that is padded
    ours = run(*given, meta, meta, block_q=32, block_kv=16, text_reads_vae=text_reads_vae)
    theirs = reference(*given, meta, meta, text_reads_vae=text_reads_vae)
    assert max(relative_errors(ours, theirs)) < TOLERANCE


def test_a_long_document_has_full_tiles():
    from test_pallas_tpu import long_document

    meta = long_document()
    given = problem(meta, meta, 2, 1)
    ours = run(*given, meta, meta, block_q=16, block_kv=16)
    assert max(relative_errors(ours, reference(*given, meta, meta))) < TOLERANCE


def test_nothing_to_read(random_packing):
    meta = random_packing(10, 1, (16, 8, 8))
    q, k, v, _ = problem(meta, meta, 2, 1)
    out = gpu_attention(
        Parts(und=q.und), Parts(noised=k.noised), Parts(noised=v.noised),
        Parts(und=meta.und), Parts(noised=meta.noised), interpret=True,
    )  # fmt: skip
    assert out.und.shape == q.und.shape and not np.any(np.asarray(out.und))


@pytest.mark.parametrize(("head_dim", "dtype"), [(128, jnp.bfloat16), (80, jnp.float32)])
def test_lowered_for_cuda(random_packing, head_dim, dtype):
    """Triton takes all three kernels as they are: forward, dq, and dk with dv."""
    meta = random_packing(4, 2, (70, 20, 40))
    q, k, v, _ = problem(meta, meta, 4, 2, head_dim, dtype)

    def loss(q, k, v):
        out = gpu_attention(q, k, v, meta, meta)
        return sum(jnp.sum(x.astype(jnp.float32)) for x in out)

    traced = jax.jit(jax.value_and_grad(loss, (0, 1, 2))).trace(q, k, v)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    calls = [line for line in text.splitlines() if "custom_call @__gpu$xla.gpu.triton" in line]
    assert len(calls) == 3
