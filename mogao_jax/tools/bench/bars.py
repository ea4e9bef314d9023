"""The bars of the training step that a compiler can check without an accelerator.

Each function measures one of them and yields rows (what, figure, bar). `docs/performance.md`
keeps what they printed, with date and machine.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mogao_jax.config.schema import MogaoConfig
from mogao_jax.errors import ConfigError
from mogao_jax.models.modules import make_model, param_shapes
from mogao_jax.models.mogao import example_inputs
from mogao_jax.ops.attention.pallas_tpu import attend_blocks, pallas_attention
from mogao_jax.ops.attention.parts import Parts, blocked, static_of
from mogao_jax.ops.attention.tiles import tile_statistics
from mogao_jax.sequence.masking import TokenMeta
from mogao_jax.tools import flops
from mogao_jax.tools.plan import topology as topologies
from mogao_jax.tools.plan.mixture import packed_rows
from mogao_jax.tools.plan.plan import Plan, make_plan

Say = Callable[[str], None]
MIB, GIB = 2.0**20, 2.0**30

# Tokens per row -> its und, clean and noised tokens, images, ViT patches. Stage 3's mixture at 512
# pixels fills them (`mogao plan` prints how well).
BUDGETS = {8192: (1920, 2048, 4224, 4, 5184), 16384: (3840, 4096, 8448, 8, 10368)}
# Chips' peaks in GiB that the step should stay under at 8k tokens per chip.
PEAKS = {"v5p:4x4x4": 12.0, "v6e:8x8": 11.0, "v5e:16x16": 9.0}
LENGTHS = (4096, 8192, 16384, 32768, 65536)  # tokens per row that the kernel is compiled for
KERNEL_CHIPS = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2")
LONG_ROW = 262144
LONG_MESHES = ((16, 4), (4, 16), (1, 64))  # fsdp, context axes


class Row(NamedTuple):
    """One line: a figure beside its bar; `is_met` is None where there is no bar."""

    what: str
    figure: str
    bar: str
    is_met: bool | None


def with_rows(config: MogaoConfig, tokens: int) -> MogaoConfig:
    """The config with rows of 8,192 tokens, or a multiple of it."""
    base = max(n for n in BUDGETS if n <= tokens)
    fields = "und_tokens", "clean_tokens", "noised_tokens", "images", "vit_patches"
    scaled = (n * tokens // base for n in BUDGETS[base])
    budgets: dict[str, Any] = dict(zip(fields, scaled, strict=True))
    packing = dataclasses.replace(config.packing, **budgets)
    return dataclasses.replace(config, packing=packing)


def on_mesh(config: MogaoConfig, *, remat: Any = None, **axes: Any) -> MogaoConfig:
    """The config on a mesh (MeshConfig's fields), one row per data x fsdp, one micro-step."""
    fresh = dataclasses.replace(config.mesh, data=1, fsdp=1, tensor=1, context=1, num_slices=1)
    mesh = dataclasses.replace(fresh, **axes)
    train = dataclasses.replace(
        config.train, global_batch_rows=mesh.data * mesh.fsdp, grad_accum_steps=1
    )
    config = dataclasses.replace(config, mesh=mesh, train=train)
    return config if remat is None else _with_model(config, remat=remat)


def on_torus(config: MogaoConfig, topology: topologies.Topology, remat: str) -> MogaoConfig:
    """The config on all chips of a slice, weights sharded over all of them."""
    data, fsdp = topology.two_axes or (1, topology.num_chips)
    return on_mesh(config, remat=remat, data=data, fsdp=fsdp, param_axes=("fsdp", "data"))


# ------------------------------------------------------------------------------------ the bars


def layers(config: MogaoConfig, say: Say) -> Iterator[Row]:
    """FLOPs of a compiled layer, attention apart, over what its tokens need.

    Two programs of one and of two layers, forward and backward; their difference is a layer.
    XLA counts no FLOPs for the kernel of attention, which is a custom call.
    """
    config = with_rows(config, 8192)
    device = topologies.devices(topologies.parse("v5p:2x2x1"))[0]
    counted = []
    for num_layers in (1, 2):
        say(f"compiling {num_layers} layer(s)")
        counted.append(_model_program(config, num_layers, device).cost_analysis()["flops"])
    p = config.packing
    work = flops.TokenCounts(
        und=p.und_tokens, clean=p.clean_tokens, noised=p.noised_tokens, trained_text=0,
        vit_tokens=0, images=1 + p.images, pairs=0, pairs_executed=0, fill_und=1, fill_gen=1,
    )  # fmt: skip
    one, two = (flops.model_flops(_with_model(config, num_layers=n), 1, work) for n in (1, 2))
    layer = sum(two[part] - one[part] for part in two if part != "attention")
    ratio = (counted[1] - counted[0]) / layer
    tokens = p.und_tokens + p.clean_tokens + p.noised_tokens
    what = f"layer FLOPs, compiled over ideal ({tokens} tokens, v5p)"
    yield Row(what, f"{ratio:.4f}", "<= 1.01", ratio <= 1.01)


def _with_model(config: MogaoConfig, **fields: Any) -> MogaoConfig:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **fields))


