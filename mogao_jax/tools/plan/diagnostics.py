"""What is wrong with a program, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

from mogao_jax.config.schema import MogaoConfig
from mogao_jax.sharding import rules
from mogao_jax.tools.plan.collectives import Collective

LARGE = 64 * 2**20  # bytes of an array that should not be whole on every chip
ACTIVATION = 2**20  # bytes of an activation worth a word
MOVING = ("all-reduce", "all-to-all", "all-gather", "reduce-scatter")


def activation_collectives(
    found: Iterable[Collective],
    config: MogaoConfig,
    mesh_shape: Mapping[str, int],
    params: Any,
) -> list[Collective]:
    """Collectives over data or fsdp that move arrays of tokens.

    With fsdp, weights move and tokens stay: an array with an axis of a stream's length that is
    no parameter (or a part of one) says that the partitioner cut features instead of rows.

    Args:
      params: the parameters or their shapes, unboxed.
    """
    p = config.packing
    rows = config.train.global_batch_rows // (mesh_shape["data"] * mesh_shape["fsdp"])
    whole = config.train.global_batch_rows
    gen = p.clean_tokens + p.noised_tokens
    streams = {p.und_tokens, p.clean_tokens, p.noised_tokens, gen, p.und_tokens + gen}
    streams |= {n // mesh_shape["context"] for n in streams}
    lengths = {n * r for n in streams if n >= 128 for r in {1, rows, whole}}
    shapes = {tuple(sorted(n for n in x.shape if n > 1)) for x in jax.tree.leaves(params)}
    shapes |= {
        tuple(sorted(n for n in x.shape[1:] if n > 1)) for x in jax.tree.leaves(params) if x.ndim
    }
    cuts = {math.prod(c) for c in _products(list(mesh_shape.values()))}

    def is_weight(dims: tuple[int, ...]) -> bool:
        mine = sorted(n for n in dims if n > 1)
        return any(
            len(s) == len(mine)
            and all(b % a == 0 and b // a in cuts for a, b in zip(mine, s, strict=True))
            for s in shapes
        )

    def is_activation(c: Collective) -> bool:
        return any(
            dtype in ("bf16", "f32", "f16")
            and len([n for n in dims if n > 1]) > 1
            and set(dims) & lengths
            and not is_weight(dims)
            for dtype, dims in c.shapes
        )

    return [
        c
        for c in found
        if c.kind in MOVING
        and c.bytes >= ACTIVATION
        and set(c.axes) <= {"data", "fsdp", "?"}
        and is_activation(c)
    ]


def all_reduced_weights(found: Iterable[Collective]) -> float:
    """The share of all bytes sent that sums of whole weights over fsdp send.

    A TPU's compiler gathers over a line or a plane of its torus; over all of a torus of three
    dimensions it fills each chip's part into zeros and sums. Gradients, which should be summed and
    scattered, it sums whole. Either takes twice the bytes, and a whole copy more of the array.
    """
    sums = everything = 0.0
    for c in found:
        everything += c.sent * c.turns
        sums += c.sent * c.turns if c.kind == "all-reduce" and "fsdp" in c.axes else 0.0
    return sums / max(everything, 1.0)


def _products(sizes: list[int]) -> list[list[int]]:
    if not sizes:
        return [[]]
    rest = _products(sizes[1:])
    return rest + [[sizes[0], *r] for r in rest]


def replicated_arrays(
    boxed: Any, mesh: Any, param_axes: tuple[str, ...] = rules.FSDP
) -> list[tuple[str, int]]:
    """(name, bytes) of the state's arrays of LARGE size that every chip holds whole."""
    if math.prod(mesh.shape.values()) == 1:
        return []
    shardings = rules.tree_shardings(boxed, mesh, param_axes)
    found = []
    leaves = jax.tree_util.tree_leaves_with_path(rules.unbox(boxed))
    for (path, x), sharding in zip(leaves, jax.tree.leaves(shardings), strict=True):
        size = math.prod(x.shape) * x.dtype.itemsize
        if size >= LARGE and sharding.is_fully_replicated:
            found.append((jax.tree_util.keystr(path), size))
    return found


