"""Logical axes to mesh axes: the only table, and what follows from it.

Models name what an axis *is*; this table says which mesh axes shard it. Weights are sharded
twice: along `embed` over "fsdp" (every weight has it, so that everything is spread) and along
their own axis over "tensor". Activations follow the batch over "data" and "fsdp", and the tokens
of a row over "context".

`embed` may be sharded over "data" or "context" as well (config `mesh.param_axes`). Weights are
then all-gathered in two steps, and their gradients reduce-scattered in two. "data" is for a TPU's
torus of three dimensions: along a line or a plane of it, the compiler emits all-gathers and
reduce-scatters; along all of it, it turns both into all-reduces of whole arrays, which send twice
the bytes and hold one more copy of each. "context" is for long rows: the more devices share a
row, the fewer are left for fsdp, and each would hold a larger part of the state.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import logging
import math
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from mogao_jax.sharding.ambient import SPARE_AXES, mesh_axes, unmapped_axes

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
_TABLE: dict[str | None, Any] = {None: None, **dict(RULES)}

# What `embed` of weights is sharded over unless a config says more.
FSDP = ("fsdp",)
_param_axes: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar(
    "mogao_jax_param_axes", default=FSDP
)


@contextlib.contextmanager
def on_mesh(mesh: Mesh, param_axes: tuple[str, ...] = FSDP) -> Iterator[Mesh]:
    """Where models are traced: a mesh, and this table for the names of activations.

    Without the table, linen's constraints on activations do nothing, and the partitioner then
    shards features instead of rows and exchanges whole activations.

    Args:
      param_axes: mesh axes that weights are sharded over, as config `mesh.param_axes` says.
    """
    token = _param_axes.set(param_axes)
    try:
        with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
            yield mesh
    finally:
        _param_axes.reset(token)


# ------------------------------------------------------------------------------------------ specs


def partition_spec(
    names: tuple[str | None, ...], param_axes: tuple[str, ...] = FSDP
) -> PartitionSpec:
    """The mesh axes of an array whose axes have these logical names (None: not sharded).

    A mesh axis shards an array once: where two names ask for the same one, the first gets it.

    Args:
      param_axes: mesh axes that `embed` is sharded over (config `mesh.param_axes`), outermost
        first; weights are all-gathered from the last to the first.

    Raises:
      ValueError: for a name that the table does not have. A misspelt name would otherwise
        silently leave the array whole on every device.
    """
    taken: set[str] = set()
    entries: list[Any] = []
    for name in names:
        if name not in _TABLE:
            known = ", ".join(dict(RULES))
            raise ValueError(f"unknown logical axis {name!r}; the table has {known}")
        wanted = param_axes if name == "embed" else mesh_axes(_TABLE[name])
        free = tuple(a for a in wanted if a not in taken)
        taken.update(free)
        entries.append(free if len(free) > 1 else free[0] if free else None)
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
    for size, entry in zip(shape, partition_spec(names, _param_axes.get()), strict=True):
        kept = tuple(a for a in mesh_axes(entry) if a in free)
        divides = kept and size and size % math.prod(free[a] for a in kept) == 0
        entries.append(kept if divides else None)
    return PartitionSpec(*entries)


def without(spec: PartitionSpec, axes: tuple[str, ...]) -> PartitionSpec:
    """The spec of an array that has been all-gathered over these mesh axes."""
    return PartitionSpec(*(tuple(a for a in mesh_axes(x) if a not in axes) or None for x in spec))


# ------------------------------------------------------------------- what models call while traced


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Tells the partitioner how an activation is sharded, by logical names (no mesh: no effect)."""
    spec = ambient_spec(x.shape, axes)
    return x if spec is None else jax.lax.with_sharding_constraint(x, spec)


def all_gather(x: jax.Array, *axes: str | None, over: tuple[str, ...] | None = None) -> jax.Array:
    """All-gathers a weight or activation over mesh axes; its gradient is reduce-scattered.

    Explicit, because GSPMD may otherwise shard features instead of rows and exchange activations.

    Args:
      axes: logical names of x's axes, as it is stored.
      over: mesh axes, the last one first, each in a step of its own; default: those that weights
        are sharded over.
    """
    stored = ambient_spec(x.shape, axes)
    if stored is None:
        return x
    over = _param_axes.get() if over is None else over
    steps = (without(stored, over[i:]) for i in reversed(range(len(over))))
    return _all_gather((stored, *steps), x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _all_gather(specs: tuple[PartitionSpec, ...], x: jax.Array) -> jax.Array:
    """From the sharding specs[0] to specs[-1], one step at a time; back for the gradient."""
    for spec in specs[1:]:
        x = jax.lax.with_sharding_constraint(x, spec)
    return x


def _all_gather_forward(specs, x):
    return _all_gather(specs, x), None


def _all_gather_backward(specs, residuals, cotangent):
    for spec in reversed(specs[:-1]):
        cotangent = jax.lax.with_sharding_constraint(cotangent, spec)
    return (cotangent,)


_all_gather.defvjp(_all_gather_forward, _all_gather_backward)


# --------------------------------------------------------------------------- shardings of the state


def unbox(tree: Any) -> Any:
    """The arrays (or shapes) of a tree whose parameters are boxed with their logical names.

    linen's own unboxing puts a sharding constraint on each array when there is a mesh. That fails
    on shapes and where an axis does not divide, which `sharding_of` handles.
    """
    return jax.tree.map(
        lambda x: x.unbox(apply_constraint=False) if _is_box(x) else x, tree, is_leaf=_is_box
    )


def _is_box(x: Any) -> bool:
    return isinstance(x, nn.Partitioned)


def sharding_of(
    shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh | AbstractMesh, name: str
) -> NamedSharding:
    """The spec on a mesh; an axis of the array that does not divide stays whole, with a warning.

    Two KV heads on four "tensor" devices, or 259 vocabulary rows on two, are then copied rather
    than refused.
    """
    entries: list[Any] = []
    for size, entry in zip(shape, tuple(spec) + (None,) * (len(shape) - len(spec)), strict=True):
        names = mesh_axes(entry)
        devices = math.prod(mesh.shape[a] for a in names)
        if size % devices:
            logging.getLogger(__name__).warning(
                "%s: an axis of size %d is not divided by mesh axes %s (%d devices); "
                "it is kept whole on each of them.", name, size, names, devices,
            )  # fmt: skip
            entry = None
        entries.append(entry)
    return NamedSharding(mesh, PartitionSpec(*entries))


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
