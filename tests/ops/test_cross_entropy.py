"""Chunked cross-entropy against all logits at once."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mogao_jax.ops.cross_entropy import cross_entropy


def reference(hidden, table, targets, weights):
    logits = hidden.astype(jnp.float32) @ table.astype(jnp.float32).T
    log_p = jax.nn.log_softmax(logits)
    losses = -jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0]
    return jnp.where(weights != 0, losses, 0.0), (jnp.argmax(logits, -1) == targets) & (
        weights != 0
    )


def problem(batch, length, width, vocab, used=0.6, seed=0):
    rng = np.random.default_rng(seed)
    hidden = jnp.asarray(rng.normal(size=(batch, length, width)), jnp.float32)
    table = jnp.asarray(rng.normal(size=(vocab, width)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, vocab, (batch, length)), jnp.int32)
    weights = rng.uniform(0.1, 2, (batch, length)) * (rng.random((batch, length)) < used)
    return hidden, table, targets, jnp.asarray(weights, jnp.float32)


def weighted(f, weights):
    return lambda h, t, y, w: jnp.sum(f(h, t, y, w)[0] * weights)


@pytest.mark.parametrize(
    ("sizes", "chunk", "used"),
    [
        ((2, 13, 8, 5), 4, 0.6),  # chunks that do not divide the row
        ((1, 16, 6, 33), 16, 1.0),  # one chunk, all used
        ((3, 7, 4, 2), 100, 0.3),  # chunk over the row
        ((2, 9, 4, 11), 1, 0.5),
        ((2, 9, 4, 1), 4, 0.5),  # a vocabulary of one
        ((2, 9, 4, 11), 4, 0.0),  # nothing used
    ],
)
def test_values_and_gradients(sizes, chunk, used):
    hidden, table, targets, weights = problem(*sizes, used=used)

    def ours(h, t, y, w):
        return cross_entropy(h, t, y, w, chunk=chunk)

    losses, is_correct = jax.jit(ours)(hidden, table, targets, weights)
    expected, expected_correct = reference(hidden, table, targets, weights)
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(is_correct, expected_correct)
    # Cotangents that are not a multiple of the weights, so that no shortcut can pass.
    other = jnp.asarray(np.random.default_rng(9).normal(size=targets.shape), jnp.float32)
    arguments = (hidden, table, targets, weights)
    gradients = jax.jit(jax.grad(weighted(ours, other), (0, 1)))(*arguments)
    wanted = jax.grad(weighted(reference, other), (0, 1))(*arguments)
    for ours_, theirs in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(ours_, theirs, rtol=1e-5, atol=1e-5)


def test_some_prediction_is_right_and_ties_count():
    hidden = jnp.ones((1, 3, 1))
    table = jnp.asarray([[1.0], [2.0], [2.0]])
    _, is_correct = cross_entropy(hidden, table, jnp.asarray([[0, 1, 2]]), jnp.ones((1, 3)))
    assert is_correct.tolist() == [[False, True, True]]


def test_bfloat16_states_have_float32_losses():
    hidden, table, targets, weights = problem(2, 12, 16, 50)
    hidden = hidden.astype(jnp.bfloat16)
    losses, _ = cross_entropy(hidden, table, targets, weights, chunk=5)
    assert losses.dtype == jnp.float32
    rounded = table.astype(jnp.bfloat16)
    expected, _ = reference(hidden, rounded, targets, weights)
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-5)
    dh, dt = jax.grad(weighted(cross_entropy, weights), (0, 1))(hidden, table, targets, weights)
    assert dh.dtype == jnp.bfloat16 and dt.dtype == jnp.float32
    wide = (hidden.astype(jnp.float32), rounded.astype(jnp.float32), targets, weights)
    for got, want in zip((dh, dt), jax.grad(weighted(reference, weights), (0, 1))(*wide),
                         strict=True):  # fmt: skip
        scale = float(jnp.max(jnp.abs(want)))
        np.testing.assert_allclose(got.astype(jnp.float32), want, atol=0.02 * scale)


def test_large_logits_do_not_overflow():
    hidden, table, targets, weights = problem(1, 6, 4, 7)
    losses, _ = cross_entropy(hidden * 1e3, table * 1e3, targets, weights, chunk=4)
    expected, _ = reference(hidden * 1e3, table * 1e3, targets, weights)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_never_holds_all_logits():
    length, vocab, chunk = 64, 97, 8
    arguments = problem(1, length, 4, vocab)

    def loss(h, t, y, w):
        return jnp.sum(cross_entropy(h, t, y, w, chunk=chunk)[0])

    text = jax.jit(jax.grad(loss, (0, 1))).lower(*arguments).as_text()
    sizes = [np.prod([int(n) for n in s.split("x")]) for s in re.findall(r"<([\dx]+)xf32>", text)]
    assert chunk * vocab in sizes  # the search sees logits at all
    assert max(sizes) <= max(chunk * vocab, length * 4)


def test_split_batch_is_the_whole_one_and_reduces_once(collectives):
    arguments = problem(8, 10, 6, 21, used=0.5)
    weights = arguments[3]

    def ours(h, t, y, w):
        return cross_entropy(h, t, y, w, chunk=3)

    f = jax.value_and_grad(weighted(ours, weights), (0, 1))
    alone = jax.jit(f)(*arguments)
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
        stored = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
        placed = [jax.device_put(x, stored if i == 1 else rows) for i, x in enumerate(arguments)]
        compiled = jax.jit(f).lower(*placed).compile()
        split = compiled(*placed)
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(split), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    # The table is gathered, its gradient summed and scattered, outside of the loops.
    assert collectives(compiled.as_text()) == {
        (kind, True) for kind in ("all-reduce", "all-gather", "reduce-scatter")
    }


@pytest.mark.parametrize(("tensor", "context", "vocab"), [(1, 4, 21), (4, 2, 24), (2, 2, 21)])
def test_tokens_are_split_over_all_axes(tensor, context, vocab):
    arguments = problem(2, 16, 6, vocab, used=0.5)

    def ours(h, t, y, w):
        return cross_entropy(h, t, y, w, chunk=3)

    f = jax.value_and_grad(weighted(ours, arguments[3]), (0, 1))
    alone = jax.jit(f)(*arguments)
    names = ("data", "fsdp", "tensor", "context")
    sizes = (1, 8 // tensor // context, tensor, context)
    with jax.set_mesh(jax.make_mesh(sizes, names, axis_types=(AxisType.Auto,) * 4)):
        split = jax.jit(f)(*arguments)
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(split), strict=True):
        np.testing.assert_allclose(a, np.asarray(b), rtol=1e-5, atol=1e-5)


def test_shapes_that_do_not_fit_are_refused():
    hidden, table, targets, weights = problem(2, 5, 4, 6)
    with pytest.raises(ValueError, match="do not fit"):
        cross_entropy(hidden, table, targets[:, :4], weights)
    with pytest.raises(ValueError, match="width"):
        cross_entropy(hidden, table[:, :3], targets, weights)
    with pytest.raises(ValueError, match="chunk"):
        cross_entropy(hidden, table, targets, weights, chunk=0)
