from __future__ import annotations

import dataclasses
import itertools
import os

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from mogao_jax.config.schema import MeshConfig
from mogao_jax.errors import ConfigError, EnvironmentProblem
from mogao_jax.sharding import mesh as mesh_lib


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (MeshConfig(), (8, 1, 1, 1)),
        (MeshConfig(fsdp=4), (2, 4, 1, 1)),
        (MeshConfig(data=1, fsdp=-1, tensor=2), (1, 4, 2, 1)),
        (MeshConfig(data=2, fsdp=2, tensor=1, context=2), (2, 2, 1, 2)),
    ],
)
def test_sizes_are_filled_in(config, expected):
    assert mesh_lib.axis_sizes(config, 8) == expected


def test_mesh_has_auto_axes_and_all_devices():
    mesh = mesh_lib.make_mesh(MeshConfig(fsdp=2))
    assert mesh.axis_names == ("data", "fsdp", "tensor", "context")
    assert mesh.axis_types == (AxisType.Auto,) * 4
    assert mesh.size == len(jax.devices()) == 8
    assert mesh_lib.make_mesh(MeshConfig(), jax.devices()[:1]).size == 1


@pytest.mark.parametrize(
    ("given", "cores", "threads"),
    [
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}, 2, "16"),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "NPROC": "5"}, 2, None),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}, 64, None),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}, 2, None),
    ],
)
def test_more_devices_than_cores_get_threads_to_spare(monkeypatch, given, cores, threads):
    for name in ("NPROC", "PJRT_NPROC"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    mesh_lib.split_cpu(1)
    assert os.environ.get("PJRT_NPROC") == threads


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (MeshConfig(data=0), ConfigError, "mesh.data is 0"),
        (MeshConfig(tensor=-2), ConfigError, "mesh.tensor is -2"),
        (MeshConfig(fsdp=-1), ConfigError, "mesh.data and mesh.fsdp are both -1"),
        (MeshConfig(fsdp=3), EnvironmentProblem, "mesh.data=2 mesh.fsdp=4 mesh.tensor=1"),
        (MeshConfig(data=2), EnvironmentProblem, "mesh.data=8 mesh.fsdp=1"),
        (MeshConfig(data=1, fsdp=16), EnvironmentProblem, "mesh.data=1 mesh.fsdp=8"),
    ],
)
def test_impossible_sizes_say_what_works(config, error, message):
    with pytest.raises(error, match=message):
        mesh_lib.make_mesh(config)


@pytest.mark.parametrize("num_devices", [1, 2, 6, 8, 12, 256])
def test_the_suggestion_works(num_devices):
    rng = np.random.default_rng(num_devices)
    for _ in range(20):
        config = MeshConfig(*(int(n) for n in rng.integers(1, 9, 4)))
        config = dataclasses.replace(config, data=-1) if rng.integers(2) else config
        near = mesh_lib.nearest_sizes(
            (config.data, config.fsdp, config.tensor, config.context), num_devices
        )
        assert mesh_lib.axis_sizes(MeshConfig(*near), num_devices) == near


def test_rows_must_be_shared_out_evenly():
    mesh = mesh_lib.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    mesh_lib.check_rows(mesh, 8)
    with pytest.raises(
        ConfigError, match="train.global_batch_rows is 6.*multiple of 4, such as 4 or 8"
    ):
        mesh_lib.check_rows(mesh, 6)
    with pytest.raises(ConfigError, match="such as 4\\."):
        mesh_lib.check_rows(mesh, 1)


def test_global_batch_is_sharded_along_the_rows():
    mesh = mesh_lib.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    batch = {"a": np.arange(24.0, dtype=np.float32).reshape(8, 3), "b": np.arange(8)}
    placed = mesh_lib.global_batch(mesh, batch)
    assert placed["a"].sharding.spec == P(("data", "fsdp"))
    np.testing.assert_array_equal(placed["a"], batch["a"])
    np.testing.assert_array_equal(placed["b"], batch["b"])
    assert {s.data.shape for s in placed["a"].addressable_shards} == {(2, 3)}
    for shard in placed["a"].addressable_shards:
        np.testing.assert_array_equal(shard.data, batch["a"][shard.index])


def test_global_batch_with_micro_steps_in_front():
    mesh = mesh_lib.make_mesh(MeshConfig(data=4, fsdp=2))
    batch = np.arange(48).reshape(3, 16)
    placed = mesh_lib.global_batch(mesh, batch, batch_axis=1)
    np.testing.assert_array_equal(placed, batch)
    assert {s.data.shape for s in placed.addressable_shards} == {(3, 2)}


def test_slices_are_joined_along_the_data_axis_alone():
    one = mesh_lib.make_mesh(MeshConfig(data=4, fsdp=2))
    assert one.devices.shape == (4, 2, 1, 1)
    config = MeshConfig(data=-1, fsdp=2, num_slices=2)
    devices = jax.devices()
    mesh = mesh_lib.make_mesh(config, devices)
    halves = np.array(mesh.devices).reshape(2, 4)
    assert mesh.devices.shape == (4, 2, 1, 1)
    assert mesh.axis_types == (AxisType.Auto,) * 4
    assert set(halves[0]) == set(devices[:4]) and set(halves[1]) == set(devices[4:])


