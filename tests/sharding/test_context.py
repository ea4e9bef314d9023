from __future__ import annotations

import jax
import numpy as np
import pytest

from mogao_jax.config.schema import MeshConfig
from mogao_jax.sharding.context import balanced, balanced_order
from mogao_jax.sharding.mesh import make_mesh


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_causal_work_is_shared_out_evenly(devices):
    order = balanced_order(32, devices)
    assert sorted(order) == list(range(32))
    reads = (order + 1).reshape(devices, -1).sum(1)  # keys that each token of a document reads
    assert len(set(reads)) == 1
    in_order = np.arange(1, 33).reshape(devices, -1).sum(1)
    assert devices == 1 or in_order[-1] > 1.5 * in_order[0]


def test_all_arrays_of_a_stream_alike():
    stream = {"a": np.arange(32).reshape(2, 16), "b": np.arange(64).reshape(2, 16, 2)}
    with jax.set_mesh(make_mesh(MeshConfig(data=4, context=2))):
        found = balanced(stream)
        odd = balanced({"a": np.zeros((2, 6))})
    np.testing.assert_array_equal(found["a"][0], [0, 1, 2, 3, 12, 13, 14, 15, *range(4, 12)])
    np.testing.assert_array_equal(found["b"][..., 0] // 2, found["a"])
    assert odd["a"].shape == (2, 6)
    assert balanced(stream) is stream  # no mesh
