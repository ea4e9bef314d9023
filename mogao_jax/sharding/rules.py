"""Logical axes to mesh axes: the only table, and what follows from it.

Models name what an axis *is*; this table says where it lives. Weights are cut twice: along
`embed` over "fsdp" (every weight has it, so that everything is spread) and along their own axis
over "tensor". Activations follow the batch over "data" and "fsdp", and the tokens of a row over
"context".

`embed` may be cut over "data" or "context" as well (config `mesh.param_axes`). Weights are
then gathered in two steps, and their gradients summed in two. With data that is for a TPU's torus
of three dimensions: over a line or a plane of it, its compiler gathers, and sums and scatters; over
all of it, it turns both into sums of whole arrays, which is twice the bytes and a whole copy more
of each. With context it is for long rows: the more devices share a row, the fewer are left for
fsdp, and without it each would hold a larger part of the state.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import math
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from mogao_jax.sharding.ambient import SPARE_AXES, unmapped_axes

MESH_AXES = ("data", "fsdp", "tensor", "context")

RULES: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
    # activations
    ("act_batch", ("data", "fsdp")),
    ("act_len", "context"),
    ("act_patches", SPARE_AXES),  # of the frozen ViT
    ("act_embed", None),
    ("act_heads", "tensor"),
    ("act_kv_heads", "tensor"),
    ("act_mlp", "tensor"),
    ("act_vocab", "tensor"),
    # weights
    ("embed", "fsdp"),
    ("mlp", "tensor"),
    ("q_heads", "tensor"),
    ("kv_heads", "tensor"),
    ("vocab", "tensor"),
    ("head_dim", None),
    ("layers", None),
)

_TABLE = dict(RULES)

# What `embed` of weights is sharded over unless a config says more.
FSDP = ("fsdp",)
_param_axes: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar(
    "mogao_jax_param_axes", default=FSDP
)


def ambient_param_axes() -> tuple[str, ...]:
    """The mesh axes that weights are sharded over in the computation being traced (`on_mesh`)."""
    return _param_axes.get()


def partition_spec(
    names: tuple[str | None, ...], param_axes: tuple[str, ...] = FSDP
) -> PartitionSpec:
    """The mesh axes of an array whose axes have these logical names (None: not cut).

    A mesh axis cuts an array once: where two names ask for the same one, the first gets it.

    Args:
      param_axes: mesh axes that `embed` is sharded over (config `mesh.param_axes`), outermost
        first; weights are all-gathered from the last to the first.

    Raises:
      ValueError: for a name that the table does not have (a misspelt name would otherwise leave
        the array whole on every device without a word).
    """
    taken: set[str] = set()
    entries: list[Any] = []
    for name in names:
        if name is not None and name not in _TABLE:
            raise ValueError(f"unknown logical axis {name!r}; the table has {', '.join(_TABLE)}")
        axes = None if name is None else param_axes if name == "embed" else _TABLE[name]
        wanted = (axes,) if isinstance(axes, str) else axes or ()
        free = tuple(a for a in wanted if a not in taken)
        taken.update(free)
        entries.append(None if not free else free[0] if len(free) == 1 else free)
    return PartitionSpec(*entries)


def ambient_spec(shape: tuple[int, ...], names: tuple[str | None, ...]) -> PartitionSpec | None:
    """As `partition_spec`, on the mesh in context; None where that is a single device.

    Mesh axes of one device and axes that an enclosing shard_map has taken are left out; an axis
    of the array that does not divide stays whole.
    """
    free = unmapped_axes()
    if not free:
        return None
    entries: list[Any] = []
    for size, axes in zip(shape, partition_spec(names, _param_axes.get()), strict=True):
        wanted = (axes,) if isinstance(axes, str) else axes or ()
        kept = tuple(a for a in wanted if a in free)
        divides = kept and size and size % math.prod(free[a] for a in kept) == 0
        entries.append(kept if divides else None)
    return PartitionSpec(*entries)


def without(spec: PartitionSpec, axes: tuple[str, ...]) -> PartitionSpec:
    """The spec of an array that has been gathered over these mesh axes."""
    entries: list[Any] = []
    for cut in spec:
        names = (cut,) if isinstance(cut, str) else cut or ()
        entries.append(tuple(a for a in names if a not in axes) or None)
    return PartitionSpec(*entries)


def sharding_of(
    shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh | AbstractMesh, name: str
) -> NamedSharding:
    """The spec on a mesh; an axis of the array that does not divide stays whole, with a warning.

    Two KV heads on four "tensor" devices, or 259 vocabulary rows on two, are then copied rather
    than refused.
    """
    entries: list[Any] = []
    for size, axes in zip(shape, tuple(spec) + (None,) * (len(shape) - len(spec)), strict=True):
        names = (axes,) if isinstance(axes, str) else axes or ()
        devices = math.prod(mesh.shape[a] for a in names)
        if size % devices:
            logging.getLogger(__name__).warning(
                "%s: an axis of size %d is not divided by mesh axes %s (%d devices); "
                "it is kept whole on each of them.", name, size, names, devices,
            )  # fmt: skip
            axes = None
        entries.append(axes)
    return NamedSharding(mesh, PartitionSpec(*entries))


@contextlib.contextmanager
def on_mesh(mesh: Mesh, param_axes: tuple[str, ...] = FSDP) -> Iterator[Mesh]:
    """Where models are traced: a mesh, and this table for the names of activations.

    Without the table, linen's constraints on activations do nothing, and the partitioner then
    cuts features instead of rows and exchanges whole activations.

    Args:
      param_axes: mesh axes that weights are sharded over, as config `mesh.param_axes` says.
    """
    token = _param_axes.set(param_axes)
    try:
        with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
            yield mesh
    finally:
        _param_axes.reset(token)


def unbox(tree: Any) -> Any:
    """The arrays (or shapes) of a tree whose parameters are boxed with their logical names.

    Without the constraint that linen's own unboxing puts on each array when there is a mesh: it
    takes no shapes, and where an axis does not divide, `sharding_of` knows what to do.
    """
    return jax.tree.map(
        lambda x: x.unbox(apply_constraint=False) if _is_box(x) else x, tree, is_leaf=_is_box
    )


def _is_box(x: Any) -> bool:
    return isinstance(x, nn.Partitioned)


def tree_shardings(
    abstract: Any, mesh: Mesh | AbstractMesh, param_axes: tuple[str, ...] = FSDP
) -> Any:
    """A sharding for every array of a tree.

    Args:
      abstract: arrays or ShapeDtypeStructs, some in linen's boxes that carry logical names
        (`nn.with_logical_partitioning`); what carries no names is copied to every device.
      mesh: with the axes of MESH_AXES.
      param_axes: mesh axes that weights are sharded over, as config `mesh.param_axes` says.
    Returns:
      The *unboxed* tree with NamedShardings as leaves.
    """

    def one(path, leaf):
        where = jax.tree_util.keystr(path)
        if not _is_box(leaf):
            return NamedSharding(mesh, PartitionSpec())
        if not hasattr(leaf.value, "shape"):  # left out by an optimizer that takes some parameters
            return leaf.value
        if len(leaf.names) != len(leaf.value.shape):
            raise ValueError(f"{where}: names {leaf.names} for shape {leaf.value.shape}")
        spec = partition_spec(leaf.names, param_axes)
        return sharding_of(leaf.value.shape, spec, mesh, where)

    return jax.tree_util.tree_map_with_path(one, abstract, is_leaf=_is_box)
