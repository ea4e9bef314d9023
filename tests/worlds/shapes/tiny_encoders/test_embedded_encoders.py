"""The shipped tiny encoders reach their figures; their training runs and can be gone on with."""

from __future__ import annotations

import dataclasses
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mogao_jax.models.encoder_weights import (
    load_vae,
    load_vit,
    saved_vae_config,
    saved_vit_config,
    weights_file,
)
from mogao_jax.worlds.shapes.tiny_encoders import probes, train_vae, train_vit, training


def test_sizes_and_widths():
    files = weights_file("vae"), weights_file("vit")
    assert sum(f.stat().st_size for f in files) <= 4_000_000
    for config, trained in (
        (saved_vae_config(), train_vae.TINY),
        (saved_vit_config(), train_vit.TINY),
    ):
        free = {"scaling_factor", "shift_factor"}
        for field in dataclasses.fields(config):
            if field.name not in free:
                assert getattr(config, field.name) == getattr(trained, field.name)


def test_embedded_vae_reaches_its_figures():
    config = saved_vae_config()
    _, params = load_vae(config)
    figures = train_vae.held_out_psnr(params, dataclasses.replace(config), count=48)
    assert figures["psnr_mean"] >= 30 and figures["psnr_sampled"] >= 30
    # Scaling and shift undo deviation and mean.
    assert abs(figures["latent_mean"]) < 0.05 and abs(figures["latent_std"] - 1) < 0.05


@pytest.mark.slow
def test_embedded_vit_reaches_its_figures():
    tower, params = load_vit(saved_vit_config())
    accuracies = probes.probe_accuracies(tower, params, fit=2000, test=600)
    assert set(accuracies) == {"color", "shape", "count", "place", "own_place"}
    # Where a token is, it does not say itself: positions tell the transformer (assets/README.md).
    own_place = accuracies.pop("own_place")
    assert 0.3 <= own_place <= 0.7 and min(accuracies.values()) >= 0.95, accuracies


def test_psnr_by_hand():
    a = np.zeros((1, 8, 8, 3), np.uint8)
    b = a.copy()
    b[0, :4, :4] = 10  # the image is 4 x 4: what lies outside does not count
    b[0, 4:] = 200
    assert train_vae.psnr(a, b, [(4, 4)])[0] == pytest.approx(20 * math.log10(25.5))


def test_own_place_is_read_from_one_token_alone():
    """Of a tower whose features tell each patch's place, and of one whose features do not."""

    def accuracy(features):
        tower = types.SimpleNamespace(apply=lambda variables, *given: features(given[1]))
        return probes.probe_accuracies(tower, {}, fit=300, test=100, names=("own_place",))

    def places(positions):
        return jax.nn.one_hot(positions[..., 0] // 2 * 4 + positions[..., 1] // 2, 16)

    assert accuracy(places) == {"own_place": 1.0}
    blind = accuracy(lambda positions: jnp.ones((*positions.shape[:2], 16)))
    assert blind["own_place"] < 0.2


def test_logistic_probe_separates_what_is_separable_and_only_that():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 300)
    x = rng.normal(size=(300, 5)).astype(np.float32)
    chance = probes.fit_logistic(x[:200], y[:200], 3)
    x[:, :3] += 6 * np.eye(3, dtype=np.float32)[y]
    fitted = probes.fit_logistic(x[:200], y[:200], 3)

    def accuracy(weights):
        return float(
            (np.argmax(x[200:] @ weights["kernel"] + weights["bias"], -1) == y[200:]).mean()
        )

    assert accuracy(fitted) > 0.97 and accuracy(chance) < 0.7


def test_schedule():
    assert training.learning_rate(0.0) == 0
    assert training.learning_rate(0.5, 2.0) == pytest.approx(1.0)
    assert training.learning_rate(1.0) == pytest.approx(0.0)


@pytest.mark.slow
def test_training_writes_weights_that_load_and_can_be_gone_on_with(tmp_path, monkeypatch):
    small = dataclasses.replace(train_vae.TINY, block_channels=(4, 4, 4, 4), norm_groups=2)
    monkeypatch.setattr(train_vae, "TINY", small)
    monkeypatch.setattr(train_vae, "PHASES", ((1.0, 2, (32, 32)),))
    lines: list[str] = []
    path = train_vae.train(1e-3, tmp_path, log=lines.append)
    config = saved_vae_config(str(path))
    assert config.block_channels == (4, 4, 4, 4) and load_vae(config).params
    assert any("psnr_sampled" in line for line in lines)
    train_vae.train(1e-3, tmp_path / "more", str(path), log=lines.append)
    assert (tmp_path / "more" / "tiny_vae.safetensors").is_file()
