"""The mesh that the current computation runs on, if any (set by `jax.set_mesh`)."""

from __future__ import annotations

import jax

# Rows of a batch are split over these mesh axes.
BATCH_AXES = ("data", "fsdp")


def ambient_mesh() -> jax.sharding.AbstractMesh | None:
    """The mesh in context, or None where there is none or it has no batch axes."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh is None or mesh.empty or not set(BATCH_AXES) <= set(mesh.axis_names):
        return None
    return mesh
