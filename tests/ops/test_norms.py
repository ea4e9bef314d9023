from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from mogao_jax.ops.norms import RMSNorm, modulate, per_token, rms_norm


def reference(x, scale, eps):
    x = np.asarray(x, np.float64)
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * scale


def test_values_and_gradients():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 5, 12)).astype(np.float32) * 4
    scale = rng.normal(size=12).astype(np.float32)
    weights = rng.normal(size=x.shape)
    np.testing.assert_allclose(rms_norm(x, scale, 1e-2), reference(x, scale, 1e-2), rtol=1e-5)
    np.testing.assert_allclose(rms_norm(x, None, 1e-2), reference(x, 1.0, 1e-2), rtol=1e-5)

    gradient = jax.grad(lambda x, s: jnp.sum(rms_norm(x, s, 1e-2) * weights), argnums=(0, 1))
    dx, dscale = gradient(jnp.asarray(x), jnp.asarray(scale))
    step = 1e-6  # central differences in float64
    for index in [(0, 0, 0), (1, 4, 7), (2, 2, 11)]:
        moved = np.zeros(x.shape)
        moved[index] = step
        slope = reference(x + moved, scale, 1e-2) - reference(x - moved, scale, 1e-2)
        np.testing.assert_allclose(dx[index], np.sum(slope * weights) / (2 * step), rtol=1e-4)
    expected = np.sum(reference(x, 1.0, 1e-2) * weights, axis=(0, 1))
    np.testing.assert_allclose(dscale, expected, rtol=1e-5, atol=1e-5)


def test_module_has_a_weight_of_ones_and_keeps_the_dtype():
    module = RMSNorm(eps=1e-6)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 8)), jnp.bfloat16)
    variables = module.init(jax.random.key(0), x)
    np.testing.assert_array_equal(variables["params"]["scale"], np.ones(8, np.float32))
    out = module.apply(variables, x)
    assert out.dtype == jnp.bfloat16
    # Computed in float32 and rounded once: within half a unit in the last place of bfloat16.
    np.testing.assert_allclose(
        np.asarray(out, np.float32), reference(x.astype(jnp.float32), 1.0, 1e-6), rtol=2**-8
    )


def test_zeros_stay_zeros_with_finite_gradients():
    gradient = jax.grad(lambda x: jnp.sum(rms_norm(x)))(jnp.zeros((2, 4)))
    assert np.all(np.isfinite(gradient))
    np.testing.assert_array_equal(rms_norm(jnp.zeros((2, 4))), np.zeros((2, 4)))


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
