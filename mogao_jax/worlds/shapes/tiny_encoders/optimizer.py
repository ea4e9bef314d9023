"""The optimizer of the tiny encoders: short trainings, so every step should count."""

from __future__ import annotations

import math

import jax
import optax
import optax.contrib

PEAK_LEARNING_RATE = 5e-3  # of Muon; Adam's, for biases and norms, is ADAM_SHARE of it
ADAM_SHARE = 0.4


def muon() -> optax.GradientTransformation:
    """Muon on kernels as matrices (inputs x outputs), Adam on the rest; learning rate 1."""

    def dimensions(params):
        def one(path, leaf):
            if path[-1].key != "kernel":
                return None
            return optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

        return jax.tree_util.tree_map_with_path(one, params)

    return optax.contrib.muon(
        1.0,
        adam_learning_rate=ADAM_SHARE,
        adam_b2=0.99,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=dimensions,
    )


def learning_rate(done: float, peak: float = PEAK_LEARNING_RATE) -> float:
    """Warm-up over 2% of the time, then a cosine to zero; `done` is the share of it, in [0, 1]."""
    return peak * min(1.0, done / 0.02) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def average_decay(step: int, most: float = 0.998) -> float:
    """Decay of the moving average of parameters: short memory at first."""
    return min(most, (1 + step) / (10 + step))
