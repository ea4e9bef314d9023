"""The global-batch-reduced loss: devices and micro-steps change nothing (paper, section 3.3)."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import tiny_system as tiny

from mogao_jax.losses import global_sum
from mogao_jax.sequence.document import Document, Image, Text
from mogao_jax.sharding import rules
from mogao_jax.sharding.mesh import global_batch, make_mesh, replicated
from mogao_jax.training.step import loss_and_gradients, total_loss

DEVICES, MICRO_STEPS = 8, 3
TOLERANCE = 1e-5


def unequal_rows() -> list[list[Document]]:
    """24 rows with very unequal contents: some with no image, some with no text to learn."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(DEVICES * MICRO_STEPS):
        if i % 4 == 0:
            rows.append([Document([Text("a" * (1 + i))], id=f"text-{i}")])
        elif i % 4 == 1:
            rows.append([Document([tiny.image(rng, 16, 16)], id=f"image-{i}")])
        elif i % 4 == 2:
            rows.append([tiny.interleaved_document(i), tiny.interleaved_document(i + 50, 1)])
        else:
            condition = Image(pixels=tiny.image(rng).pixels, loss=False)
            question = Text("what is it?", loss=False)
            rows.append([Document([condition, question, Text("x")], id=f"answer-{i}")])
    return rows


@pytest.fixture(scope="module")
def case():
    cfg = tiny.config(model={"num_layers": 1})
    modules = tiny.load_modules(cfg)
    batch = tiny.rows(unequal_rows(), cfg)
    return modules, tiny.make_params(modules), batch, jax.random.key(3)


def _split(batch, micro_steps: int):
    """[A * B, ...] -> [A, B, ...]"""
    return jax.tree.map(lambda x: x.reshape(micro_steps, -1, *x.shape[1:]), batch)


def test_eight_devices_and_three_micro_steps_equal_one_device_with_everything(case):
    modules, params, batch, key = case

    def run(params, encoders, batch):
        return loss_and_gradients(modules, params, encoders, batch, key)

    whole = jax.device_get(jax.jit(run)(params, tiny.encoders(), _split(batch, 1)))
    mesh = make_mesh(modules.config.mesh)
    assert mesh.size == DEVICES
    with rules.on_mesh(mesh):
        arguments = jax.device_put((params, tiny.encoders()), replicated(mesh))
        shared = global_batch(mesh, _split(batch, MICRO_STEPS), batch_axis=1)
        parts = jax.device_get(jax.jit(run)(*arguments, shared))
    for name, (total, weight) in whole[0].items():
        np.testing.assert_allclose(parts[0][name].total, total, rtol=TOLERANCE, atol=1e-5)
        np.testing.assert_allclose(parts[0][name].weight, weight, rtol=TOLERANCE)
    assert tiny.relative_error(parts[1], whole[1]) < TOLERANCE


def test_averaging_per_rank_is_another_number(case):
    """What the global reduction is for: means of means weigh tokens by where they lie."""
    modules, params, batch, key = case
    run = jax.jit(lambda batch: loss_and_gradients(modules, params, tiny.encoders(), batch, key)[0])
    by_rank = [
        jax.device_get(run(jax.tree.map(lambda x, r=r: x[None, r : r + 1], batch)))
        for r in range(8)
    ]
    summed = {k: sum(np.array(m[k]) for m in by_rank) for k in ("ntp_loss", "flow_loss")}
    for name in ("ntp_loss", "flow_loss"):
        means = [float(m[name].total / m[name].weight) for m in by_rank if m[name].weight > 0]
        true = summed[name][0] / summed[name][1]
        assert abs(np.mean(means) / true - 1) > 1e-3, name
    empty = [m for m in by_rank if m["flow_loss"].weight == 0]
    assert empty, "the case is meant to have rows without an image"
    for metrics in empty:  # no NaN from a rank without one modality
        assert np.isfinite(total_loss(metrics["ntp_loss"], metrics["flow_loss"], 1.0))


def test_global_sum_is_a_psum_over_the_mesh():
    x = np.arange(48, dtype=np.float32).reshape(16, 3)
    mesh = make_mesh(tiny.CONFIG.mesh)
    with jax.set_mesh(mesh):
        text = jax.jit(global_sum).lower(global_batch(mesh, x)).compile().as_text()
        assert float(jax.jit(global_sum)(global_batch(mesh, x))) == x.sum()
    assert "all-reduce" in text and "all-gather" not in text
    assert float(global_sum(jax.numpy.asarray(x))) == x.sum()
