"""Blockwise attention against attention with the whole mask, values and gradients."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mogao_jax.config.schema import AttentionConfig
from mogao_jax.ops.attention.api import attention
from mogao_jax.ops.attention.parts import Parts
from mogao_jax.sequence.masking import TEXT, TokenMeta, can_attend, dense_mask


def arrays(seed, batch, lengths, heads, head_dim, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return Parts(
        *(
            None if n is None else jnp.asarray(rng.normal(size=(batch, n, heads, head_dim)), dtype)
            for n in lengths
        )
    )


def lengths_of(meta):
    return tuple(None if m is None else m.segment.shape[1] for m in meta)


def problem(q_meta, k_meta, heads, kv_heads, head_dim=8, dtype=jnp.float32):
    batch = next(m for m in k_meta if m is not None).segment.shape[0]
    return (
        arrays(1, batch, lengths_of(q_meta), heads, head_dim, dtype),
        arrays(2, batch, lengths_of(k_meta), kv_heads, head_dim, dtype),
        arrays(3, batch, lengths_of(k_meta), kv_heads, head_dim, dtype),
        arrays(4, batch, lengths_of(q_meta), heads, head_dim),
    )


def value_and_gradients(q, k, v, weights, q_meta, k_meta, text_reads_vae=False, **config):
    @jax.jit
    def run(q, k, v, q_meta, k_meta):
        def loss(q, k, v):
            out = attention(
                q, k, v, q_meta, k_meta, AttentionConfig(**config), text_reads_vae=text_reads_vae
            )
            products = jax.tree.map(lambda o, w: jnp.sum(o * w), out, weights)
            return sum(jax.tree.leaves(products)), out

        (_, out), gradients = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(q, k, v)
        return out, gradients

    return run(q, k, v, q_meta, k_meta)


def assert_close(ours, theirs, tolerance=1e-5):
    ours, theirs = jax.tree.leaves(ours), jax.tree.leaves(theirs)
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        scale = max(1.0, float(jnp.max(jnp.abs(b)))) if b.size else 1.0
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * scale)


def join(parts):
    return np.concatenate([np.asarray(p) for p in parts if p is not None], axis=1)


def join_meta(meta):
    return TokenMeta(
        *map(np.concatenate, zip(*(m for m in meta if m is not None), strict=True), [1] * 3)
    )


def reference(q, k, v, weights, q_meta, k_meta, *, text_reads_vae=False):
    """The whole mask, one head at a time, in float64; gradients written out by hand."""
    qs, ks, vs, ws = (join(x).astype(np.float64) for x in (q, k, v, weights))
    masks = dense_mask(join_meta(q_meta), join_meta(k_meta), text_reads_vae=text_reads_vae)
    out, dq, dk, dv = (np.zeros(x.shape) for x in (qs, qs, ks, vs))
    groups, scale = qs.shape[2] // ks.shape[2], qs.shape[3] ** -0.5
    for b, n in np.ndindex(qs.shape[0], qs.shape[2]):
        kv = n // groups
        scores = np.where(masks[b], qs[b, :, n] @ ks[b, :, kv].T * scale, -np.inf)
        top = np.max(scores, axis=1, keepdims=True, initial=-1e9)
        p = np.exp(scores - top)
        p = p / np.maximum(p.sum(1, keepdims=True), 1e-300)
        out[b, :, n] = p @ vs[b, :, kv]
        dp = ws[b, :, n] @ vs[b, :, kv].T
        ds = p * (dp - np.sum(p * dp, axis=1, keepdims=True)) * scale
        dq[b, :, n] = ds @ ks[b, :, kv]
        dk[b, :, kv] += ds.T @ qs[b, :, n]
        dv[b, :, kv] += p.T @ ws[b, :, n]
    return out, dq, dk, dv


def assert_is_reference(ours, expected, tolerance=1e-5):
    out, gradients = ours
    for a, b in zip(map(join, (out, *gradients)), expected, strict=True):
        scale = max(1.0, np.max(np.abs(b)))
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * scale)


def compare(q_meta, k_meta, heads, kv_heads, block_q, block_kv, **options):
    data = problem(q_meta, k_meta, heads, kv_heads)
    ours = value_and_gradients(*data, q_meta, k_meta, block_q=block_q, block_kv=block_kv, **options)
    assert_is_reference(ours, reference(*data, q_meta, k_meta, **options))
    return ours


def slow_attention(q, k, v, q_meta, k_meta, text_reads_vae=False):
    """One query at a time, in float64, from can_attend on single tokens."""
    q, k, v = (join(x).astype(np.float64) for x in (q, k, v))
    qm, km = join_meta(q_meta), join_meta(k_meta)
    out = np.zeros(q.shape)
    groups = q.shape[2] // k.shape[2]
    for b, t, n in np.ndindex(*q.shape[:3]):
        query, allowed = qm.take((b, t)), {"text_reads_vae": text_reads_vae}
        reads = [s for s in range(k.shape[1]) if can_attend(query, km.take((b, s)), **allowed)]
        if reads:
            scores = k[b, reads, n // groups] @ q[b, t, n] / np.sqrt(q.shape[3])
            weights = np.exp(scores - scores.max())
            out[b, t, n] = weights @ v[b, reads, n // groups] / weights.sum()
    return out


@pytest.mark.parametrize("text_reads_vae", [False, True])
def test_dense_is_attention_one_query_at_a_time(random_packing, text_reads_vae):
    meta = random_packing(0, 2, (25, 9, 12))
    data = problem(meta, meta, heads=4, kv_heads=2)
    expected = reference(*data, meta, meta, text_reads_vae=text_reads_vae)
    slow = slow_attention(*data[:3], meta, meta, text_reads_vae)
    np.testing.assert_allclose(expected[0], slow, rtol=1e-12, atol=1e-12)
    assert np.any(join_meta(meta).segment == 0)  # there was padding, which gave zeros
    options = {"implementation": "dense", "text_reads_vae": text_reads_vae}
    assert_is_reference(value_and_gradients(*data, meta, meta, **options), expected)


@pytest.mark.parametrize(
    ("seed", "batch", "lengths", "heads", "kv_heads", "blocks", "text_reads_vae"),
    [
        (0, 2, (45, 17, 26), 4, 2, (8, 16), False),
        (1, 1, (50, 16, 32), 2, 2, (16, 8), False),
        (2, 3, (31, 13, 11), 4, 1, (8, 8), True),
        (3, 1, (40, 16, 24), 4, 2, (256, 256), False),  # blocks over the parts' lengths
        (4, 2, (33, 0, 20), 2, 1, (8, 8), False),  # no clean tokens
        (5, 2, (37, 0, 0), 2, 1, (16, 16), False),  # text only
        (6, 1, (30, 12, 14), 3, 3, (5, 7), False),  # blocks that divide nothing
    ],
)
def test_blockwise_is_the_whole_mask(
    random_packing, seed, batch, lengths, heads, kv_heads, blocks, text_reads_vae
):
    meta = random_packing(seed, batch, lengths)
    compare(meta, meta, heads, kv_heads, *blocks, text_reads_vae=text_reads_vae)


def test_documents_of_one_token():
    length = 21
    segment = np.arange(1, length + 1, dtype=np.int32)[None]
    zeros = np.zeros_like(segment)
    meta = Parts(und=TokenMeta(segment, zeros, np.full_like(segment, TEXT)))
    out, _ = compare(meta, meta, 2, 1, 8, 8)
    _, _, v, _ = problem(meta, meta, 2, 1)
    np.testing.assert_allclose(out.und, jnp.repeat(v.und, 2, axis=2), rtol=1e-6)  # itself alone


def test_order_of_tokens_does_not_matter(random_packing):
    meta = random_packing(7, 2, (40, 16, 24))
    rng = np.random.default_rng(0)
    shuffled = Parts(*(m.take((slice(None), rng.permutation(m.order.shape[1]))) for m in meta))
    compare(shuffled, shuffled, 2, 1, 8, 8)


def test_padding_gives_nothing_and_takes_nothing(random_packing):
    meta = random_packing(8, 2, (40, 16, 24))
    data = problem(meta, meta, 2, 1)
    out, gradients = value_and_gradients(*data, meta, meta, block_q=8, block_kv=8)
    found = 0
    for part, m in enumerate(meta):
        is_padding = m.segment == 0
        found += is_padding.sum()
        for x in (out[part], *(g[part] for g in gradients)):
            assert not np.any(np.asarray(x)[is_padding])
    assert found
    # A row of nothing but padding.
    empty = Parts(*(TokenMeta(*(np.zeros_like(x) for x in m)) for m in meta))
    out, gradients = value_and_gradients(*data, empty, empty, block_q=8, block_kv=8)
    assert not any(np.any(np.asarray(x)) for x in jax.tree.leaves((out, gradients)))


@pytest.mark.parametrize("present", ["und", "clean", "noised"])
def test_queries_of_one_part_over_a_cache(random_packing, present):
    """As in sampling: the last tokens of one part read a longer cache with room left in it."""
    meta = random_packing(9, 2, (44, 18, 25))
    index = Parts._fields.index(present)
    last = meta[index].take((slice(None), slice(-7, None)))
    q_meta = Parts()._replace(**{present: last})
    k_meta = meta if present == "noised" else meta._replace(noised=None)
    compare(q_meta, k_meta, 4, 2, 16, 8)


def test_one_query_token():
    keys = TokenMeta(*(np.array([x], np.int32) for x in ([1] * 9 + [0] * 4, range(13), [0] * 13)))
    query = TokenMeta(*(np.array([[x]], np.int32) for x in (1, 5, 0)))
    out, gradients = compare(Parts(und=query), Parts(und=keys), 2, 1, 8, 8)
    assert np.all(np.any(np.asarray(gradients[2].und[0, :6]), axis=(1, 2)))
    assert not np.any(np.asarray(gradients[2].und[0, 6:]))


def test_parts_without_tokens(random_packing):
    meta = random_packing(10, 1, (16, 0, 0))
    q, k, v, _ = problem(meta, meta, 2, 1)
    out = attention(q, k, v, meta, meta)
    assert out.clean.shape == (1, 0, 2, 8)
    q_meta, k_meta = Parts(clean=meta.clean), Parts(noised=meta.noised)
    out = attention(Parts(clean=q.clean), Parts(noised=k.noised), Parts(noised=v.noised),
                    q_meta, k_meta)  # fmt: skip
    assert out.clean.shape == (1, 0, 2, 8) and out.und is None
    # und queries with nothing but noised keys can read nothing.
    only_noised = Parts(noised=meta.und)
    out = attention(Parts(und=q.und), Parts(noised=k.und), Parts(noised=v.und),
                    Parts(und=meta.und), only_noised)  # fmt: skip
    assert out.und.shape == q.und.shape and not np.any(np.asarray(out.und))


def test_low_precision(random_packing):
    meta = random_packing(11, 1, (40, 16, 24))
    data = problem(meta, meta, 4, 2, dtype=jnp.bfloat16)
    ours = value_and_gradients(*data, meta, meta, block_q=16, block_kv=16)
    assert {x.dtype for x in jax.tree.leaves(ours)} == {jnp.dtype(jnp.bfloat16)}
    expected = reference(*data, meta, meta)
    for a, b in zip(map(join, (ours[0], *ours[1])), expected, strict=True):
        np.testing.assert_allclose(a.astype(np.float64), b, atol=0.02 * np.max(np.abs(b)))


def test_large_scores_do_not_overflow(random_packing):
    meta = random_packing(12, 1, (20, 8, 8))
    q, k, v, weights = problem(meta, meta, 2, 1)
    q = jax.tree.map(lambda x: x * 1e4, q)
    ours = value_and_gradients(q, k, v, weights, meta, meta, block_q=8, block_kv=8)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(ours))


def test_never_holds_queries_by_keys(random_packing):
    lengths, heads, head_dim, block = (320, 160, 160), 2, 4, 16
    meta = random_packing(13, 1, lengths)
    data = problem(meta, meta, heads, 1, head_dim)

    def loss(q, k, v):
        out = attention(q, k, v, meta, meta, AttentionConfig("auto", block, block))
        return sum(jax.tree.leaves(jax.tree.map(jnp.sum, out)))

    text = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*data[:3]).compile().as_text()
    shapes = re.findall(r"(?:f32|s32|pred)\[([\d,]+)\]", text)
    sizes = [np.prod([int(n) for n in shape.split(",")]) for shape in shapes]
    assert heads * block * block in sizes  # the search sees scores at all
    linear = sum(lengths) * heads * head_dim
    tiles = (sum(lengths) // block) ** 2
    assert max(sizes) <= max(linear, 2 * tiles) < sum(lengths) ** 2 / 50


def test_split_batch_is_the_whole_one_without_communication(random_packing, collectives):
    meta = random_packing(14, 8, (24, 9, 12))
    q, k, v, weights = problem(meta, meta, 2, 1)

    def run(q, k, v, meta):
        def loss(q, k, v):
            out = attention(q, k, v, meta, meta, AttentionConfig("auto", 8, 8))
            # Per row, so that the test's own sum does not communicate.
            return sum(jnp.sum(o * w, (1, 2, 3)) for o, w in zip(out, weights, strict=True))

        rows, vjp = jax.vjp(loss, q, k, v)
        return rows, vjp(jnp.ones_like(rows))

    alone = jax.jit(run)(q, k, v, meta)
    mesh = jax.make_mesh((4, 2, 1), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    with jax.set_mesh(mesh):
        rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
        q, k, v, meta, weights = jax.device_put((q, k, v, meta, weights), rows)
        compiled = jax.jit(run).lower(q, k, v, meta).compile()
        split = compiled(q, k, v, meta)
        one_row = jax.tree.map(lambda x: x[:1], (q, k, v, meta))  # cannot be split: runs whole
        single = jax.eval_shape(run, *one_row)
    assert collectives(compiled.as_text()) == set()
    assert split[0].sharding.spec == PartitionSpec(("data", "fsdp"))
    assert_close(jax.tree.map(np.asarray, split), alone)
    assert single[1][0].und.shape == (1, 24, 2, 8)


def test_heads_may_be_split_too(random_packing):
    meta = random_packing(15, 2, (24, 9, 12))
    data = problem(meta, meta, 4, 2)
    alone = value_and_gradients(*data, meta, meta, block_q=8, block_kv=8)
    mesh = jax.make_mesh((2, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        heads = NamedSharding(mesh, PartitionSpec("data", None, "tensor"))
        placed = jax.device_put(data, heads)
        split = value_and_gradients(*placed, meta, meta, block_q=8, block_kv=8)
    assert_close(jax.tree.map(np.asarray, split), jax.tree.map(np.asarray, alone))


def test_what_does_not_fit_is_refused(random_packing):
    meta = random_packing(16, 1, (8, 4, 4))
    q, k, v, _ = problem(meta, meta, 4, 2)
    with pytest.raises(ValueError, match="implementation"):
        attention(q, k, v, meta, meta, AttentionConfig("other"))
    with pytest.raises(ValueError, match="multiple"):
        attention(jax.tree.map(lambda x: x[:, :, :3], q), k, v, meta, meta)
    with pytest.raises(ValueError, match="both be there"):
        attention(q, k._replace(clean=None), v, meta, meta)
    with pytest.raises(ValueError, match="same shapes"):
        attention(q, k, v._replace(clean=v.und), meta, meta)
    with pytest.raises(ValueError, match="metadata must be of shape"):
        attention(q, k, v, meta._replace(und=meta.clean), meta)
