"""The mesh that the current computation runs on, if any (set by `jax.set_mesh`)."""

from __future__ import annotations

import math

import jax

# Rows of a batch are split over these mesh axes, and the tokens of a row over this one.
BATCH_AXES = ("data", "fsdp")
LENGTH_AXES = ("context",)
# What knows neither heads nor features of its own (encoders' images and patches, the language
# head's tokens) is split over both axes that are not rows.
SPARE_AXES = ("context", "tensor")


def ambient_mesh() -> jax.sharding.AbstractMesh | None:
    """The mesh in context, or None where there is none or it has no batch axes."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh is None or mesh.empty or not set(BATCH_AXES) <= set(mesh.axis_names):
        return None
    return mesh


def unmapped_axes() -> dict[str, int]:
    """Axes of the mesh in context that hold several devices and that no enclosing shard_map has
    taken: {axis: devices}."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh is None or mesh.empty:
        return {}
    taken = set(mesh.manual_axes)
    return {a: n for a, n in mesh.shape.items() if n > 1 and a not in taken}


def sharded_axes(axes: tuple[str, ...], size: int) -> tuple[str, ...]:
    """Those of `axes` that an array's axis of `size` elements is split over here.

    All that hold several devices; none at all where they do not divide the size.
    """
    free = unmapped_axes()
    wanted = tuple(a for a in axes if a in free)
    return () if size % math.prod(free[a] for a in wanted) else wanted


def ways(axes: tuple[str, ...]) -> int:
    """Number of devices along these axes of the mesh in context."""
    free = unmapped_axes()
    return math.prod(free.get(a, 1) for a in axes)
