"""Running a function on every device's own part of its arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from mogao_jax.sharding.ambient import unmapped_axes


def per_shard(function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """`function`, made to run per device of the mesh in context (if there are several).

    Functions whose loops depend on the data need this: GSPMD would run the loop over everything
    on all devices. So do kernels, which it cannot split. All axes of the mesh are taken, those
    too that no spec names: a kernel may not be left with an automatic one. The gradient of an
    argument is summed over the axes that its spec does not name, after the function's backward
    pass.

    Args:
      function: it communicates, if at all, by collectives over the named axes.
      in_specs, out_specs: trees of PartitionSpec, as of `jax.shard_map`.
    """
    axes = unmapped_axes()
    if not axes:
        return function
    mesh = jax.sharding.get_abstract_mesh()
    taken = set(mesh.axis_names) - set(mesh.manual_axes)
    # Named as well, so that no gradient is "summed" over an axis of one device.
    lone = tuple(a for a in mesh.axis_names if a in taken and mesh.shape[a] == 1)

    def with_lone_axes(spec: PartitionSpec) -> PartitionSpec:
        if not len(spec):
            return spec
        first, *others = spec
        named = (first,) if isinstance(first, str) else tuple(first or ())
        return PartitionSpec((*named, *lone) or None, *others)

    def is_spec(x: Any) -> bool:
        return isinstance(x, PartitionSpec)

    in_specs, out_specs = jax.tree.map(with_lone_axes, (in_specs, out_specs), is_leaf=is_spec)
    return jax.shard_map(
        function,
        in_specs=in_specs,
        out_specs=out_specs,
        axis_names=taken,
        check_vma=False,
    )
