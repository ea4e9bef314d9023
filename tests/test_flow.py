"""flow.py against the paper's equations, SD3's formulas in their own convention, and known ODEs."""

from __future__ import annotations

import itertools
import math
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mogao_jax import flow
from mogao_jax.config.schema import ObjectiveConfig
from mogao_jax.sampling.guided_flow import time_grid

RNG = np.random.default_rng(0)


def test_path_ends_and_its_derivative_is_the_velocity():
    x = RNG.normal(size=(3, 4, 5, 2))
    noise = RNG.normal(size=x.shape)
    np.testing.assert_array_equal(flow.interpolate(x, noise, 1.0), x)  # t = 1 is data
    np.testing.assert_array_equal(flow.interpolate(x, noise, 0.0), noise)
    t, h = np.array([0.2, 0.5, 0.9]), 1e-3  # one t per image
    slope = (flow.interpolate(x, noise, t + h) - flow.interpolate(x, noise, t - h)) / (2 * h)
    np.testing.assert_allclose(slope, flow.velocity_target(x, noise), rtol=1e-9, atol=1e-9)
    for i in range(3):
        expected = t[i] * x[i] + (1 - t[i]) * noise[i]
        np.testing.assert_allclose(flow.interpolate(x, noise, t)[i], expected, rtol=1e-12)


def test_path_keeps_numpy_float32():
    x = np.ones((2, 3), np.float32)
    assert flow.interpolate(x, x, 0.5).dtype == np.float32


@pytest.mark.parametrize("s", [0.5, 1.0, 1.7, 3.0])
def test_shift_is_sd3s_in_its_own_convention(s):
    t = np.linspace(0, 1, 101)
    sigma = 1 - t  # SD3: the amount of noise
    expected = s * sigma / (1 + (s - 1) * sigma)
    np.testing.assert_allclose(1 - flow.shift_timesteps(t, s), expected, rtol=1e-12, atol=1e-15)
    inner = flow.shift_timesteps(t, s)[1:-1]
    towards_noise = inner < t[1:-1]
    assert towards_noise.all() if s > 1 else not towards_noise.any()


def test_shifts_compose():
    t = np.linspace(0, 1, 11)
    np.testing.assert_allclose(
        flow.shift_timesteps(flow.shift_timesteps(t, 2.0), 1.5),
        flow.shift_timesteps(t, 3.0),
        rtol=1e-12,
    )


def test_resolution_shift_equalises_the_noise_ratio():
    """SD3's reason for equation 23: sqrt(n) (1-sigma)/sigma is the same at every resolution."""
    config = ObjectiveConfig(shift="resolution", shift_base_tokens=256, timesteps="uniform")
    u = np.linspace(0.05, 0.95, 19)
    ratios = []
    for n in (64, 256, 1024):
        t = np.asarray(flow.timesteps_from_uniforms(u, config, n), np.float64)
        ratios.append(math.sqrt(n) * t / (1 - t))
    np.testing.assert_allclose(ratios[0], ratios[1], rtol=2e-5)
    np.testing.assert_allclose(ratios[2], ratios[1], rtol=2e-5)


def test_shift_modes():
    tokens = np.array([0, 64, 256, 1024])
    none = flow.timestep_shift(ObjectiveConfig(shift="none"), tokens)
    constant = flow.timestep_shift(ObjectiveConfig(shift="constant", shift_factor=3.0), tokens)
    resolution = flow.timestep_shift(ObjectiveConfig(shift="resolution"), tokens)
    np.testing.assert_array_equal(none, np.ones(4))
    np.testing.assert_array_equal(constant, np.full(4, 3.0))
    np.testing.assert_allclose(resolution, [1 / 16, 0.5, 1, 2], rtol=1e-6)


@pytest.mark.parametrize(("m", "s"), [(0.0, 1.0), (-0.5, 1.3)])
def test_logit_normal_quantiles(m, s):
    config = ObjectiveConfig(logit_mean=m, logit_std=s, shift="none")
    u = np.concatenate([[1e-4], np.linspace(0.01, 0.99, 99), [0.9999]])
    expected = [1 / (1 + math.exp(-(m + s * NormalDist().inv_cdf(v)))) for v in u]
    got = flow.timesteps_from_uniforms(u, config, 256)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_logit_normal_moments_and_density():
    """Draws from a key have the moments of the density (SD3, equation 19), by quadrature."""
    m, s = 0.4, 0.8
    config = ObjectiveConfig(logit_mean=m, logit_std=s, shift="none")
    grid = (np.arange(200_000) + 0.5) / 200_000
    logit = np.log(grid / (1 - grid))
    density = np.exp(-((logit - m) ** 2) / (2 * s * s)) / (
        s * math.sqrt(2 * math.pi) * grid * (1 - grid)
    )
    mean, second = (density * grid).mean(), (density * grid**2).mean()
    num = 200_000
    u = jax.random.uniform(jax.random.key(0), (num,))
    t = np.asarray(flow.timesteps_from_uniforms(u, config, np.full(num, 256)), np.float64)
    deviation = math.sqrt((second - mean**2) / num)
    assert abs(t.mean() - mean) < 5 * deviation
    np.testing.assert_allclose((t**2).mean(), second, rtol=0.01)
    stratified = flow.timesteps_from_uniforms((np.arange(4096) + 0.5) / 4096, config, 256)
    np.testing.assert_allclose(np.mean(stratified), mean, rtol=1e-5)


