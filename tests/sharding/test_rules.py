from __future__ import annotations

import logging
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from mogao_jax.config import load_config
from mogao_jax.config.schema import MeshConfig
from mogao_jax.models.modules import init_params, make_model
from mogao_jax.sharding import mesh as mesh_lib
from mogao_jax.sharding import rules

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"


def test_specs():
    assert rules.partition_spec(("act_batch", "act_len", "act_heads", "head_dim")) == P(
        ("data", "fsdp"), "context", "tensor", None
    )
    assert rules.partition_spec(("layers", "embed", "mlp")) == P(None, "fsdp", "tensor")
    assert rules.partition_spec(("embed", None)) == P("fsdp", None)


def test_weights_sharded_over_two_axes():
    both = ("fsdp", "data")
    assert rules.partition_spec(("embed", "mlp"), both) == P(("fsdp", "data"), "tensor")
    # Axes of activations stay as they were.
    assert rules.partition_spec(("act_batch", None), both) == P(("data", "fsdp"), None)
    cut = P(("fsdp", "data"), "tensor", None)
    assert rules.without(cut, ("data",)) == P(("fsdp",), "tensor", None)
    assert rules.without(cut, both) == P(None, "tensor", None)

    mesh = mesh_lib.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    boxed = jax.eval_shape(_Layer().init, jax.random.key(0), jnp.ones((1, 8)))["params"]
    kernel = rules.tree_shardings(boxed, mesh, both)["up"]["kernel"]
    assert kernel.spec == P(("fsdp", "data"), "tensor")
    with rules.on_mesh(mesh, both):
        assert rules.ambient_spec((8, 12), ("embed", "mlp")) == P(("fsdp", "data"), ("tensor",))
    with rules.on_mesh(mesh):  # what was set inside a block ends with it
        assert rules.ambient_spec((8, 12), ("embed", "mlp")) == P(("fsdp",), ("tensor",))


def test_weights_sharded_over_context_leave_tokens_where_they_are():
    long = ("fsdp", "context")
    assert rules.partition_spec(("q_heads", "head_dim", "embed"), long) == P(
        "tensor", None, ("fsdp", "context")
    )
    assert rules.partition_spec(("act_batch", "act_len", "act_embed"), long) == P(
        ("data", "fsdp"), "context", None
    )


def test_a_mesh_axis_is_used_once():
    assert rules.partition_spec(("embed", "embed")) == P("fsdp", None)
    assert rules.partition_spec(("embed", "act_batch")) == P("fsdp", "data")


def test_a_misspelt_name_is_refused():
    with pytest.raises(ValueError, match="unknown logical axis 'mpl'"):
        rules.partition_spec(("embed", "mpl"))


def test_rules_name_only_axes_of_the_mesh():
    for _, axes in rules.RULES:
        for axis in (axes,) if isinstance(axes, str) else axes or ():
            assert axis in rules.MESH_AXES


def test_linen_reads_the_same_table():
    """Activations go through linen's own constraint, weights through `partition_spec`."""
    for names in (("act_batch", "act_len", "act_embed"), ("embed", "q_heads", "head_dim")):
        linen = nn.logical_to_mesh_axes(names, rules.RULES)
        assert tuple(linen) == tuple(rules.partition_spec(names))


class _Layer(nn.Module):
    @nn.compact
    def __call__(self, x):
        init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("embed", "mlp"))
        return nn.Dense(12, kernel_init=init, name="up")(x)


def test_tree_shardings_and_what_does_not_divide(caplog):
    mesh = mesh_lib.make_mesh(MeshConfig(data=1, fsdp=2, tensor=4))
    boxed = jax.eval_shape(_Layer().init, jax.random.key(0), jnp.ones((1, 6)))["params"]
    shardings = rules.tree_shardings(boxed, mesh)
    assert shardings["up"]["kernel"].spec == P("fsdp", "tensor")
    assert shardings["up"]["bias"].spec == P()

    mesh = mesh_lib.make_mesh(MeshConfig(data=1, fsdp=1, tensor=8))
    with caplog.at_level(logging.WARNING):
        shardings = rules.tree_shardings(boxed, mesh)
    assert shardings["up"]["kernel"].spec == P("fsdp", None)  # 12 columns on 8 devices
    assert "kernel" in caplog.text and "size 12" in caplog.text


def test_no_large_array_of_the_7b_is_whole_on_every_device():
    config = load_config(CONFIGS / "mogao_7b_stage3.py")
    model = make_model(config, 151936)
    boxed = jax.eval_shape(lambda: init_params(config, model, jax.random.key(0)))
    mesh = mesh_lib.make_mesh(MeshConfig(data=1, fsdp=8))
    arrays, shardings = rules.unbox(boxed), rules.tree_shardings(boxed, mesh)
    large = [
        (jax.tree_util.keystr(path), sharding.spec)
        for (path, array), sharding in zip(
            jax.tree_util.tree_leaves_with_path(arrays), jax.tree.leaves(shardings), strict=True
        )
        if array.size > 2**20
    ]
    assert len(large) > 10
    assert [name for name, spec in large if "fsdp" not in jax.tree.leaves(tuple(spec))] == []


def test_constraints_on_activations_work_on_the_mesh():
    mesh = mesh_lib.make_mesh(MeshConfig(data=2, fsdp=2, tensor=1, context=2))

    @jax.jit
    def constrained(x):
        return nn.with_logical_constraint(x * 1, ("act_batch", "act_len", "act_embed"))

    with rules.on_mesh(mesh):
        y = constrained(jnp.ones((8, 4, 2)))
    assert {s.data.shape for s in y.addressable_shards} == {(2, 2, 2)}
