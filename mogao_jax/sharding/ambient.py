"""The mesh that the current computation is traced on, if any (set by `jax.set_mesh`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

# Mesh axes that the rows of a batch are sharded over, and the one for the tokens of a row.
BATCH_AXES = ("data", "fsdp")
LENGTH_AXES = ("context",)
# Work that has neither heads nor features of its own to shard (encoders' images and patches, the
# language head's tokens) is sharded over both axes that are not for rows.
SPARE_AXES = ("context", "tensor")


def ambient_mesh() -> jax.sharding.AbstractMesh | None:
    """The mesh in context, or None where there is none or it has no batch axes."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh is None or mesh.empty or not set(BATCH_AXES) <= set(mesh.axis_names):
        return None
    return mesh


def unmapped_axes() -> dict[str, int]:
    """{axis: devices} of the mesh in context: axes of several devices, in no shard_map here."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh is None or mesh.empty:
        return {}
    taken = set(mesh.manual_axes)
    return {a: n for a, n in mesh.shape.items() if n > 1 and a not in taken}


def sharded_axes(axes: tuple[str, ...], size: int) -> tuple[str, ...]:
    """Those of `axes` that an array's axis of `size` elements is sharded over here.

    All that hold several devices; none at all where they do not divide the size.
    """
    free = unmapped_axes()
    wanted = tuple(a for a in axes if a in free)
    return () if size % math.prod(free[a] for a in wanted) else wanted


def axis_size(axes: tuple[str, ...]) -> int:
    """Number of devices along these axes of the mesh in context."""
    free = unmapped_axes()
    return math.prod(free.get(a, 1) for a in axes)


def mesh_axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes in one entry of a PartitionSpec."""
    return (entry,) if isinstance(entry, str) else tuple(entry or ())


def per_shard(function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """`function`, made to run per device of the mesh in context (if there are several).

    Functions whose loops depend on the data need this: GSPMD would run the loop over everything
    on all devices. So do kernels, which it cannot split. All axes of the mesh are mapped, also
    those that no spec names: a kernel may not be left with an automatic one. The gradient of an
    argument is summed over the axes that its spec does not name, after the function's backward
    pass.

    Args:
      function: it communicates, if at all, by collectives over the named axes.
      in_specs, out_specs: trees of PartitionSpec, as of `jax.shard_map`.
    """
    if not unmapped_axes():
        return function
    mesh = jax.sharding.get_abstract_mesh()
    taken = set(mesh.axis_names) - set(mesh.manual_axes)
    # Named as well, so that no gradient is "summed" over an axis of one device.
    lone = tuple(a for a in mesh.axis_names if a in taken and mesh.shape[a] == 1)

    def with_lone_axes(spec: PartitionSpec) -> PartitionSpec:
        if not len(spec):
            return spec
        first, *others = spec
        return PartitionSpec((*mesh_axes(first), *lone) or None, *others)

    in_specs, out_specs = jax.tree.map(
        with_lone_axes, (in_specs, out_specs), is_leaf=lambda x: isinstance(x, PartitionSpec)
    )
    return jax.shard_map(
        function, in_specs=in_specs, out_specs=out_specs, axis_names=taken, check_vma=False
    )
