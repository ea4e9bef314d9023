from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from mogao_jax.ops.norms import RMSNorm, rms_norm


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
