"""The optimizer: schedule, clipping, weight decay, frozen parameters, and the moving average."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from mogao_jax.config.schema import OptimizerConfig
from mogao_jax.models.modules import is_of_llm

Schedule = Callable[..., float]

# Parameters that weight decay applies to: dense layers, and the output head that is not tied.
DECAYED = ("kernel", "lm_head")


class Optimizer(NamedTuple):
    """What a train step needs.

    Attributes:
      transform: `transform.update(grads, opt_state, params, learning_rate=lr)`; the learning rate
        is an argument and not part of the state, because a run limited by the clock does not
        know its number of steps.
      schedule: `schedule(step, progress)` -> learning rate, computed on the host.
    """

    transform: optax.GradientTransformationExtraArgs
    schedule: Schedule


def make_optimizer(config: OptimizerConfig, num_steps: int) -> Optimizer:
    """AdamW with decoupled weight decay (arXiv 1711.05101), in this order:

    clip the global norm -> Adam's direction -> + weight_decay * param (matrices) -> * -lr,
    where Adam's direction may be Muon's for matrices (Jordan et al. 2024).

    Arithmetic is float32 even where parameters or gradients are not; moments are kept in
    `moments_dtype`. Parameters that `frozen` names have none, and do not move.
    """
    parts: list[optax.GradientTransformation] = []
    if config.clip_norm:
        parts.append(optax.clip_by_global_norm(config.clip_norm))
    if config.kind == "muon":
        parts.append(_muon(config))
    else:
        parts.append(optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps))
    if config.weight_decay:
        parts.append(_decay_weights(config.weight_decay))
    parts.append(_scale_by_learning_rate())
    transform = _in_float32(optax.chain(*parts))
    if config.moments_dtype != "float32":
        transform = _stored_as(transform, jnp.dtype(config.moments_dtype))
    if config.frozen != "nothing":
        transform = _on_trained(transform, config)
    return Optimizer(transform, make_schedule(config, num_steps))


# --------------------------------------------------------------------------------------- Muon

_MUON_RMS = 0.2  # of Muon's updates: about that of Adam's (Liu et al. 2025, arXiv 2502.16982)


def _muon(config: OptimizerConfig) -> optax.GradientTransformation:
    """Muon's direction for matrices, Adam's (times `adam_share`) for everything else."""
    return optax.contrib.muon(
        -1.0,  # the sign and the learning rate come last
        beta=0.95,
        consistent_rms=_MUON_RMS,
        adam_b1=config.b1,
        adam_b2=config.b2,
        adam_learning_rate=-config.adam_share,
        muon_weight_dimension_numbers=functools.partial(matrices, only=_ONLY[config.muon_on]),
    )


_ONLY = {"all": "", "und": "und"}  # config.muon_on: a module that Muon keeps to


def matrices(params: Any, only: str = "") -> Any:
    """Which axes of a parameter are a matrix's inputs and outputs, for Muon; None: no matrix.

    Kernels are; heads count to the outputs of query, key and value and to the inputs of output.
    A leading axis of stacked layers is neither: Muon takes it as a batch.

    Args:
      only: the name of a module outside of which nothing counts as a matrix; "": none.
    """

    def one(path, leaf):
        names = [str(k.key) for k in path if isinstance(k, jax.tree_util.DictKey)]
        if "kernel" not in names or (only and only not in names):
            return None
        last = leaf.ndim - 1
        module = names[names.index("kernel") - 1]
        if module in ("query", "key", "value"):
            return optax.contrib.MuonDimensionNumbers((last - 2,), (last - 1, last))
        if module == "output":
            return optax.contrib.MuonDimensionNumbers((last - 2, last - 1), (last,))
        return optax.contrib.MuonDimensionNumbers((last - 1,), (last,))

    return jax.tree_util.tree_map_with_path(one, params)


# ----------------------------------------------------------------------------------- schedule


def make_schedule(config: OptimizerConfig, num_steps: int) -> Schedule:
    """`schedule(step, progress=None)` -> learning rate of the step with this index (from 0).

    It is a product: a warm-up counted in *steps* (Adam's moments need steps, not minutes),
    `min(1, (step + 1) / warmup_steps)`, times a decay that follows *progress* in [0, 1]: the
    share of the run that is over, by default step / num_steps, or the share of the time that is
    used up. cosine goes from learning_rate (progress 0) to end_learning_rate (progress 1).
    """

    def schedule(step: int, progress: float | None = None) -> float:
        progress = step / num_steps if progress is None else progress
        progress = min(max(progress, 0.0), 1.0)
        rate = config.learning_rate
        if config.schedule == "cosine":
            share = 0.5 * (1 + math.cos(math.pi * progress))
            rate = config.end_learning_rate + (rate - config.end_learning_rate) * share
        if config.warmup_steps:
            rate *= min(1.0, (step + 1) / config.warmup_steps)
        return rate

    return schedule


# ------------------------------------------------------------------------------- weight decay


def decay_mask(params: Any) -> Any:
    """True for the weights that decay: matrices, by the names in DECAYED.

    Norm scales, biases, embedding tables (a tied one included) and other free vectors do not. It
    is decided by name: the number of axes says nothing once layers are stacked (a stacked bias
    has two).
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: _name(path) in DECAYED, params)