@pytest.mark.parametrize("timesteps", ["logit_normal", "uniform"])
def test_timesteps_are_finite_monotone_and_in_range(timesteps):
    config = ObjectiveConfig(timesteps=timesteps)
    u = np.linspace(0, 1, 257)
    for tokens in (0, 1, 256, 4096):
        t = np.asarray(flow.timesteps_from_uniforms(u, config, tokens))
        assert t.dtype == np.float32
        assert np.isfinite(t).all() and (np.diff(t) > 0).all()
        assert t[0] == 0 and t[-1] == 1


def test_sampling_is_a_function_of_its_uniforms():
    config = ObjectiveConfig()
    tokens = np.array([[16, 256], [1024, 64]])
    u = jax.random.uniform(jax.random.key(3), (2, 2))
    got = flow.timesteps_from_uniforms(u, config, tokens)
    for i in range(2):
        for j in range(2):
            alone = flow.timesteps_from_uniforms(u[i, j], config, tokens[i, j])
            np.testing.assert_allclose(got[i, j], alone, rtol=1e-6)


def integrate(velocity_fn, x, timesteps, method):
    """Follows dx/dt = v(x, t) along timesteps float[num_steps + 1, ...]."""
    for t, t_next in itertools.pairwise(timesteps):
        if method == "euler":
            x = flow.euler_step(velocity_fn(x, t), x, t, t_next)
        else:
            x = flow.heun_step(velocity_fn, x, t, t_next)
    return x


def timestep_grid(num_steps, *shifts):
    """A sampler's timesteps, float32[num_steps + 1, I]: a grid per image."""
    grids = [time_grid(num_steps, 256, ObjectiveConfig(), shift) for shift in shifts]
    return jnp.asarray(np.stack(grids, 1))


def test_timestep_grid():
    np.testing.assert_allclose(timestep_grid(4, 1.0)[:, 0], [0, 0.25, 0.5, 0.75, 1], rtol=1e-6)
    grid = timestep_grid(10, 1.0, 3.0)
    assert grid.shape == (11, 2)
    assert np.all(grid[0] == 0) and np.all(grid[-1] == 1)
    sigmas = 3 * (1 - np.linspace(0, 1, 11)) / (1 + 2 * (1 - np.linspace(0, 1, 11)))
    np.testing.assert_allclose(grid[:, 1], 1 - sigmas, rtol=1e-5, atol=1e-6)


def test_straight_path_is_exact_in_one_step():
    x, noise = (jnp.asarray(RNG.normal(size=(2, 3)), jnp.float32) for _ in range(2))

    def velocity(_, t):
        return flow.velocity_target(x, noise)

    for method in ("euler", "heun"):
        end = integrate(velocity, noise, timestep_grid(1, 1.0)[:, 0], method)
        np.testing.assert_allclose(end, x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
def test_order_of_convergence(method, order):
    """dx/dt = -2 x + cos(3 t), against its closed form: the error falls as n^-order."""

    def exact(t, x0):
        def particular(t):
            return (2 * np.cos(3 * t) + 3 * np.sin(3 * t)) / 13

        return particular(t) + (x0 - particular(0.0)) * np.exp(-2 * t)

    x0 = np.array([1.5, -0.5])
    with jax.enable_x64(True):
        errors = []
        for n in (20, 40, 80):
            t = jnp.linspace(0.0, 1.0, n + 1, dtype=jnp.float64)
            end = integrate(lambda x, t: -2 * x + jnp.cos(3 * t), jnp.asarray(x0), t, method)
            errors.append(np.abs(np.asarray(end) - exact(1.0, x0)).max())
    rates = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(rates, order, atol=0.1)


def test_each_image_may_have_its_own_grid():
    def velocity(x, t):
        return -x * t[:, None]

    x = jnp.asarray(RNG.normal(size=(2, 3)), jnp.float32)
    grid = timestep_grid(6, 1.0, 2.5)
    for method in ("euler", "heun"):
        together = integrate(velocity, x, grid, method)
        for i in range(2):
            alone = integrate(velocity, x[i : i + 1], grid[:, i : i + 1], method)
            np.testing.assert_allclose(together[i], alone[0], rtol=1e-6)


def test_linear_velocity_is_the_least_squares_fit():
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(2, 200_000))
    for t in (0.0, 0.3, 0.5, 0.9, 1.0):
        x_t, v = flow.interpolate(x, noise, t), flow.velocity_target(x, noise)
        slope = np.dot(v, x_t) / np.dot(x_t, x_t)
        guess, spread = flow.linear_velocity(x_t, t)
        np.testing.assert_allclose(guess, slope * x_t, atol=0.02 * np.abs(x_t).max())
        np.testing.assert_allclose(spread, np.std(v - slope * x_t), rtol=0.01)
    guess, spread = flow.linear_velocity(jnp.ones((2, 3, 4)), jnp.array([0.5, 1.0]))
    np.testing.assert_allclose(guess[:, 0, 0], [0.0, 1.0], atol=1e-6)
