"""Remat policies: the same gradients, and what is run again is what each of them says."""

from __future__ import annotations

import functools
import os
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_system as tiny

from mogao_jax.config.schema import AttentionConfig, ModelConfig
from mogao_jax.models.block import Block, Rotations, Streams, rematerialised
from mogao_jax.ops.attention.api import attention
from mogao_jax.ops.attention.parts import Parts
from mogao_jax.ops.rope import rope_angles
from mogao_jax.sequence.masking import TEXT, VAE_CLEAN, VAE_NOISED, TokenMeta

POLICIES = ("none", "keep_matmuls", "keep_attention", "full")
UND, CLEAN, NOISED, DIM = 24, 8, 16, 32


def _attend(queries, keys, values, query_meta, key_meta):
    return attention(queries, keys, values, query_meta, query_meta, AttentionConfig("auto", 8, 8))


def _meta(length: int, order: int | None, kind: int) -> TokenMeta:
    orders = jnp.arange(length) if order is None else jnp.full(length, order)
    return TokenMeta(*(x[None].astype(jnp.int32) for x in
                       (jnp.ones(length), orders, jnp.full(length, kind))))  # fmt: skip


def arguments():
    keys = jax.random.split(jax.random.key(0), 3)
    streams = Streams(jax.random.normal(keys[0], (1, UND, DIM)),
                      jax.random.normal(keys[1], (1, CLEAN + NOISED, DIM)))  # fmt: skip
    conditioning = jax.random.normal(keys[2], (1, 2, DIM))
    index = jnp.asarray([[0] * CLEAN + [1] * NOISED])
    positions = [jnp.arange(n, dtype=jnp.float32)[None, :, None] * jnp.ones(3)
                 for n in (UND, CLEAN + NOISED)]  # fmt: skip
    rotations = Rotations(*(rope_angles(p, 8, 1e4, "il_rope") for p in positions))
    meta = Parts(_meta(UND, None, TEXT), _meta(CLEAN, 9, VAE_CLEAN), _meta(NOISED, 30, VAE_NOISED))
    return streams, conditioning, index, rotations, meta


@functools.cache
def gradients(policy: str):
    """(gradients of one layer, compiled program's text, bytes kept for the backward pass)."""
    config = ModelConfig(embed_dim=DIM, mlp_dim=48, num_heads=4, num_kv_heads=2, head_dim=8)
    block = rematerialised(Block, policy, in_scan=False)(config, _attend)
    given = arguments()
    params = jax.jit(lambda: nn.unbox(block.init(jax.random.key(1), *given)))()
    rng = np.random.default_rng(0)  # off their initial values, so that no gate is shut
    params = jax.tree.map(lambda x: x + 0.02 * rng.normal(size=x.shape).astype(x.dtype), params)

    def loss(params, streams):
        (und, gen), _ = block.apply(params, streams, *given[1:])
        return jnp.sum(jnp.square(und)) + jnp.sum(jnp.square(gen))

    lowered = jax.jit(jax.grad(loss, (0, 1))).lower(params, given[0])
    # With fusions as programs have them (conftest.py leaves them out), since loops are counted.
    left_out = "fusion_emitters" in os.environ["XLA_FLAGS"]
    compiled = lowered.compile({"xla_cpu_use_fusion_emitters": True} if left_out else None)
    _, pullback = jax.eval_shape(lambda p, s: jax.vjp(loss, p, s), params, given[0])
    kept = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(pullback))
    return jax.device_get(compiled(params, given[0])), compiled.as_text(), kept


def _count(policy: str, operation: str) -> int:
    return len(re.findall(rf" {operation}\(", gradients(policy)[1]))


@pytest.mark.parametrize("policy", POLICIES[1:])
def test_gradients_are_equal(policy):
    ours, expected = (gradients(p)[0] for p in (policy, "none"))
    assert all(np.any(x) for x in jax.tree.leaves(expected))
    assert tiny.relative_error(ours, expected) < 1e-6


def test_what_is_kept_and_what_is_run_again():
    kept = [gradients(policy)[2] for policy in POLICIES]
    assert kept == sorted(kept, reverse=True) and len(set(kept)) == 4
    dots = {policy: _count(policy, "dot") for policy in POLICIES}
    loops = {policy: _count(policy, "while") for policy in POLICIES}
    assert dots["keep_matmuls"] == dots["none"] < dots["keep_attention"] < dots["full"]
    assert loops["keep_attention"] == loops["keep_matmuls"] == loops["none"] < loops["full"]


def test_an_unknown_policy():
    with pytest.raises(ValueError, match="keep_attention"):
        rematerialised(Block, "some", in_scan=False)
