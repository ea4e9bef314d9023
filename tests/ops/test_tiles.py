"""The list of active tiles: never misses a pair, and is tight on sorted rows."""

from __future__ import annotations

import numpy as np
import pytest

from mogao_jax.ops.attention import tiles as tiling
from mogao_jax.ops.attention.parts import Parts, blocked_meta, cut
from mogao_jax.sequence.masking import TEXT, TokenMeta, dense_mask


def needed_by_mask(q_meta, k_meta, queries, keys, text_reads_vae):
    """bool[B, query blocks, key blocks], from the whole mask."""
    q = blocked_meta(q_meta, queries)
    k = blocked_meta(k_meta, keys)
    batch = q.segment.shape[0]
    flat = [TokenMeta(*(np.asarray(x).reshape(batch, -1) for x in m)) for m in (q, k)]
    mask = dense_mask(*flat, text_reads_vae=text_reads_vae)
    tiled = mask.reshape(batch, queries.total, queries.size, keys.total, keys.size)
    return tiled.any(axis=(2, 4)), int(mask.sum())


@pytest.mark.parametrize("is_sorted", [True, False])
@pytest.mark.parametrize("text_reads_vae", [False, True])
def test_no_pair_is_missed(random_packing, is_sorted, text_reads_vae):
    for seed in range(12):
        meta = random_packing(seed, 3, (60, 20, 33))
        if not is_sorted:
            rng = np.random.default_rng(seed)
            meta = Parts(*(m.take((slice(None), rng.permutation(m.order.shape[1]))) for m in meta))
        queries = cut((60, 20, 33), 4 + seed % 5)
        keys = cut((60, 20, 33), 3 + seed % 7)
        readable = tiling.readable_tiles(queries, keys, text_reads_vae)
        blocked = blocked_meta(meta, queries), blocked_meta(meta, keys)
        active = np.asarray(tiling.active_tiles(*blocked, readable, queries, keys))
        run = np.zeros((3, queries.total, keys.total), bool)
        run[:, readable[:, 0], readable[:, 1]] = active
        needed, pairs = needed_by_mask(meta, meta, queries, keys, text_reads_vae)
        assert not np.any(needed & ~run)
        if is_sorted:
            assert run.sum() <= 1.5 * needed.sum()
        counted = tiling.tile_statistics(
            meta, meta, block_q=queries.size, block_kv=keys.size, text_reads_vae=text_reads_vae
        )
        assert counted == (run.sum(), needed.sum(), run.sum() * queries.size * keys.size, pairs)


def test_causal_text_takes_the_lower_triangle_of_tiles():
    order = np.arange(64, dtype=np.int32)[None]
    meta = Parts(und=TokenMeta(np.ones_like(order), order, np.full_like(order, TEXT)))
    counted = tiling.tile_statistics(meta, meta, block_q=16, block_kv=16)
    assert counted == (10, 10, 10 * 256, 64 * 65 // 2)
    assert counted.overhead == 2560 / 2080


def test_nothing_to_read():
    order = np.arange(8, dtype=np.int32)[None]
    meta = TokenMeta(np.ones_like(order), order, np.full_like(order, TEXT))
    counted = tiling.tile_statistics(Parts(und=meta), Parts(noised=meta), block_q=4, block_kv=4)
    assert counted == (0, 0, 0, 0) and counted.overhead == 0.0


def test_blocks_shrink_to_short_parts():
    assert cut((300, 0, 100), 256) == (256, (300, 0, 100), (2, 0, 1))
    assert cut((20, 3, 0), 256) == (24, (20, 3, 0), (1, 1, 0))
    assert cut((1, 0, 0), 256) == (1, (1, 0, 0), (1, 0, 0))