def _name(path: tuple[Any, ...]) -> str:
    """The parameter's own name: the last key that is a name (linen's boxes add one behind it)."""
    names = [str(k.key) for k in path if isinstance(k, jax.tree_util.DictKey)]
    return names[-1] if names else ""


def _decay_weights(weight_decay: float) -> optax.GradientTransformation:
    @optax.stateless
    def decay(updates, params):
        def one(u, p, m):
            return u + weight_decay * p if m else u

        return jax.tree.map(one, updates, params, decay_mask(params))

    return decay


def _scale_by_learning_rate() -> optax.GradientTransformationExtraArgs:
    def update(updates, state, params=None, *, learning_rate, **extra):
        del params, extra
        return jax.tree.map(lambda u: -learning_rate * u, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _in_float32(
    inner: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    """Runs a transform on float32 copies (no copies where all is float32 already).

    `optax.apply_updates` casts the sum back to the parameter's dtype.
    """

    def cast(tree):
        return jax.tree.map(lambda x: x.astype(jnp.float32), tree)

    def init(params):
        return inner.init(cast(params))

    def update(updates, state, params=None, **extra):
        return inner.update(cast(updates), state, cast(params), **extra)

    return optax.GradientTransformationExtraArgs(init, update)


def _stored_as(
    inner: optax.GradientTransformationExtraArgs, dtype: jnp.dtype
) -> optax.GradientTransformationExtraArgs:
    """Keeps the float32 arrays of a transform's state in another dtype between updates.

    Rounding is to the nearest. bfloat16 has 8 bits of precision: changes under 1/512 of a value
    are rounded away. A second moment whose gradients have become half as large falls by 3/4 of
    1 - b2 per step: well above that with b2 = 0.95, and not at all with b2 = 0.999, where it
    would stand still. Hence MAX_B2_BFLOAT16 in config/checks.py.
    """

    def cast(tree, dtype):
        def one(x):
            return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

        return jax.tree.map(one, tree)

    def init(params):
        return cast(inner.init(params), dtype)

    def update(updates, state, params=None, **extra):
        updates, state = inner.update(updates, cast(state, jnp.float32), params, **extra)
        return updates, cast(state, dtype)

    return optax.GradientTransformationExtraArgs(init, update)


# -------------------------------------------------------------------------- frozen parameters
#
# Config `optimizer.frozen`. They get no gradient (the backward pass leaves its matmuls out), no
# moments and no decay: they, and their moving average, stay what they were to the bit.


def frozen_mask(params: Any, config: OptimizerConfig) -> Any:
    """True for the parameters that stay as they are.

    Args:
      params: boxed with logical names or not; real, abstract, or with holes (optax's MaskedNode).
    """

    def one(path: tuple[Any, ...], _: Any) -> bool:
        names = [str(k.key) for k in path if isinstance(k, jax.tree_util.DictKey)]
        return config.frozen == "llm" and is_of_llm(names)

    return jax.tree_util.tree_map_with_path(one, params)


def count_trained(params: Any, config: OptimizerConfig) -> int:
    """Numbers in the parameters that are trained (`params`: real or abstract)."""
    mask = frozen_mask(params, config)
    sizes = jax.tree.map(lambda p, m: 0 if m else math.prod(p.shape), params, mask)
    return sum(jax.tree.leaves(sizes))


def _on_trained(
    inner: optax.GradientTransformationExtraArgs, config: OptimizerConfig
) -> optax.GradientTransformationExtraArgs:
    """The transform for what is trained, no update and no state for what is frozen."""

    def labels(params: Any) -> Any:
        mask = frozen_mask(params, config)
        return jax.tree.map(lambda m: "frozen" if m else "trained", mask)

    return optax.partition({"trained": inner, "frozen": optax.set_to_zero()}, labels)


# ----------------------------------------------------------------------------- moving average


def ema_decay_at(decay: float, num_updates: Any) -> Any:
    """The average's decay after `num_updates` updates: min(decay, (1 + n) / (10 + n)).

    Early on the average then forgets the random initialisation as fast as the weights leave it
    (the warm-up of TensorFlow's ExponentialMovingAverage).
    """
    return jnp.minimum(decay, (1.0 + num_updates) / (10.0 + num_updates))


def init_ema(params: Any) -> Any:
    """A float32 copy of the parameters (a real copy: both are donated to the step)."""
    return jax.tree.map(lambda p: jnp.array(p, dtype=jnp.float32, copy=True), params)


def update_ema(ema: Any, params: Any, decay: float, num_updates: Any) -> Any:
    """`d ema + (1 - d) params` with d from `ema_decay_at`, in float32.

    As a step towards params: the average of what does not move (`frozen`) stays to the bit.
    """
    d = ema_decay_at(decay, jnp.asarray(num_updates, jnp.float32))
    return jax.tree.map(lambda e, p: e + (1 - d) * (p.astype(jnp.float32) - e), ema, params)
