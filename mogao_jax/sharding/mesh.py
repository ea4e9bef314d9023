"""The device mesh, and the shardings of batches and frozen encoders on it."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mogao_jax.errors import ConfigError, EnvironmentProblem
from mogao_jax.sharding.ambient import BATCH_AXES
from mogao_jax.sharding.rules import MESH_AXES


class MeshSizes(Protocol):
    """Devices per axis; -1, at most once, takes what is left. `config.MeshConfig` is one."""

    @property
    def data(self) -> int: ...
    @property
    def fsdp(self) -> int: ...
    @property
    def tensor(self) -> int: ...
    @property
    def context(self) -> int: ...
    @property
    def num_slices(self) -> int: ...


def split_cpu(num_devices: int) -> None:
    """Makes JAX split a CPU into several devices; call it before anything asks for devices.

    Most of XLA's CPU operations run on one core per device. A number of devices in XLA_FLAGS has
    precedence; other backends are not affected.

    Devices that wait for each other in a collective each hold a thread of XLA's pool, which has
    as many threads as devices or cores. With more devices than cores, no thread may be left for
    the work they wait for, and the program deadlocks now and then. So the pool (PJRT_NPROC, unless
    the user has set it) gets two threads per device.
    """
    flag = re.search(r"xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    if flag is None and num_devices > 1:
        jax.config.update("jax_num_cpu_devices", num_devices)
    count = int(flag.group(1)) if flag else num_devices
    if count > (os.cpu_count() or 1) and not {"NPROC", "PJRT_NPROC"} & os.environ.keys():
        os.environ["PJRT_NPROC"] = str(2 * count)


def make_mesh(config: MeshSizes, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices with the axes data, fsdp, tensor, context (some of size 1).

    The axes are of type Auto: linen's sharding constraints do not work with Explicit ones, the
    default of `jax.make_mesh`.

    With several slices (`config.num_slices`) the data axis spans them, slowest first, and the
    other axes stay inside one: parameters are all-gathered over the fast links of a slice, and
    only gradients are summed over the network between slices.

    Args:
      config: sizes per axis.
      devices: default: all of them, of all processes.
    Raises:
      ConfigError: sizes that are impossible by themselves.
      EnvironmentProblem: sizes that do not fit the number of devices, their slices, or the torus
        in which a slice's TPUs are linked.
    """
    devices = jax.devices() if devices is None else devices
    sizes = axis_sizes(config, len(devices))
    types = (AxisType.Auto,) * len(sizes)
    slices = _slices(devices, config.num_slices)
    inside = (_data_per_slice(sizes[0], len(slices)), *sizes[1:])
    try:
        if len(slices) == 1:
            return jax.make_mesh(sizes, MESH_AXES, axis_types=types, devices=devices)
        arranged = [mesh_utils.create_device_mesh(inside, devices=group) for group in slices]
    except NotImplementedError:  # what JAX raises where an axis would take a part of a torus's
        torus = _torus(slices[0])
        near = nearest_on_torus(inside, torus)
        raise EnvironmentProblem(
            f"the mesh {_named(inside)} does not lie on the {'x'.join(map(str, torus))} torus of "
            "these TPUs: each axis of a mesh takes whole axes of the torus. The nearest that does: "
            f"{_named(near)}" + (" in each slice." if len(slices) > 1 else ".")
        ) from None
    return Mesh(np.concatenate(arranged, axis=0), MESH_AXES, axis_types=types)