def flags(
    config: MogaoConfig,
    mesh: Any,
    boxed: Any,
    encoder_bytes: int,
    held: float,
    memory: float,
    found: Sequence[Collective],
    two_axes: tuple[int, int] | None = None,
) -> list[str]:
    """Sentences: what was found, and the remedy.

    Args:
      mesh: abstract or real.
      boxed: the state's shapes with their names.
      encoder_bytes: of the frozen encoders, uncut.
      held: bytes per chip at the peak.
      memory: bytes per chip that there are.
      found: collectives of the compiled program; empty where there is none.
      two_axes: of the machine's torus (`Topology.two_axes`).
    """
    said = []
    shape = dict(mesh.shape)
    if held > memory:
        figures = f"{held / 2**30:.1f} of {memory / 2**30:.1f} GiB"
        said.append(f"OUT OF MEMORY: {figures}. {memory_remedy(config)}")
    elif held > 0.92 * memory:
        said.append(
            f"memory is nearly full ({held / memory:.0%}): fragments of it may be too small for "
            f"an array. {memory_remedy(config)}"
        )
    params = rules.unbox(boxed.params)
    wrong = activation_collectives(found, config, shape, params)
    if wrong:
        worst = max(wrong, key=lambda c: c.bytes * c.turns)
        dtype, dims = worst.shapes[0]
        said.append(
            f"{len(wrong)} collectives move activations over {'+'.join(worst.axes)}, the largest "
            f"an {worst.kind} of {dtype}{list(dims)}, {worst.turns} times a step ({worst.where}): "
            "the partitioner sharded features instead of rows. Constrain the activation there by "
            "its logical axes (sharding/rules.py: constrain), or run it in a shard_map "
            "(sharding/ambient.py: per_shard)."
        )
    share = all_reduced_weights(found)
    one_axis = shape["data"] == 1 and math.prod(shape.values()) == shape["fsdp"]
    if share > 0.5 and one_axis and two_axes:
        said.append(
            f"{share:.0%} of the bytes sent are sums of whole arrays over fsdp, which lies along "
            "all axes of the torus: gathering, and summing with scattering, would send half. Let "
            f"it lie along some of them: config.mesh.data={two_axes[0]}, "
            f"config.mesh.fsdp={two_axes[1]}, config.mesh.param_axes=fsdp,data."
        )
    if shape["context"] > 1 and config.mesh.param_axes != ("fsdp", "context"):
        said.append(
            f"the {shape['context']} chips that share a row each hold the same part of the state, "
            "and sum whole gradients; config.mesh.param_axes=fsdp,context cuts it over them."
        )
    for name, size in replicated_arrays(boxed, mesh, config.mesh.param_axes)[:5]:
        said.append(
            f"state{name} ({size / 2**20:.0f} MiB) is whole on every chip: no mesh axis divides "
            "it, or its axes have no names in sharding/rules.py."
        )
    chips = math.prod(shape.values())
    sharded = config.mesh.encoders == "sharded"
    if encoder_bytes >= 2**30 and chips > 1 and not sharded:
        said.append(
            f"the frozen encoders ({encoder_bytes / 2**30:.1f} GiB) are whole on every chip; "
            "config.mesh.encoders='sharded' cuts them over fsdp and gathers them for use."
        )
    kv = config.model.num_kv_heads
    if shape["tensor"] > kv:
        said.append(
            f"the tensor axis ({shape['tensor']}) is over the {kv} key/value heads: their "
            f"projections are repeated on every chip. mesh.tensor={kv} would cut them."
        )
    return said


def kernel_remedy(space: str) -> str:
    """What to change where a kernel of attention does not fit a core's own memory.

    Args:
      space: "smem", which holds the table of a row's tiles, or the name of what holds the tiles.
    """
    blocks = "config.model.attention.block_q and block_kv"
    if space == "smem":
        return (
            "That is a core's memory for scalars, which holds a table of a row's tiles. Try a "
            f"larger config.mesh.context (a shorter part of a row on each chip); larger {blocks}, "
            "for fewer tiles; or shorter rows (config.packing)."
        )
    return (
        f"That is a core's own memory, which holds tiles at work. Try smaller {blocks} (the "
        "report and `mogao train` say what they are where the config leaves them open)."
    )


def memory_remedy(config: MogaoConfig) -> str:
    """What to change, nearest first, for less memory per chip."""
    ways = []
    if config.model.remat != "full":
        ways.append("config.model.remat='full'")
    ways.append(
        "fewer rows per chip (config.train.global_batch_rows, with more "
        "config.train.grad_accum_steps)"
    )
    ways.append("shorter rows (config.packing), or config.mesh.context > 1")
    ways.append("more chips along config.mesh.fsdp")
    if config.optimizer.moments_dtype == "float32":
        ways.append("config.optimizer.moments_dtype='bfloat16'")
    if config.optimizer.ema_decay:
        ways.append("config.optimizer.ema_decay=0")
    return "Try " + "; ".join(ways) + "."
