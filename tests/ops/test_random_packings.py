"""Both kernels, interpreted, on two hundred random packings, against the whole mask in float64."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_attention import problem, reference
from test_pallas_tpu import TOLERANCE

from mogao_jax.ops.attention.pallas_gpu import gpu_attention
from mogao_jax.ops.attention.pallas_tpu import pallas_attention
from mogao_jax.ops.attention.parts import Parts
from mogao_jax.sequence.masking import TEXT, VAE_CLEAN, VAE_NOISED, TokenMeta

# (lengths of und, clean and noised; query heads, KV heads; blocks): few shapes to compile.
SHAPES = [
    ((37, 13, 22), 4, 2, (16, 16)),
    ((29, 11, 17), 2, 2, (16, 32)),
    ((23, 9, 31), 3, 1, (32, 16)),
    ((41, 0, 19), 4, 1, (16, 16)),  # no clean tokens
    ((1, 0, 27), 2, 1, (16, 16)),  # next to no text, no clean tokens
    ((45, 0, 0), 6, 2, (16, 16)),  # text alone
    ((1, 1, 1), 2, 2, (16, 16)),
    ((33, 17, 25), 8, 2, (16, 16)),  # documents of one token
]
EACH = 25
KERNELS = {"tpu": pallas_attention, "gpu": gpu_attention}


def one_token_documents(seed: int, lengths: tuple[int, int, int]) -> Parts:
    """Every token a document of its own, padding strewn between them."""
    rng = np.random.default_rng(seed)
    parts = []
    for length, kind in zip(lengths, (TEXT, VAE_CLEAN, VAE_NOISED), strict=True):
        segment = rng.permutation(sum(lengths))[:length].astype(np.int32)[None]
        segment = segment * (rng.random(segment.shape) < 0.8)
        parts.append(TokenMeta(segment, np.zeros_like(segment), np.full_like(segment, kind)))
    return Parts(*parts)


def errors(ours, wanted):
    """Relative errors of the output and of each gradient. A gradient that is next to nothing
    beside the others is measured by a hundredth of the largest, and one that is zero (all
    queries read one key alone) by the largest: there is nothing else to be relative to."""
    norms = [np.linalg.norm(x) for x in wanted]
    largest = max(norms[1:])
    floors = [1e-12, *(1e-2 * largest if norm else largest for norm in norms[1:])]
    for part, x, norm, floor in zip(ours, wanted, norms, floors, strict=True):
        joined = np.concatenate([np.asarray(p, np.float64) for p in part], axis=1)
        yield np.linalg.norm(joined - x) / max(norm, floor, 1e-12)


@functools.cache
def compiled(kernel: str, blocks: tuple[int, int]):
    @jax.jit
    def run(q, k, v, weights, meta):
        def loss(q, k, v):
            out = KERNELS[kernel](
                q, k, v, meta, meta, block_q=blocks[0], block_kv=blocks[1], interpret=True
            )
            products = jax.tree.map(lambda o, w: jnp.sum(o * w), out, weights)
            return sum(jax.tree.leaves(products)), out

        (_, out), gradients = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(q, k, v)
        return out, *gradients

    return run


@pytest.mark.slow
@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_values_and_gradients(random_packing, shape):
    lengths, heads, kv_heads, blocks = SHAPES[shape]
    assert len(SHAPES) * EACH >= 200
    for seed in range(EACH):
        if shape == len(SHAPES) - 1:
            meta = one_token_documents(seed, lengths)
        else:
            meta = random_packing(1000 * shape + seed, 1, lengths)
        given = problem(meta, meta, heads, kv_heads)
        wanted = reference(*given, meta, meta)
        for kernel in KERNELS:
            ours = compiled(kernel, blocks)(*given, jax.tree.map(jnp.asarray, meta))
            worst = np.max(list(errors(ours, wanted)))  # NaN if any is
            assert worst < TOLERANCE, (kernel, seed, worst)
