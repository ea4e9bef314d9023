"""Rectified flow: the path, its velocity, which timesteps are trained, and the ODE solvers.

**t = 1 is data, t = 0 is noise** (docs/method.md section 2). Other conventions are converted where
they come in; no other module depends on the direction of t.

Everything here is a pure function. Those without `sigmoid` in them work on numpy and jax arrays
alike. A timestep of an image has fewer axes than the image: axes are matched from the left
(t: f32[I], x: f32[I, H, W, C]).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mogao_jax.config.schema import ObjectiveConfig

Array = Any  # numpy or jax
VelocityFn = Callable[[Array, Array], Array]


def _like(t: Array, x: Array) -> Array:
    """Gives t trailing axes until it broadcasts against x from the left."""
    if isinstance(t, float | int):
        return t
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


# --------------------------------------------------------------------------------------- path


def interpolate(x: Array, noise: Array, t: Array) -> Array:
    """The point of the path at time t: `t x + (1 - t) noise` (equation 3).

    Data and noise are float[..., any], t is in [0, 1], a scalar or of their leading axes.
    """
    t = _like(t, x)
    return t * x + (1 - t) * noise


def velocity_target(x: Array, noise: Array) -> Array:
    """The network's target: d x_t / dt = x - noise, constant along the path."""
    return x - noise


def linear_velocity(x_t: Array, t: Array) -> tuple[Array, Array]:
    """The best linear guess of the velocity from x_t, and the spread of its error.

    For independent data and noise of unit variance: with d = t^2 + (1 - t)^2 the variance of
    x_t, E[v | x_t] = (2t - 1) / d x_t, and the variance of the error is 1 / d. A network that
    predicts the error in units of its spread predicts the data where x_t is noise (t = 0), and
    minus the noise where x_t is data: never its own input. (EDM's preconditioning, Karras et al.
    2022, for rectified flow.)

    Returns:
      the guess, float[..., any] as x_t, and 1 / sqrt(d), to be broadcast against it; t in [0, 1]
      is a scalar or of x_t's leading axes.
    """
    t = _like(t, x_t)
    variance = t**2 + (1 - t) ** 2
    return (2 * t - 1) / variance * x_t, variance**-0.5


# ---------------------------------------------------------------------------------- timesteps


def shift_timesteps(t: Array, shift: Array) -> Array:
    """Moves timesteps towards noise by a factor: `t / (s - (s - 1) t)`.

    SD3 (arXiv 2403.03206, equation 23) has sigma' = s sigma / (1 + (s - 1) sigma) with sigma the
    amount of noise; this is the same with t = 1 - sigma. It keeps 0 and 1; s > 1 goes towards
    noise, s < 1 towards data, and shifts compose by multiplication.
    """
    return t / (shift - (shift - 1) * t)


def timestep_shift(config: ObjectiveConfig, num_tokens: Array) -> Array:
    """The shift factor of images of `num_tokens` VAE tokens each (int[...]); float32[...].

    More tokens average away more noise, so a large image needs more of it to be destroyed as far
    as a small one: s = sqrt(num_tokens / shift_base_tokens). An image of no tokens
    (padding of the image table) counts as one token, so that nothing becomes NaN.
    """
    tokens = jnp.maximum(jnp.asarray(num_tokens, jnp.float32), 1.0)
    if config.shift == "resolution":
        return jnp.sqrt(tokens / config.shift_base_tokens)
    factor = config.shift_factor if config.shift == "constant" else 1.0
    return jnp.full_like(tokens, factor)


def timesteps_from_uniforms(u: Array, config: ObjectiveConfig, num_tokens: Array) -> Array:
    """Timesteps as a monotone function of uniform numbers.

    Training draws u from a key; validation stratifies it, (i + 1/2) / n, for low variance.

    Args:
      u: float[...] in [0, 1].
      config: `timesteps` uniform (t = u) or logit_normal (t = sigmoid(m + s z), z the normal
        quantile of u; m > 0 means closer to data), then the shift.
      num_tokens: int[...], VAE tokens of the image; broadcast against u.
    Returns:
      float32[...] in [0, 1].
    """
    u = jnp.asarray(u, jnp.float32)
    if config.timesteps == "uniform":
        t = u
    else:
        z = jax.scipy.special.ndtri(u)
        t = jax.nn.sigmoid(config.logit_mean + config.logit_std * z)
    return shift_timesteps(t, timestep_shift(config, num_tokens))


# ------------------------------------------------------------------------------------ solvers


def euler_step(velocity: Array, x: Array, t: Array, t_next: Array) -> Array:
    """One step of first order: x + (t_next - t) v, with v the velocity at (x, t)."""
    return x + _like(t_next - t, x) * velocity


def heun_step(velocity_fn: VelocityFn, x: Array, t: Array, t_next: Array) -> Array:
    """One step of second order: the mean of the velocities at both ends. Two evaluations."""
    v = velocity_fn(x, t)
    v_next = velocity_fn(euler_step(v, x, t, t_next), t_next)
    return euler_step((v + v_next) / 2, x, t, t_next)
