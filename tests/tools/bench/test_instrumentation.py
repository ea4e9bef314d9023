"""Timing in turn: order, the round that compiles, ratios within a round."""

from __future__ import annotations

import pytest

from mogao_jax.tools.bench.instrumentation import Rounds, alternate


def test_calls_take_turns_and_the_first_round_counts_for_nothing():
    order: list[str] = []

    def call(name):
        order.append(name)
        return {f"part of {name}": float(len(order))}

    rounds = alternate({n: lambda n=n: call(n) for n in "ab"}, 2)
    assert order == ["b", "a", "a", "b", "b", "a"]  # one round before, then two
    assert set(rounds.seconds) == {"a", "b", "part of a", "part of b"}
    assert all(len(seconds) == 2 for seconds in rounds.seconds.values())
    assert rounds.seconds["part of a"] == (3.0, 6.0)


def test_ratios_are_of_the_same_round():
    rounds = Rounds({"a": (2.0, 40.0, 9.0), "b": (1.0, 10.0, 3.0)})
    assert list(rounds.ratios("a", "b")) == [2.0, 4.0, 3.0]
    assert rounds.ratio("a", "b") == 3.0  # of the medians it would be 9 / 3 as well, of means not
    assert rounds.spread("a", "b") == pytest.approx((2.5, 3.5))
    assert rounds.median("a") == 9.0