def _model_program(config: MogaoConfig, num_layers: int, device: Any) -> Any:
    """The compiled gradient of some layers, unrolled, nothing recomputed, on one device."""
    p = config.packing
    config = _with_model(
        config, num_layers=num_layers, scan_layers=False, remat="none", vocab_size=256
    )
    module = make_model(config, 256, "tpu")
    inputs = jax.eval_shape(
        lambda: example_inputs(module, (1, p.und_tokens, p.clean_tokens, p.noised_tokens, p.images))
    )

    def loss(params: Any, inputs: Any) -> jax.Array:
        out = module.apply({"params": params}, inputs)
        return jnp.sum(out.und_hidden.astype(jnp.float32)) + jnp.sum(out.velocity)

    sharding = jax.sharding.SingleDeviceSharding(device)
    program = jax.jit(jax.value_and_grad(loss), in_shardings=sharding)
    return program.lower(param_shapes(config, module), inputs).compile()


def tiles(config: MogaoConfig, say: Say) -> Iterator[Row]:
    """Pairs that attention's tiles compute over pairs that attend, on packed rows."""
    for tokens, bar in ((8192, 1.55), (16384, 1.4)):
        say(f"packing rows of {tokens} tokens")
        rows = packed_rows(with_rows(config, tokens), 4)
        meta = Parts(*(p.meta for p in (rows.batch.und, rows.batch.clean, rows.batch.noised)))
        for q, kv in ((256, 256), (128, 256), (128, 128)):
            found = tile_statistics(meta, meta, block_q=q, block_kv=kv)
            what = f"pairs executed over needed, rows of {tokens}, blocks {q} x {kv}"
            is_default = (q, kv) == (256, 256)
            met = found.overhead <= bar if is_default else None
            yield Row(what, f"{found.overhead:.3f}", f"<= {bar}" if is_default else "", met)


def kernel(config: MogaoConfig, say: Say) -> Iterator[Row]:
    """Whether Mosaic takes the kernel, forward and backward, and its temporaries.

    At 16k also the kernel alone, on arrays in the layout that it reads. The difference is spent on
    joining the three parts into blocks and on splitting the outputs.
    """
    for chip, length in itertools.product(KERNEL_CHIPS, LENGTHS):
        say(f"compiling the kernel for {chip}, {length} tokens")
        yield _kernel_row(config.model, length, chip, alone=False)
        if length == 16384:
            yield _kernel_row(config.model, length, chip, alone=True)


def _kernel_row(model: Any, length: int, chip: str, *, alone: bool) -> Row:
    device = topologies.devices(topologies.parse(chip))[0]
    kind, at_bar = "alone" if alone else "with its layout", length == 16384
    what = f"kernel {kind} on {chip.split(':')[0]}, {length} tokens, forward / backward"
    bar = "<= 130 MiB" if at_bar else "accepted"
    try:
        sizes = [
            _kernel_program(model, length, device, gradient, alone).memory_analysis()
            for gradient in (False, True)
        ]
    except Exception as e:  # noqa: BLE001  (whatever the compiler raises)
        return Row(what, f"refused: {str(e).strip().splitlines()[0][:80]}", bar, False)
    forward, backward = (size.temp_size_in_bytes / MIB for size in sizes)
    is_met = not at_bar or max(forward, backward) <= 130
    return Row(what, f"accepted, {forward:.0f} / {backward:.0f} MiB", bar, is_met)


