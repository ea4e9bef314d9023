"""RoPE tables against the paper's equations 8 and 9, and against rotations of complex numbers."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest

from mogao_jax.ops.rope import apply_rope, frequency_axes, rope_angles


def test_il_rope_axes_are_equation_9():
    expected = {}
    for j in range(16):  # the first 48 pairs in turn
        expected[3 * j], expected[3 * j + 1], expected[3 * j + 2] = 0, 1, 2
    expected.update({i: 0 for i in range(48, 64)})  # the last 16 to T
    assert frequency_axes(128, "il_rope").tolist() == [expected[i] for i in range(64)]


def test_il_rope_without_tail_interleaves_to_the_end():
    assert frequency_axes(128, "il_rope", tail=0.0).tolist() == [i % 3 for i in range(64)]
    assert frequency_axes(128, "il_rope", tail=1.0).tolist() == [0] * 64


def test_m_rope_axes_are_equation_8():
    assert frequency_axes(128, "m_rope").tolist() == [0] * 16 + [1] * 24 + [2] * 24


def test_other_head_dims_keep_the_proportions():
    assert frequency_axes(64, "m_rope").tolist() == [0] * 8 + [1] * 12 + [2] * 12
    assert frequency_axes(64, "il_rope").tolist() == [0, 1, 2] * 8 + [0] * 8
    for head_dim in (8, 16, 24, 40, 96):
        for kind in ("il_rope", "m_rope"):
            axes = frequency_axes(head_dim, kind)
            assert len(axes) == head_dim // 2 and set(axes.tolist()) == {0, 1, 2}


@pytest.mark.parametrize(("head_dim", "kind", "tail"), [(7, "il_rope", 0.25), (8, "x", 0.25),
                                                       (8, "il_rope", 1.5)])  # fmt: skip
def test_impossible_settings_are_refused(head_dim, kind, tail):
    with pytest.raises(ValueError):
        frequency_axes(head_dim, kind, tail)


@pytest.mark.parametrize("kind", ["il_rope", "m_rope"])
def test_angles_are_position_times_frequency(kind):
    head_dim, theta = 128, 1e6
    positions = np.array([[[5.0, 2.0, 7.5], [0.0, 0.0, 0.0], [1234.0, 3.25, 9.0]]], np.float32)
    cos, sin = rope_angles(jnp.asarray(positions), head_dim, theta, kind)
    axes = frequency_axes(head_dim, kind)
    for token in range(3):
        for i in range(head_dim // 2):
            position = float(positions[0, token, axes[i]])
            angle = position * theta ** (-2 * i / head_dim)
            # The angle itself is float32: what it may be off by grows with the position.
            tolerance = 1e-6 + 1.2e-7 * abs(angle)
            assert abs(float(cos[0, token, i]) - math.cos(angle)) < tolerance
            assert abs(float(sin[0, token, i]) - math.sin(angle)) < tolerance


def test_rotation_is_complex_multiplication_of_rotate_half_pairs():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 3, 16)).astype(np.float32)
    positions = rng.uniform(0, 20, size=(2, 5, 3)).astype(np.float32)
    cos, sin = rope_angles(jnp.asarray(positions), 16, 1e4, "il_rope")
    rotated = apply_rope(jnp.asarray(x), cos, sin)
    axes = frequency_axes(16, "il_rope")
    angles = positions[..., axes] * 1e4 ** (-np.arange(8) * 2 / 16)
    pairs = (x[..., :8] + 1j * x[..., 8:]) * np.exp(1j * angles)[:, :, None, :]
    expected = np.concatenate([pairs.real, pairs.imag], axis=-1)
    np.testing.assert_allclose(rotated, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["il_rope", "m_rope"])
def test_text_only_is_exactly_one_dimensional_rope(kind):
    length, head_dim, theta = 300, 64, 1e6
    rng = np.random.default_rng(1)
    x = rng.normal(size=(1, length, 2, head_dim)).astype(np.float32)
    time = np.arange(length, dtype=np.float32)
    cos, sin = rope_angles(jnp.repeat(jnp.asarray(time)[None, :, None], 3, -1), head_dim, theta,
                           kind)  # fmt: skip
    # 1-D RoPE in the rotate_half form: x * cos + rotate_half(x) * sin with doubled tables.
    frequencies = (theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)).astype(
        np.float32
    )
    angles = jnp.asarray(time[:, None] * frequencies[None, :])
    one_d_cos = jnp.concatenate([jnp.cos(angles)] * 2, -1)[None, :, None, :]
    one_d_sin = jnp.concatenate([jnp.sin(angles)] * 2, -1)[None, :, None, :]
    half = jnp.concatenate([-x[..., head_dim // 2 :], x[..., : head_dim // 2]], -1)
    expected = x * one_d_cos + half * one_d_sin
    np.testing.assert_array_equal(apply_rope(jnp.asarray(x), cos, sin), expected)


def test_scores_depend_on_differences_of_positions_only():
    rng = np.random.default_rng(2)
    q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 32)).astype(np.float32)) for _ in range(2))
    where_q, where_k = np.array([3.0, 4.0, 1.0]), np.array([1.0, 9.0, 2.0])

    def score(shift):
        rotated = [
            apply_rope(x, *rope_angles(jnp.asarray(p + shift)[None, None], 32, 1e4, "il_rope"))
            for x, p in ((q, where_q), (k, where_k))
        ]
        return float(jnp.sum(rotated[0] * rotated[1]))

    assert score(0.0) == pytest.approx(score(np.array([5.0, 2.0, 3.0])), abs=1e-4)
    assert score(0.0) != pytest.approx(0.0, abs=1e-3)


def test_low_precision_is_rotated_in_float32():
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.normal(size=(1, 4, 1, 16)), jnp.bfloat16)
    angles = rope_angles(jnp.asarray(rng.uniform(0, 9, (1, 4, 3)), jnp.float32), 16, 1e4, "m_rope")
    rotated = apply_rope(x, *angles)
    assert rotated.dtype == jnp.bfloat16
    expected = apply_rope(x.astype(jnp.float32), *angles).astype(jnp.bfloat16)
    np.testing.assert_array_equal(rotated, expected)
