"""The fixed validation set: evenly spread timesteps, and what hiding images hides."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import tiny_system as tiny

from mogao_jax.sequence.batch import EMPTY
from mogao_jax.sequence.document import Document, Image, Text
from mogao_jax.sharding import multihost
from mogao_jax.training import validation
from mogao_jax.training.step import losses
from mogao_jax.training.validation import hide_images, spread_uniforms


def test_uniforms_are_evenly_spread_over_images_and_the_same_every_time():
    rows = [[tiny.interleaved_document(i, id=f"{j}-{i}") for i in range(2)] for j in range(8)]
    batches = [tiny.rows(rows[:4]), tiny.rows(rows[4:])]
    uniforms = spread_uniforms(batches)
    is_image = [np.asarray(b.images.size)[..., 0] > 0 for b in batches]
    points = np.sort(np.concatenate([u[i] for u, i in zip(uniforms, is_image, strict=True)]))
    assert len(points) == 32 and points.min() > 0 and points.max() < 1
    # Golden-ratio points: the largest gap of n of them is below 3 / n; random ones exceed it.
    assert np.diff(np.concatenate([[0], points, [1]])).max() < 3 / len(points)
    for a, b in zip(uniforms, spread_uniforms(batches), strict=True):
        np.testing.assert_array_equal(a, b)


def test_uniforms_do_not_depend_on_the_number_of_readers(monkeypatch):
    numbers = [(0, 1, 2, 3), (4, 5, 6)]  # of the last, a row is left empty
    whole = [tiny.rows([[tiny.interleaved_document(i)] for i in n]) for n in numbers]
    last = jax.tree.map(lambda x: np.concatenate([x, np.zeros_like(x[:1])]), whole[1])
    whole = [whole[0], last]
    halves = [[jax.tree.map(lambda x, r=r: x[2 * r : 2 * r + 2], b) for b in whole] for r in (0, 1)]
    images = np.array([[int((b.images.size > 0).all(-1).sum()) for b in half] for half in halves])
    # Four processes, of which the first two and the last two read the same rows.
    monkeypatch.setattr(multihost, "process_count", lambda: 4)
    for reader, half in enumerate(halves):
        counts = iter(images.T)
        monkeypatch.setattr(multihost, "gather", lambda _, c=counts: np.repeat(next(c), 2).tolist())
        monkeypatch.setattr(validation, "row_reader", lambda _, p=2 * reader: (p // 2, 2))
        found = spread_uniforms(half, validation.images_before_mine(None, half))
        for u, all_u in zip(found, spread_uniforms(whole), strict=True):
            np.testing.assert_array_equal(u, all_u[2 * reader : 2 * reader + 2])


@pytest.mark.parametrize("encoder", ["vit", "vae"])
def test_hidden_images_change_no_answer(encoder):
    cfg = tiny.config(layout={"understanding_encoder": encoder}, model={"num_layers": 1})
    modules = tiny.load_modules(cfg)
    params = tiny.make_params(modules)
    run = jax.jit(lambda b, i, t: losses(modules, params, b, i, t).ntp_per_token)
    rng = np.random.default_rng(0)
    answers: dict[bool, list] = {True: [], False: []}
    for _ in range(2):
        image = Image(pixels=tiny.image(rng).pixels, loss=False)
        batch = tiny.rows([[Document([image, Text("answer")], id="d")]], cfg, context=EMPTY)
        for hidden in answers:
            shown = hide_images(batch) if hidden else batch
            answers[hidden].append(np.asarray(run(shown, *tiny.inputs(shown, modules))))
    np.testing.assert_array_equal(*answers[True])
    assert (answers[False][0] != answers[False][1]).any()
