"""The token embedding on a mesh, against a plain look-up."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from mogao_jax.ops.embedding import embed_tokens


@pytest.mark.parametrize("sizes", [(2, 4, 1, 1), (1, 2, 2, 2), (1, 1, 8, 1)])
@pytest.mark.parametrize("vocab", [24, 21])
def test_values_and_gradients(sizes, vocab):
    rng = np.random.default_rng(0)
    table = jnp.asarray(rng.normal(size=(vocab, 8)), jnp.float32)
    tokens = jnp.asarray(rng.integers(0, vocab, (8, 6)), jnp.int32)
    weights = jnp.asarray(rng.normal(size=(8, 6, 8)), jnp.float32)

    def loss(table):
        return jnp.sum(embed_tokens(table, tokens, jnp.float32) * weights)

    value, gradient = jax.value_and_grad(lambda t: jnp.sum(t[tokens] * weights))(table)
    mesh = jax.make_mesh(
        sizes, ("data", "fsdp", "tensor", "context"), axis_types=(AxisType.Auto,) * 4
    )
    with jax.set_mesh(mesh):
        split_value, split = jax.jit(jax.value_and_grad(loss))(table)
    np.testing.assert_allclose(split_value, value, rtol=1e-5)
    np.testing.assert_allclose(np.asarray(split), gradient, rtol=1e-5, atol=1e-5)


def test_gradients_of_narrow_states_add_up_in_float32():
    """A token that stands there a thousand times: bfloat16 sums would stop growing at 256."""
    table, tokens = jnp.ones((4, 2)), jnp.zeros((8, 128), jnp.int32)
    mesh = jax.make_mesh((8, 1), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)

    def loss(table):
        return jnp.sum(embed_tokens(table, tokens, jnp.bfloat16).astype(jnp.float32))

    with jax.set_mesh(mesh):
        assert embed_tokens(table, tokens, jnp.bfloat16).dtype == jnp.bfloat16
        gradient = jax.jit(jax.grad(loss))(table)
    np.testing.assert_array_equal(np.asarray(gradient)[0], 1024.0)
