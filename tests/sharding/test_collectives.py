"""What the compiled train step sends between devices: weights and gradients, never activations."""

from __future__ import annotations

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_system as tiny

from mogao_jax.config.schema import MeshConfig
from mogao_jax.models.modules import init_params
from mogao_jax.models.mogao import Mogao
from mogao_jax.sequence.batch import Sizes
from mogao_jax.sequence.packing import pack_row, stack_rows
from mogao_jax.sharding import rules
from mogao_jax.sharding.mesh import batch_sharding, make_mesh, replicated
from mogao_jax.training.optimizer import make_optimizer
from mogao_jax.training.state import abstract_state, shardings_of
from mogao_jax.training.step import make_train_step

# Lengths are made of primes that no other axis has: 53 und, 19 clean, 11 noised, 23 ViT.
SIZES = Sizes(und=8 * 53, clean=8 * 19, noised=8 * 18 * 11, images=8, vit_patches=32 * 23)
PRIMES = (53, 19, 11, 23)
ROWS = 8
# Over mesh axes of one device: nothing is sent, and optimised programs do not have it.
_ALONE = re.compile(r"replica_groups=(\{\{\d+\}[,}]|\[\d+,1\])")
_COLLECTIVE = re.compile(
    r" = (.*?) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\("
)


def modules():
    cfg = tiny.config(
        model={"embed_dim": 40, "mlp_dim": 72, "num_heads": 8, "num_kv_heads": 2, "head_dim": 8,
               "scan_layers": True, "remat": "full"}
    )  # fmt: skip
    whole = tiny.load_modules(cfg)
    model = Mogao(cfg.model, cfg.vae, cfg.vit, vocab_size=320)
    return dataclasses.replace(whole, model=model)


@functools.cache
def communicated(
    *sizes: int, param_axes: tuple[str, ...] = ("fsdp",)
) -> list[tuple[str, tuple[int, ...]]]:
    """(operation, dimensions) of every array that a collective of the train step returns."""
    made = modules()
    mesh = make_mesh(MeshConfig(*sizes))
    optimizer = make_optimizer(made.config.optimizer, 10)
    row = pack_row([tiny.lay(tiny.text_document("a"))], SIZES, made.config.images.max_side)
    rows = stack_rows([row] * ROWS)

    def abstract(tree, sharding):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype, sharding=sharding),
            tree,
        )

    with rules.on_mesh(mesh, param_axes):
        init = functools.partial(init_params, made.config, made.model, jax.random.key(0))
        state = abstract_state(init, optimizer.transform, mesh, 0.99, param_axes)
        step = jax.jit(
            make_train_step(made, optimizer.transform),
            donate_argnums=0,
            out_shardings=(shardings_of(state), None),
        )
        batch = abstract(jax.tree.map(lambda x: x[None], rows), batch_sharding(mesh, 1))
        encoders = abstract(tiny.encoders(), replicated(mesh))
        rate = jax.ShapeDtypeStruct((), jnp.float32)
        # The partitioner's work is the same; unoptimised code compiles in half the time.
        options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
        text = step.lower(state, encoders, batch, rate).compile(options).as_text()
    return [
        (match[2], tuple(int(n) for n in dims.split(",") if n))
        for line in text.splitlines()
        if (match := _COLLECTIVE.search(line)) and not _ALONE.search(line)
        for dims in re.findall(r"\w+\[([\d,]*)\]", match[1])
    ]


def of_tokens(dims: tuple[int, ...]) -> bool:
    """Whether an array has an axis of tokens, and more than a few numbers for each."""
    return any(n % p == 0 for n in dims for p in PRIMES if n) and np.prod(dims) >= 4 * max(dims)


@pytest.mark.slow
def test_fsdp_sends_weights_and_their_gradients_alone():
    found = communicated(2, 4, 1, 1)
    assert ("all-gather", (1, 40, 72)) in found  # the search sees weights
    assert [(kind, dims) for kind, dims in found if of_tokens(dims)] == []


@pytest.mark.slow
def test_weights_sharded_over_data_too_are_gathered_in_two_steps():
    found = communicated(2, 4, 1, 1, param_axes=("fsdp", "data"))
    gathered = {tuple(sorted({*dims} - {1})) for kind, dims in found if kind == "all-gather"}
    assert {(10, 72), (40, 72)} <= gathered  # over data, then over fsdp
    assert [(kind, dims) for kind, dims in found if of_tokens(dims)] == []