def _kernel_program(model: Any, length: int, device: Any, gradient: bool, alone: bool) -> Any:
    """Attention of one row, or its gradients, compiled; `alone`: on arrays already in blocks."""
    und, clean = length // 4 // 256 * 256, length // 4 // 256 * 256

    def parts(make: Callable[[int], Any]) -> Parts:
        return Parts(*(make(n) for n in (und, clean, length - und - clean)))

    h, bf16 = model.head_dim, jnp.bfloat16
    q = parts(lambda n: jax.ShapeDtypeStruct((1, n, model.num_heads, h), bf16))
    k = parts(lambda n: jax.ShapeDtypeStruct((1, n, model.num_kv_heads, h), bf16))
    one = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
    meta = parts(lambda n: TokenMeta(*(one((1, n)) for _ in range(3))))
    arrays: Any = (q, k, k, meta, meta)
    attend: Callable[..., Any] = functools.partial(pallas_attention, block_q=256, block_kv=256)
    if alone:
        static = static_of(q, k, 256, 256, False)
        arrays = jax.eval_shape(functools.partial(blocked, static), *arrays)
        attend = functools.partial(attend_blocks, static, False)

    def loss(*arguments: Any) -> jax.Array:
        outputs = jax.tree.leaves(attend(*arguments))
        return sum(jnp.sum(o.astype(jnp.float32) ** 2) for o in outputs)  # type: ignore[return-value]

    program = jax.grad(loss, (0, 1, 2)) if gradient else attend
    sharding = jax.sharding.SingleDeviceSharding(device)
    return jax.jit(program, in_shardings=sharding).lower(*arrays).compile()


def memory(config: MogaoConfig, say: Say, names: tuple[str, ...] = tuple(PEAKS)) -> Iterator[Row]:
    """Peak memory per chip of the whole real step at 8k tokens per chip; and its compile time."""
    for name in names:
        topology = topologies.parse(name)
        began = time.perf_counter()
        plan = make_plan(on_torus(with_rows(config, 8192), topology, "full"), topology, say=say)
        seconds = plan.compiled.seconds if plan.compiled else time.perf_counter() - began
        yield _peak(f"peak on {name}, 8k tokens a chip, remat full", plan, PEAKS[name])
        if name == "v5p:4x4x4":
            compiling = f"compiling the step for {name}"
            yield Row(compiling, f"{seconds:.0f} s", "<= 150 s", seconds <= 150)
        moved = [flag for flag in plan.flags if "collectives move activations" in flag]
        what = f"activation-shaped collectives on {name}"
        yield Row(what, moved[0][:100] if moved else "none", "none", not moved)


def keep_matmuls(config: MogaoConfig, say: Say) -> Iterator[Row]:
    """Whether 16k tokens a chip fit when only elementwise work is recomputed."""
    topology = topologies.parse("v5p:4x4x4")
    config = on_torus(with_rows(config, 16384), topology, "keep_matmuls")
    plan = make_plan(config, topology, say=say)
    yield _peak("peak on v5p:4x4x4, 16k tokens a chip, keep_matmuls", plan, 95.0)


def long_rows(config: MogaoConfig, say: Say) -> Iterator[Row]:
    """Rows of 256k tokens over the context axis of v5p:4x4x4, down to one row on all chips."""
    topology, config, peaks = topologies.parse("v5p:4x4x4"), with_rows(config, LONG_ROW), []
    for fsdp, context in LONG_MESHES:
        axes = {"fsdp": fsdp, "context": context, "param_axes": ("fsdp", "context")}
        plan = make_plan(on_mesh(config, remat="full", **axes), topology, say=say)
        peaks.append(plan.held)
        yield _peak(f"peak, rows of 256k, fsdp={fsdp} x context={context}", plan, 95.0)
    falls = all(a > b for a, b in itertools.pairwise(peaks))
    yield Row("memory per chip falls with the context axis", str(falls), "True", falls)


def _peak(what: str, plan: Plan, bar: float) -> Row:
    if plan.compiled is None:
        return Row(what, "; ".join(plan.flags)[:120], f"<= {bar:g} GiB", False)
    c = plan.compiled
    peak, arguments, temporaries = (n / GIB for n in (c.peak, c.arguments, c.temporaries))
    figure = f"{peak:.2f} GiB ({arguments:.2f} arguments, {temporaries:.2f} temporaries)"
    return Row(what, figure, f"<= {bar:g} GiB", c.peak <= bar * GIB)


BARS: dict[str, Callable[[MogaoConfig, Say], Iterator[Row]]] = {
    "layers": layers,
    "tiles": tiles,
    "kernel": kernel,
    "memory": memory,
    "keep-matmuls": keep_matmuls,
    "long-rows": long_rows,
}


def check_config(config: MogaoConfig) -> None:
    """Raises ConfigError where the config leaves the size of the vocabulary to a tokenizer."""
    if not config.model.vocab_size:
        raise ConfigError("mogao bench: set --config.model.vocab_size; no tokenizer is read.")


def line(row: Row) -> str:
    """A row as text."""
    verdict = {True: "met", False: "NOT MET", None: ""}[row.is_met]
    return f"{row.what:<62} {row.figure:<44} {row.bar:<12} {verdict}".rstrip()
