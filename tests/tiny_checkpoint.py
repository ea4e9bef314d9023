"""A miniature Mogao on disk: on the embedded encoders, with random parameters; for loading."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tiny_system as tiny

from mogao_jax.checkpoints.exported import write_exported
from mogao_jax.config.schema import MogaoConfig
from mogao_jax.models.encoder_weights import saved_vae_config, saved_vit_config
from mogao_jax.models.modules import make_model, param_shapes
from mogao_jax.training.checkpointing import Checkpointer
from mogao_jax.training.state import TrainState

STEP = 3


@functools.cache
def config() -> MogaoConfig:
    smaller = tiny.config(model={"num_layers": 1})
    return dataclasses.replace(smaller, vae=saved_vae_config(), vit=saved_vit_config())


@functools.cache
def shapes() -> Any:
    cfg = config()
    return param_shapes(cfg, make_model(cfg, tiny.TOKENIZER.vocab_size))


def params(seed: int = 0) -> Any:
    """Nested dicts of float32 arrays."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(0, 0.05, x.shape).astype(np.float32), shapes())


def write_file(path: pathlib.Path, values: Any = None, **changed) -> pathlib.Path:
    """An exported file."""
    arguments = {"config": config(), "step": STEP, "weights": "ema", "tokenizer": tiny.TOKENIZER}
    return write_exported(path, params() if values is None else values, **arguments | changed)


def write_run(folder: pathlib.Path, *, ema: bool = True, **made_with) -> pathlib.Path:
    """A run's folder with one checkpoint: raw parameters of seed 0, an average of seed 1."""
    on_devices = [jax.tree.map(jnp.asarray, params(seed)) for seed in (0, 1)]
    state = TrainState(jnp.int32(STEP), on_devices[0], {}, on_devices[1] if ema else None)
    with Checkpointer(folder, config(), made_with=made_with) as checkpointer:
        checkpointer.save(STEP, state, force=True)
    return folder
