"""Twenty optimizer steps on every mesh of eight devices, against one device."""

from __future__ import annotations

import functools
import itertools
import math
import os
import pathlib
import sys

import jax
import mesh_training
import numpy as np
import pytest
import tiny_system as tiny
from mesh_training import DEVICES
from two_processes import free_port, run_two

MESHES = [
    sizes for sizes in itertools.product((1, 2, 4, 8), repeat=4) if math.prod(sizes) == DEVICES
]
# Each of the axes across the border of two processes of four devices.
ACROSS = [(2, 1, 2, 2), (1, 8, 1, 1), (1, 1, 8, 1), (1, 1, 2, 4)]


@functools.cache
def alone():
    return mesh_training.train((1, 1, 1, 1))


def assert_as_alone(losses, params):
    expected_losses, expected = alone()
    assert expected_losses[-1] < 0.9 * expected_losses[0]  # it learns
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert tiny.relative_error(params, expected) < 1e-4
    for ours, theirs in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
        assert tiny.relative_error(ours, theirs) < 1e-3


def name(sizes):
    return "x".join(map(str, sizes))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", MESHES, ids=name)
def test_training_is_that_of_one_device(sizes):
    assert_as_alone(*mesh_training.train(sizes))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(2, 4, 1, 1), (2, 2, 1, 2)], ids=name)
def test_weights_sharded_over_data_too_train_as_on_one_device(sizes):
    assert_as_alone(*mesh_training.train(sizes, ("fsdp", "data")))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(2, 2, 1, 2), (1, 1, 1, 8)], ids=name)
def test_weights_sharded_over_context_too_train_as_on_one_device(sizes):
    assert_as_alone(*mesh_training.train(sizes, ("fsdp", "context")))


@pytest.mark.slow
def test_training_by_two_processes_is_that_of_one_device(tmp_path):
    places = [pathlib.Path(m.__file__).parent for m in (mesh_training, tiny)]
    environment = {
        **os.environ,
        # As in conftest.py, for four devices a process.
        "XLA_FLAGS": " ".join(f for f in os.environ["XLA_FLAGS"].split() if "count" not in f),
        "PJRT_NPROC": "8",
        "PYTHONPATH": os.pathsep.join(map(str, (*places, os.environ.get("PYTHONPATH", "")))),
    }
    command = [sys.executable, mesh_training.__file__, str(free_port())]
    rest = [str(tmp_path), *map(name, ACROSS)]
    run_two(lambda i: [*command, str(i), *rest], timeout=1500, env=environment)
    for sizes in ACROSS:
        found = np.load(tmp_path / f"{name(sizes)}.npz")
        structure = jax.tree.structure(alone()[1])
        leaves = [found[str(i)] for i in range(structure.num_leaves)]
        assert_as_alone(found["losses"], jax.tree.unflatten(structure, leaves))