@dataclasses.dataclass(frozen=True)
class _Device:
    """As a TPU's of several slices: what make_mesh looks at."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "none"
    device_kind: str = "none"


def test_devices_that_know_their_slices_are_grouped_by_them():
    devices = [_Device(i, slice_index=i % 2) for i in range(8)]
    mesh = mesh_lib.make_mesh(MeshConfig(data=2, fsdp=4, num_slices=2), devices)
    assert [{d.slice_index for d in part.flat} for part in mesh.devices] == [{0}, {1}]
    with pytest.raises(EnvironmentProblem, match="2 slices; set mesh.num_slices=2"):
        mesh_lib.make_mesh(MeshConfig(data=2, fsdp=4), devices)


@pytest.mark.parametrize(
    ("sizes", "per_process", "expected"),
    [
        ((2, 4, 1, 1), 4, [(0, 2), (1, 2)]),  # every process has rows of its own
        ((1, 8, 1, 1), 2, [(0, 4), (1, 4), (2, 4), (3, 4)]),
        ((1, 2, 2, 2), 4, [(0, 2), (1, 2)]),
        ((1, 2, 2, 2), 2, [(0, 2), (0, 2), (1, 2), (1, 2)]),  # pairs hold the same row
        ((1, 1, 1, 8), 2, [(0, 1)] * 4),  # one long row over all hosts
    ],
)
def test_processes_that_hold_the_same_rows_read_the_same(sizes, per_process, expected):
    devices = [_Device(i, 0, process_index=i // per_process) for i in range(8)]
    mesh = mesh_lib.make_mesh(MeshConfig(*sizes), devices)
    readers = [mesh_lib.row_reader(mesh, p) for p in range(8 // per_process)]
    assert readers == expected
    # Against the placement itself: the rows of a process's devices, by JAX's own indices.
    places = mesh_lib.batch_sharding(mesh).devices_indices_map((16,))
    for process, (reader, count) in enumerate(readers):
        rows = {
            row
            for device, (where,) in places.items()
            if device.process_index == process
            for row in range(16)[where]
        }
        assert rows == set(range(16 // count * reader, 16 // count * (reader + 1)))


def test_processes_that_share_some_rows_are_refused():
    devices = [_Device(i, 0, process_index=i // 4) for i in range(12)]
    mesh = mesh_lib.make_mesh(MeshConfig(2, 1, 6, 1), devices)
    with pytest.raises(EnvironmentProblem, match="mesh.tensor x mesh.context"):
        mesh_lib.row_reader(mesh, 1)


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (MeshConfig(data=1, fsdp=8, num_slices=2), ConfigError, "mesh.data is 1.*multiple of 2"),
        (MeshConfig(data=-1, num_slices=3), EnvironmentProblem, "num_slices is 3.*2 does"),
        (MeshConfig(data=-1, num_slices=16), EnvironmentProblem, "does not divide the 8.*8 does"),
    ],
)
def test_slices_that_do_not_fit_say_what_does(config, error, message):
    with pytest.raises(error, match=message):
        mesh_lib.make_mesh(config)


def test_frozen_weights_may_be_sharded():
    mesh = mesh_lib.make_mesh(MeshConfig(data=2, fsdp=4))
    shapes = {"a": np.zeros((3, 3, 8, 16)), "b": np.zeros((12, 6)), "c": np.zeros(5)}
    cut = mesh_lib.encoder_shardings(mesh, shapes, "sharded")
    assert cut["a"].spec == P(None, None, None, "fsdp")
    assert cut["b"].spec == P("fsdp") and cut["c"].spec == P()
    whole = mesh_lib.encoder_shardings(mesh, shapes, "replicated")
    assert {s.spec for s in whole.values()} == {P()}


@pytest.mark.parametrize(
    ("sizes", "torus", "expected"),
    [
        ((1, 16, 1, 4), (4, 4, 4), (1, 16, 1, 4)),
        ((1, 8, 1, 8), (4, 4, 4), (1, 4, 1, 16)),  # as near as (1, 16, 1, 4)
        ((2, 32, 1, 1), (4, 4, 4), (1, 64, 1, 1)),
        ((8, 8, 1, 1), (8, 8), (8, 8, 1, 1)),
        ((1, 3, 1, 1), (2, 2), (1, 4, 1, 1)),
    ],
)
def test_the_nearest_mesh_on_a_torus(sizes, torus, expected):
    assert mesh_lib.nearest_on_torus(sizes, torus) == expected


def test_a_mesh_that_splits_an_axis_of_the_torus_says_what_lies_on_it():
    class Chip:
        platform, device_kind, slice_index, core_on_chip = "tpu", "TPU v5p", 0, 0
        process_index = 0

        def __init__(self, number, coords):
            self.id, self.coords = number, coords

    chips = [Chip(n, coords) for n, coords in enumerate(itertools.product(range(4), repeat=3))]
    with pytest.raises(EnvironmentProblem, match=r"4x4x4 torus.*fsdp=4 x tensor=1 x context=16"):
        mesh_lib.make_mesh(MeshConfig(fsdp=8, context=8), chips)
