"""What is wrong with a program, and what to do about it."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax

from mogao_jax.config.schema import MogaoConfig
from mogao_jax.sharding import rules
from mogao_jax.tools.plan.collectives import Collective

LARGE = 64 * 2**20  # bytes of an array that should not be whole on every chip
ACTIVATION = 2**20  # smallest activation transfer that is reported, in bytes
MOVING = ("all-reduce", "all-to-all", "all-gather", "reduce-scatter")


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
      encoder_bytes: of the frozen encoders, unsharded.
      held: bytes per chip at the peak.
      memory: bytes of a chip's memory.
      found: collectives of the compiled program; empty where there is none.
      two_axes: of the machine's torus (`Topology.two_axes`).
    """
    shape = dict(mesh.shape)
    return [
        *_about_memory(config, held, memory),
        *_about_collectives(config, shape, rules.unbox(boxed.params), found, two_axes),
        *_about_sharding(config, mesh, boxed, encoder_bytes),
    ]


def _about_memory(config: MogaoConfig, held: float, memory: float) -> Iterator[str]:
    if held > memory:
        figures = f"{held / 2**30:.1f} of {memory / 2**30:.1f} GiB"
        yield f"OUT OF MEMORY: {figures}. {memory_remedy(config)}"
    elif held > 0.92 * memory:
        yield (
            f"memory is nearly full ({held / memory:.0%}): it may be too fragmented for an array. "
            f"{memory_remedy(config)}"
        )


def _about_collectives(
    config: MogaoConfig,
    shape: Mapping[str, int],
    params: Any,
    found: Sequence[Collective],
    two_axes: tuple[int, int] | None,
) -> Iterator[str]:
    wrong = activation_collectives(found, config, shape, params)
    if wrong:
        worst = max(wrong, key=lambda c: c.bytes * c.runs)
        dtype, dims = worst.shapes[0]
        yield (
            f"{len(wrong)} collectives move activations over {'+'.join(worst.axes)}, the largest "
            f"an {worst.kind} of {dtype}{list(dims)}, {worst.runs} times a step ({worst.where}): "
            "the partitioner shards features instead of rows. Constrain the activation there by "
            "its logical axes (sharding/rules.py: constrain), or run it in a shard_map "
            "(sharding/ambient.py: per_shard)."
        )
    share = all_reduced_weights(found)
    one_axis = shape["data"] == 1 and math.prod(shape.values()) == shape["fsdp"]
    if share > 0.5 and one_axis and two_axes:
        yield (
            f"{share:.0%} of the bytes sent are all-reduces of whole arrays over fsdp, which lies "
            "along all axes of the torus: all-gathers and reduce-scatters would send half. Let "
            f"it lie along some of them: config.mesh.data={two_axes[0]}, "
            f"config.mesh.fsdp={two_axes[1]}, config.mesh.param_axes=fsdp,data."
        )


def _about_sharding(
    config: MogaoConfig, mesh: Any, boxed: Any, encoder_bytes: int
) -> Iterator[str]:
    shape, kv = dict(mesh.shape), config.model.num_kv_heads
    if shape["context"] > 1 and "context" not in config.mesh.param_axes:
        yield (
            f"the {shape['context']} chips that share a row each hold the same part of the state, "
            "and sum whole gradients; config.mesh.param_axes=fsdp,context shards it over them."
        )
    for name, size in replicated_arrays(boxed, mesh, config.mesh.param_axes)[:5]:
        yield (
            f"state{name} ({size / 2**20:.0f} MiB) is whole on every chip: no mesh axis divides "
            "it, or its axes have no names in sharding/rules.py."
        )
    is_split = math.prod(shape.values()) > 1 and config.mesh.encoders != "sharded"
    if encoder_bytes >= 2**30 and is_split:
        yield (
            f"the frozen encoders ({encoder_bytes / 2**30:.1f} GiB) are whole on every chip; "
            "config.mesh.encoders='sharded' shards them over fsdp and all-gathers them for use."
        )
    if shape["tensor"] > kv:
        yield (
            f"the tensor axis ({shape['tensor']}) is over the {kv} key/value heads: their "
            f"projections are repeated on every chip. mesh.tensor={kv} would shard them."
        )


