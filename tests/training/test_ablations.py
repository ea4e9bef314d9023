"""Ablations A, B, C and D (paper, table 5): each is a config, and each learns."""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import pytest
import tiny_system as tiny

from mogao_jax.config.files import load_config
from mogao_jax.training.optimizer import make_optimizer
from mogao_jax.training.state import TrainState
from mogao_jax.training.step import make_train_step

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"

# The table: fusion, RoPE, encoder for understanding.
TABLE = {
    "a": ("shared", "m_rope", "vae"),
    "b": ("shared", "il_rope", "vae"),
    "c": ("shared", "il_rope", "vit"),
    "d": ("deep", "il_rope", "vit"),
}


@pytest.mark.parametrize("name", TABLE)
def test_the_configs_are_the_papers_table(name):
    config = load_config(CONFIGS / f"ablation_{name}.py")
    fusion, rope, encoder = TABLE[name]
    assert (config.model.fusion, config.model.rope) == (fusion, rope)
    assert config.layout.understanding_encoder == encoder
    same = load_config(CONFIGS / "quickstart.py")
    assert config.objective == same.objective and config.optimizer == same.optimizer


@pytest.mark.parametrize("name", TABLE)
def test_each_learns_one_batch(name):
    fusion, rope, encoder = TABLE[name]
    cfg = tiny.config(
        model={"fusion": fusion, "rope": rope, "num_layers": 1},
        layout={"understanding_encoder": encoder},
        optimizer={"learning_rate": 3e-3, "warmup_steps": 1, "ema_decay": 0.0},
    )
    modules = tiny.load_modules(cfg)
    optimizer = make_optimizer(cfg.optimizer, 30)
    state = TrainState.create(tiny.initial_params(modules), optimizer.transform)
    step = jax.jit(make_train_step(modules, optimizer.transform), donate_argnums=0)
    documents = [[tiny.interleaved_document(0), tiny.interleaved_document(1)]]
    batch = jax.tree.map(lambda x: jnp.asarray(x)[None], tiny.rows(documents, cfg))
    losses = []
    for _ in range(30):
        state, metrics = step(state, tiny.encoders(), batch, jnp.float32(3e-3))
        losses.append({k: float(metrics[k].mean()) for k in ("ntp_loss", "flow_loss")})
    # Noise is drawn anew each step, so flow is compared over several.
    mean = lambda part, key: sum(r[key] for r in part) / len(part)  # noqa: E731
    assert mean(losses[-5:], "ntp_loss") < 0.7 * losses[0]["ntp_loss"]
    assert mean(losses[-10:], "flow_loss") < mean(losses[:5], "flow_loss")
