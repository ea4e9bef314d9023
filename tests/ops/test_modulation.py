from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from mogao_jax.ops.modulation import modulate, per_token


def test_modulate():
    x = np.array([[1.0, -2.0], [3.0, 4.0]], np.float32)
    shift, scale = np.array([0.5, 1.0], np.float32), np.array([1.0, -0.5], np.float32)
    np.testing.assert_array_equal(modulate(x, shift, scale), [[2.5, 0.0], [6.5, 3.0]])
    np.testing.assert_array_equal(modulate(x, np.zeros(2), np.zeros(2)), x)
    assert modulate(jnp.asarray(x, jnp.bfloat16), shift, scale).dtype == jnp.bfloat16


def test_per_token_picks_lines_and_sums_gradients():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(2, 5, 7)).astype(np.float32)
    index = rng.integers(-1, 5, size=(2, 40)).astype(np.int32)
    index[0, -3:] = -1
    cotangent = rng.normal(size=(2, 40, 7)).astype(np.float32)
    out, vjp = jax.vjp(lambda t: per_token(t, jnp.asarray(index)), jnp.asarray(table))
    expected, gradient = np.zeros((2, 40, 7), np.float32), np.zeros((2, 5, 7))
    for b in range(2):
        for token in range(40):
            if index[b, token] >= 0:
                expected[b, token] = table[b, index[b, token]]
                gradient[b, index[b, token]] += cotangent[b, token]
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_allclose(vjp(jnp.asarray(cotangent))[0], gradient, rtol=1e-5, atol=1e-5)


def test_per_token_keeps_the_dtype_and_takes_no_tokens():
    table = jnp.ones((1, 3, 4), jnp.bfloat16)
    index = jnp.zeros((1, 6), jnp.int32)
    out, vjp = jax.vjp(lambda t: per_token(t, index), table)
    assert out.dtype == vjp(out)[0].dtype == jnp.bfloat16
    assert per_token(table, index[:, :0]).shape == (1, 0, 4)
