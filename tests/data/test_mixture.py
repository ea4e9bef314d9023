"""The mixture: shares, epochs, shards."""

import collections

import pytest

from mogao_jax.data.mixture import SHORT, Draw, make_mixture
from mogao_jax.errors import DataError


def take(mixture, n):
    return [mixture[i] for i in range(n)]


def test_shares_follow_the_weights():
    draws = take(make_mixture([7, 50, 9], [1.0, 0.5, 0.0], seed=0), 300)
    assert collections.Counter(d.source for d in draws) == {0: 200, 1: 100}
    assert all(0 <= d.record < [7, 50][d.source] for d in draws)


@pytest.mark.parametrize("length", [10, SHORT + 10])
def test_every_epoch_has_every_record_in_another_order(length):
    draws = take(make_mixture([length], [1.0], seed=1), 2 * length)
    epochs = [[d.record for d in draws[:length]], [d.record for d in draws[length:]]]
    for epoch in epochs:
        assert sorted(epoch) == list(range(length))
    assert epochs[0] != epochs[1]
    assert [d.number for d in draws] == list(range(2 * length))
    assert draws != take(make_mixture([length], [1.0], seed=2), 2 * length)
    assert draws == take(make_mixture([length], [1.0], seed=1), 2 * length)


def test_shards_share_out_every_source_and_keep_the_shares():
    n, shards = 30, 2
    whole = take(make_mixture([6, 5], [1, 1], seed=3), n * shards)
    parts = [
        take(make_mixture([6, 5], [1, 1], seed=3, shard=s, num_shards=shards), n)
        for s in range(shards)
    ]
    assert sorted(parts[0] + parts[1]) == sorted(whole)
    for part in parts:
        assert collections.Counter(d.source for d in part) == {0: n // 2, 1: n // 2}


def test_a_source_shorter_than_the_shards():
    draws = take(make_mixture([2], [1], seed=0, shard=3, num_shards=5), 4)
    assert all(isinstance(d, Draw) and d.record in (0, 1) for d in draws)
    assert [d.number for d in draws] == [3, 8, 13, 18]


def test_nothing_to_draw_from():
    with pytest.raises(DataError, match="nothing to train on"):
        make_mixture([3, 0], [0.0, 1.0], seed=0)
