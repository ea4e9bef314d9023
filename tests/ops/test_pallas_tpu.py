"""The Pallas kernels, interpreted, against attention with the whole mask in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_attention import problem, reference

from mogao_jax.errors import ConfigError
from mogao_jax.ops.attention import tiles
from mogao_jax.ops.attention.pallas_tpu import pallas_attention
from mogao_jax.ops.attention.parts import Parts, static_of
from mogao_jax.ops.attention.parts import blocked_meta as in_blocks
from mogao_jax.sequence.masking import TEXT, VAE_CLEAN, VAE_NOISED, TokenMeta, can_attend

TOLERANCE = 5e-6


def run(q, k, v, weights, q_meta, k_meta, **options):
    def loss(q, k, v):
        out = pallas_attention(q, k, v, q_meta, k_meta, interpret=True, **options)
        products = jax.tree.map(lambda o, w: jnp.sum(o * w), out, weights)
        return sum(jax.tree.leaves(products)), out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    return out, *gradients


def relative_errors(ours, theirs):
    for part, wanted in zip(ours, theirs, strict=True):
        a = np.concatenate([np.asarray(p, np.float64) for p in part if p is not None], axis=1)
        yield np.linalg.norm(a - wanted) / max(np.linalg.norm(wanted), 1e-12)


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2), (3, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_values_and_gradients(random_packing, seed, heads, kv_heads):
    rng = np.random.default_rng((seed, heads))
    lengths = tuple(int(n) for n in rng.integers(0, 40, 3))
    lengths = (max(lengths[0], 1), *lengths[1:])
    meta = random_packing(seed, 2, lengths)
    given = problem(meta, meta, heads, kv_heads)
    blocks = {"block_q": int(rng.choice([8, 16])), "block_kv": int(rng.choice([8, 16]))}
    ours = run(*given, meta, meta, **blocks)
    theirs = reference(*given, meta, meta)
    assert max(relative_errors(ours, theirs)) < TOLERANCE


def test_vae_only_understanding(random_packing):
    meta = random_packing(3, 1, (20, 17, 23))
    given = problem(meta, meta, 2, 1)
    ours = run(*given, meta, meta, block_q=8, block_kv=8, text_reads_vae=True)
    theirs = reference(*given, meta, meta, text_reads_vae=True)
    assert max(relative_errors(ours, theirs)) < TOLERANCE


def blocked_meta(meta, block):
    static = static_of(
        *(Parts(*(None if m is None else np.zeros((*m.segment.shape, 1, 1)) for m in meta)),) * 2,
        block, block, False,
    )  # fmt: skip
    return static, *(in_blocks(meta, b) for b in (static.queries, static.keys))


def long_document():
    """Two rows of one document of an image and much text: tiles of 8 x 8 are often full."""

    def part(orders, kind, size):
        segment = [1] * len(orders) + [0] * (size - len(orders))
        order = [*orders, *[0] * (size - len(orders))]
        rows = np.asarray([segment, order, [kind] * size], np.int32)
        return TokenMeta(*np.repeat(rows[:, None], 2, axis=1))

    return Parts(
        part([*range(17), *[17] * 8, *range(18, 30)], TEXT, 40),
        part([17] * 20, VAE_CLEAN, 20),
        part([17] * 20 + [40] * 16, VAE_NOISED, 40),
    )


@pytest.mark.parametrize("by_key", [False, True])
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_lists_cover_what_attends_and_know_what_is_full(random_packing, seed, by_key):
    meta = long_document() if seed is None else random_packing(seed, 2, (33, 20, 40))
    static, q_meta, k_meta = blocked_meta(meta, 8)
    found = jax.device_get(
        tiles.list_tiles(
            static, *(jax.tree.map(jnp.asarray, m) for m in (q_meta, k_meta)), by_key=by_key
        )
    )
    n = int(found.num_tiles)
    query, key, flags = found.query[:n], found.key[:n], found.flags[:n]
    listed = {(i, j): f for i, j, f in zip(query, key, flags, strict=True)}
    assert len(listed) == n
    num_q, num_k = static.queries.total, static.keys.total
    fulls = 0
    for i in range(2 * num_q):
        for j in range(2 * num_k):
            if i // num_q != j // num_k:
                assert (i, j) not in listed
                continue
            q = q_meta.take((i // num_q, i % num_q, slice(None), None))
            k = k_meta.take((j // num_k, j % num_k, None, slice(None)))
            mask = can_attend(q, k)
            if mask.any():
                assert (i, j) in listed and not listed[i, j] & tiles.EMPTY
            if (i, j) in listed and listed[i, j] & tiles.FULL:
                assert mask.all()
                fulls += 1
    assert fulls or seed is not None  # a long document has some
    # Owners come in order, each once, opened and closed.
    own = key if by_key else query
    assert (np.diff(own) >= 0).all() and set(own) == set(range(2 * (num_k if by_key else num_q)))
    first = np.concatenate([[True], own[1:] != own[:-1]])
    last = np.concatenate([own[1:] != own[:-1], [True]])
    np.testing.assert_array_equal((flags & tiles.FIRST) != 0, first)
    np.testing.assert_array_equal((flags & tiles.LAST) != 0, last)


def test_a_packed_tile_keeps_its_numbers():
    most = tiles.MOST_BLOCKS - 1
    query, key, flags = (
        jnp.asarray(x, jnp.int32) for x in ([0, most, 5], [most, 0, 7], [0, 15, 9])
    )
    packed = tiles.pack(tiles.TileList(query, key, flags, jnp.asarray(3)))
    for found, given in zip(tiles.unpack(packed), (query, key, flags), strict=True):
        np.testing.assert_array_equal(found, given)


def test_rows_too_long_for_the_list_say_what_to_do():
    def parts(length, heads):
        return Parts(*(jax.ShapeDtypeStruct((1, n, heads, 128), jnp.float32) for n in length))

    def meta(length):
        return Parts(*(TokenMeta(*[jax.ShapeDtypeStruct((1, n), jnp.int32)] * 3) for n in length))

    def trace(queries, keys):
        q, k = parts(queries, 4), parts(keys, 2)
        jax.eval_shape(pallas_attention, q, k, k, meta(queries), meta(keys))

    whole = (65536, 65536, 131072)
    with pytest.raises(ConfigError, match=r"mesh\.context.*block_q"):
        trace(whole, whole)
    trace(tuple(n // 4 for n in whole), whole)  # a fourth of the queries: context=4
