"""Guidance: the equation of docs/method.md section 6, its special cases, and where it applies."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
import replay
import tiny_system as tiny

from mogao_jax.sampling.guided_flow import combine, context_weights, time_grid
from mogao_jax.sampling.options import SamplingOptions
from mogao_jax.sampling.requests import Request
from mogao_jax.sequence.batch import EMPTY, FULL, IMAGE_ONLY
from mogao_jax.sequence.document import Document, Image, Text


def equation(scale, image_scale, full, image_only, empty):
    return empty + image_scale * (image_only - empty) + scale * (full - image_only)


def weighted(weights, predictions):
    return sum(w * predictions[c] for c, w in weights.items())


@pytest.mark.parametrize("scales", [(7.5, 1.5), (3.0, 1.0), (1.0, 1.5), (2.0, 2.0), (1.0, 1.0)])
def test_weights_are_the_papers_equation(scales):
    full, image_only, empty = np.random.default_rng(0).normal(size=(3, 5))
    predictions = {FULL: full, IMAGE_ONLY: image_only, EMPTY: empty}
    weights = context_weights(*scales, has_image=True)
    np.testing.assert_allclose(
        weighted(weights, predictions), equation(*scales, full, image_only, empty), atol=1e-12
    )
    # Without an image in the history the image-only context is the empty one.
    predictions[IMAGE_ONLY] = empty
    weights = context_weights(*scales, has_image=False)
    assert IMAGE_ONLY not in weights
    np.testing.assert_allclose(
        weighted(weights, predictions), equation(*scales, full, empty, empty), atol=1e-12
    )


def test_only_the_contexts_that_count_are_computed():
    assert set(context_weights(7.5, 1.5, has_image=True)) == {FULL, IMAGE_ONLY, EMPTY}
    assert context_weights(4.0, 4.0, has_image=True) == {FULL: 4.0, EMPTY: -3.0}
    assert context_weights(4.0, 1.0, has_image=True) == {FULL: 4.0, IMAGE_ONLY: -3.0}
    assert context_weights(4.0, 1.5, has_image=False) == {FULL: 4.0, EMPTY: -3.0}
    for has_image in (True, False):
        assert context_weights(1.0, 1.0, has_image=has_image) == {FULL: 1.0}


def test_combining_keeps_images_apart_and_keeps_to_the_interval():
    velocity = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
    velocity[4] = np.nan  # padding, or another image gone wrong
    index = np.array([[0, 1, 2], [3, -1, -1], [4, -1, -1]])
    weights = np.array([[7.5, -6.0, -0.5], [1, 0, 0], [1, 0, 0]], np.float32)
    interval = np.array([[0.25, 0.5], [0, 1], [0, 1]], np.float32)
    guided = equation(7.5, 1.5, *velocity[:3])
    for t, expected in [(0.25, guided), (0.5, guided), (0.2, velocity[0]), (0.51, velocity[0])]:
        times = np.full(3, t, np.float32)
        out = np.asarray(jax.jit(combine)(velocity, times, index, weights, interval))
        np.testing.assert_allclose(out[0], expected, rtol=1e-5)
        np.testing.assert_array_equal(out[1], velocity[3])


@functools.cache
def recorded():
    recorder = replay.Recorder()
    sampler = replay.make_sampler(*replay.tiny_model(), probe=recorder)
    return recorder.watch(sampler), recorder


@pytest.mark.parametrize(
    ("contexts", "options"),
    [
        ([FULL, EMPTY], {"guidance_scale": 3.0, "image_guidance_scale": 3.0}),
        ([FULL], {"guidance_scale": 1.0, "image_guidance_scale": 1.0}),
        ([FULL, IMAGE_ONLY, EMPTY], {"guidance_scale": 3.0, "image_guidance_scale": 1.5,
                                     "guidance_interval": (0.3, 0.6)}),
    ],
    ids=["ordinary", "plain", "interval"],
)  # fmt: skip
def test_images_follow_plain_forwards(contexts, options):
    """The drawn latents are Euler's solution over training forwards, by the equation."""
    modules, params = replay.tiny_model()
    sampler, recorder = recorded()
    recorder.clear()
    pixels = np.random.default_rng(3).integers(0, 256, (32, 16, 3), np.uint8)
    prompt = Document((Image(pixels=pixels, loss=False), Text("draw", loss=False)), id="p")
    options = SamplingOptions(num_steps=5, draw_first=True, max_images=1, timestep_shift=2.0,
                              **options)  # fmt: skip
    (result,) = sampler.sample([Request(prompt, seed=7, options=options)])
    (drawn,) = recorder.latents

    plain = {
        c: replay.Replay(modules, params, result.document, c) for c in (FULL, IMAGE_ONLY, EMPTY)
    }
    noise = np.random.default_rng([7, 1]).standard_normal(drawn.shape, np.float32)
    # t / (s - (s - 1) t) of equal steps, s = 2.
    times = [t / (2 - t) for t in np.linspace(0, 1, 6)]
    np.testing.assert_allclose(time_grid(5, 2, modules.config.objective, 2.0), times, rtol=1e-6)
    scale, image_scale = options.guidance_scale, options.image_guidance_scale
    low, high = options.guidance_interval
    x = noise
    for t, t_next in zip(times[:-1], times[1:], strict=True):
        v = {c: p.forward({}, {1: x}, {1: t})[1][1] for c, p in plain.items()}
        step = v[FULL]
        if low <= t <= high:
            step = equation(scale, image_scale, v[FULL], v[IMAGE_ONLY], v[EMPTY])
        x = x + np.float32(t_next - t) * step
    assert tiny.relative_error(drawn, x) < 1e-5
    # What was computed is what was needed: outside of the interval the full context alone.
    computed = [set(seen) - {"x", "t"} for seen in recorder.velocities]
    inside = [low <= t <= high for t in times]
    for i, seen in enumerate(computed):
        near = inside[i] or inside[i + 1]
        assert seen == (set(contexts) if near else {FULL})