def activation_collectives(
    found: Iterable[Collective],
    config: MogaoConfig,
    mesh_shape: Mapping[str, int],
    params: Any,
) -> list[Collective]:
    """Collectives over data or fsdp that move arrays of tokens.

    With fsdp, weights move and tokens stay. An array with an axis of a stream's length that is
    neither a parameter nor a shard of one shows that the partitioner shards features instead of
    rows.

    Args:
      params: the parameters or their shapes, unboxed.
    """
    lengths = _token_lengths(config, mesh_shape)
    leaves = jax.tree.leaves(params)
    whole = {_without_ones(x.shape) for x in leaves}
    whole |= {_without_ones(x.shape[1:]) for x in leaves}  # one layer of those that are stacked
    sizes = itertools.product(*((1, n) for n in mesh_shape.values()))
    shards = set(map(math.prod, sizes))  # how many shards an axis may have

    def is_activation(dtype: str, dims: tuple[int, ...]) -> bool:
        if dtype not in ("bf16", "f32", "f16") or not set(dims) & lengths:
            return False
        mine = _without_ones(dims)
        return len(mine) > 1 and not any(_is_shard(mine, shape, shards) for shape in whole)

    return [
        c
        for c in found
        if c.kind in MOVING
        and c.bytes >= ACTIVATION
        and set(c.axes) <= {"data", "fsdp", "?"}
        and any(is_activation(*shape) for shape in c.shapes)
    ]


def _without_ones(dims: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(n for n in dims if n > 1))


def _is_shard(part: tuple[int, ...], whole: tuple[int, ...], shards: set[int]) -> bool:
    return len(part) == len(whole) and all(
        b % a == 0 and b // a in shards for a, b in zip(part, whole, strict=True)
    )


def _token_lengths(config: MogaoConfig, mesh_shape: Mapping[str, int]) -> set[int]:
    """Lengths of axes of tokens: of a stream or of streams together, of a row, a chip, a batch."""
    p, whole = config.packing, config.train.global_batch_rows
    gen = p.clean_tokens + p.noised_tokens
    streams = {p.und_tokens, p.clean_tokens, p.noised_tokens, gen, p.und_tokens + gen}
    streams |= {n // mesh_shape["context"] for n in streams}
    rows = {1, whole // (mesh_shape["data"] * mesh_shape["fsdp"]), whole}
    return {n * r for n in streams if n >= 128 for r in rows}


def all_reduced_weights(found: Iterable[Collective]) -> float:
    """The share of all bytes sent that all-reduces over fsdp send.

    A TPU's compiler all-gathers over a line or a plane of its torus. Over all of a torus of three
    dimensions it writes each chip's shard into zeros and all-reduces them. Gradients, which should
    be reduce-scattered, it all-reduces whole. Either takes twice the bytes, and one more whole
    copy of the array.
    """
    sums = everything = 0.0
    for c in found:
        everything += c.sent * c.runs
        sums += c.sent * c.runs if c.kind == "all-reduce" and "fsdp" in c.axes else 0.0
    return sums / max(everything, 1.0)


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


def out_of_memory(config: MogaoConfig, error: str) -> str:
    """The flag of a compiler's RESOURCE_EXHAUSTED: its sentence on the memory, and the remedy for
    the memory that it names, a chip's or that of a kernel."""
    lines = [x.strip() for x in error.splitlines() if x.strip()]
    said = next((x for x in lines if "Used" in x or "exceeded" in x.lower()), lines[0])
    space = re.search(r"memory space (\w+)", error)
    space = space or re.search(r"\b(hbm|smem|vmem|scoped)\b", error)
    name = space[1] if space else "hbm"
    remedy = memory_remedy(config) if name == "hbm" else kernel_remedy(name)
    return f"OUT OF MEMORY: {said[:300].rstrip('.')}. {remedy}"


def kernel_remedy(space: str) -> str:
    """What to change where a kernel of attention does not fit the memory of a core.

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
        f"That is a core's own memory, which holds the tiles in use. Try smaller {blocks} (the "
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
