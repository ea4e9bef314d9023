"""Running a function on every device's own rows of the batch, without communication."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from mogao_jax.sharding.ambient import BATCH_AXES


def per_shard(
    function: Callable[..., Any],
    num_rows: int,
    *,
    replicated: tuple[int, ...] = (),
    batch_axes: tuple[str, ...] = BATCH_AXES,
) -> Callable[..., Any]:
    """`function`, made to run per device on its rows, where the ambient mesh splits the batch.

    Functions whose loops depend on the data need this: GSPMD would run the loop over all rows
    on all devices. Other mesh axes stay automatic. The gradient of a replicated argument is
    summed over the devices, once, after the function's backward pass.

    Args:
      function: of positional pytrees whose arrays have a leading axis of rows; it must treat
        rows independently. So must its results.
      num_rows: B. Where the devices do not divide it (a single row, while initialising), the
        function runs unsplit.
      replicated: positions of arguments that have no axis of rows (weights).
      batch_axes: mesh axes that rows are split over; those of one device are ignored.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return function
    manual = set(mesh.manual_axes)  # already split by an enclosing shard_map
    axes = tuple(a for a in batch_axes if a not in manual and a in mesh.shape and mesh.shape[a] > 1)
    if not axes or num_rows % math.prod(mesh.shape[a] for a in axes):
        return function

    def split(*arguments):
        specs = tuple(
            PartitionSpec() if i in replicated else PartitionSpec(axes)
            for i in range(len(arguments))
        )
        return jax.shard_map(
            function,
            in_specs=specs,
            out_specs=PartitionSpec(axes),
            axis_names=set(axes),
            check_vma=False,
        )(*arguments)

    return split