def axis_sizes(config: MeshSizes, num_devices: int) -> tuple[int, ...]:
    """Sizes in the order of MESH_AXES, -1 filled in; raises as `make_mesh` does."""
    sizes = _wanted_sizes(config)
    fixed = math.prod(size for size in sizes if size != -1)
    if num_devices % fixed == 0 and (-1 in sizes or fixed == num_devices):
        return tuple(num_devices // fixed if size == -1 else size for size in sizes)
    works = _named(nearest_sizes(sizes, num_devices), "mesh.", " ")
    raise EnvironmentProblem(
        f"the mesh {_named(sizes)} does not fit the {num_devices} devices there are. "
        f"The nearest that does: {works}."
    )


def _wanted_sizes(config: MeshSizes) -> tuple[int, ...]:
    sizes = {axis: getattr(config, axis) for axis in MESH_AXES}
    for axis, size in sizes.items():
        if size != -1 and size < 1:
            raise ConfigError(f"mesh.{axis} is {size}; it must be at least 1, or -1 for the rest.")
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    if len(open_axes) > 1:
        raise ConfigError(
            f"mesh.{' and mesh.'.join(open_axes)} are both -1; only one axis can take the rest."
        )
    return tuple(sizes.values())


def nearest_sizes(sizes: tuple[int, ...], num_devices: int) -> tuple[int, ...]:
    """The sizes nearest to those wanted whose product is `num_devices`; -1 may be anything."""
    free = sizes.index(-1) if -1 in sizes else 0
    divisors = [d for d in range(1, num_devices + 1) if num_devices % d == 0]
    choices = []
    for others in itertools.product(divisors, repeat=len(sizes) - 1):
        rest, remainder = divmod(num_devices, math.prod(others))
        if not remainder:
            choices.append((*others[:free], rest, *others[free:]))
    return _nearest(sizes, sorted(choices, reverse=True))


def nearest_on_torus(sizes: tuple[int, ...], torus: Sequence[int]) -> tuple[int, ...]:
    """The sizes nearest to those wanted that are each a product of whole axes of the torus.

    Args:
      torus: lengths of the torus's axes; each is given to one axis of the mesh.
    """
    choices = []
    for owners in itertools.product(range(len(sizes)), repeat=len(torus)):
        choice = [1] * len(sizes)
        for length, owner in zip(torus, owners, strict=True):
            choice[owner] *= length
        choices.append(tuple(choice))
    return _nearest(sizes, sorted(choices))


def _nearest(sizes: tuple[int, ...], choices: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The choice nearest to the sizes by ratios, the first of equally near ones."""

    def distance(choice: tuple[int, ...]) -> float:
        pairs = zip(choice, sizes, strict=True)
        return sum(abs(math.log(c / s)) for c, s in pairs if s != -1)

    return min(choices, key=distance)


def _torus(devices: Sequence[jax.Device]) -> tuple[int, ...]:
    """TPUs along each axis of a slice, axes of one left out."""
    places = [(*d.coords, getattr(d, "core_on_chip", 0)) for d in devices]
    return tuple(n for n in (len(set(axis)) for axis in zip(*places, strict=True)) if n > 1)


def _named(sizes: Sequence[int], prefix: str = "", separator: str = " x ") -> str:
    return separator.join(f"{prefix}{a}={n}" for a, n in zip(MESH_AXES, sizes, strict=True))


def _slices(devices: Sequence[jax.Device], num_slices: int) -> list[list[jax.Device]]:
    """The devices of each slice.

    TPUs know their slice. Other devices are cut in order: by process on GPUs, which are numbered
    by process, and in any order on a CPU split into several devices.
    """
    by_slice: dict[int, list[jax.Device]] = {}
    for device in devices:
        by_slice.setdefault(getattr(device, "slice_index", None) or 0, []).append(device)
    if len(by_slice) == num_slices:
        return [by_slice[i] for i in sorted(by_slice)]
    if len(by_slice) > 1:
        raise EnvironmentProblem(
            f"mesh.num_slices is {num_slices}, but the devices lie in {len(by_slice)} slices; "
            f"set mesh.num_slices={len(by_slice)}."
        )
    if len(devices) % num_slices:
        works = [n for n in range(1, len(devices) + 1) if len(devices) % n == 0]
        near = min(works, key=lambda n: abs(n - num_slices))
        raise EnvironmentProblem(
            f"mesh.num_slices is {num_slices}, which does not divide the {len(devices)} devices "
            f"there are; {near} does."
        )
    each = len(devices) // num_slices
    return [list(devices[i * each : (i + 1) * each]) for i in range(num_slices)]


def _data_per_slice(data: int, num_slices: int) -> int:
    if data % num_slices:
        raise ConfigError(
            f"mesh.data is {data}, but {num_slices} slices are joined along it: make it a multiple "
            f"of {num_slices} (mesh.data={num_slices} replicates parameters once per slice; with "
            "mesh.data=-1 it takes what the other axes leave)."
        )
    return data // num_slices


def check_rows(mesh: Mesh, num_rows: int, field: str = "train.global_batch_rows") -> None:
    """Raises ConfigError unless the rows of a batch divide evenly over the mesh."""
    devices = _row_groups(mesh)
    if num_rows % devices:
        below, above = num_rows // devices * devices, (num_rows // devices + 1) * devices
        choices = f"{below} or {above}" if below else f"{above}"
        raise ConfigError(
            f"{field} is {num_rows}, but the mesh shards rows over data x fsdp = {devices} "
            f"devices; use a multiple of {devices}, such as {choices}."
        )


def _row_groups(mesh: Mesh) -> int:
    """Groups of devices that hold rows of their own."""
    return math.prod(mesh.shape[a] for a in BATCH_AXES)


class RowReader(NamedTuple):
    """A process's place among those that read rows of a batch."""

    reader: int
    num_readers: int


def row_reader(mesh: Mesh, process: int | None = None) -> RowReader:
    """Which of the readers of rows a process is.

    Processes whose devices hold the same rows are one reader: with tensor or context axes that
    span hosts, each of these hosts must be given the very same rows.

    Args:
      process: default: this one.
    Raises:
      EnvironmentProblem: processes share some of their rows but not all.
    """
    process = jax.process_index() if process is None else process
    groups = _row_groups(mesh)
    held: dict[int, set[int]] = {}
    for rows, devices in enumerate(mesh.devices.reshape(groups, -1)):
        for device in devices:
            held.setdefault(device.process_index, set()).add(rows)
    readers = sorted({tuple(sorted(rows)) for rows in held.values()})
    if sum(map(len, readers)) != groups or len({len(rows) for rows in readers}) != 1:
        raise EnvironmentProblem(
            f"on the mesh {dict(mesh.shape)}, processes hold some of their rows in common and some "
            "apart. Make mesh.tensor x mesh.context a divisor or a multiple of the devices of "
            "one process."
        )
    return RowReader(readers.index(tuple(sorted(held[process]))), len(readers))


def batch_sharding(mesh: Mesh, batch_axis: int = 0) -> NamedSharding:
    """Rows over data and fsdp; `batch_axis` is 1 where an axis of micro-steps comes first."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * batch_axis, BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def encoder_shardings(mesh: Mesh, encoders: Any, how: str) -> Any:
    """Shardings of frozen parameters: replicated, or sharded over "fsdp" and gathered for use.

    Args:
      encoders: a tree of arrays or ShapeDtypeStructs.
      how: "replicated" or "sharded" (config `mesh.encoders`), along the longest axis that the
        devices divide; an array without such an axis is replicated.
    Returns:
      The tree with NamedShardings as leaves.
    """
    devices = mesh.shape["fsdp"]

    def one(x):
        axes = [i for i, size in enumerate(x.shape) if size % devices == 0 and size]
        if how == "replicated" or devices == 1 or not axes:
            return replicated(mesh)
        longest = max(axes, key=lambda i: x.shape[i])
        return NamedSharding(mesh, PartitionSpec(*(None,) * longest, "fsdp"))

    return jax.tree.map(one, encoders)


def global_batch(mesh: Mesh, host_batch: Any, batch_axis: int = 0) -> Any:
    """Global arrays from each process's own rows.

    Args:
      host_batch: a tree of numpy arrays, this reader's rows (`row_reader`); the global batch is
        all readers' rows in order.
      batch_axis: which axis counts the rows.
    Returns:
      The same tree of jax arrays, sharded by `batch_sharding`.
    """
    sharding = batch_sharding(mesh, batch_axis)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), host_batch
    )
