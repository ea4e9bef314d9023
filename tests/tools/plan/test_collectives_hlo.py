"""Reading collectives from HLO: by hand, and from a program whose collectives are known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mogao_jax.config.schema import MeshConfig
from mogao_jax.sharding.mesh import make_mesh
from mogao_jax.tools.plan.collectives import collectives, first_group, traffic

MESH = {"data": 2, "fsdp": 2, "tensor": 2, "context": 1}

# As the TPU compiler writes them: a loop of four iterations, asynchronous and fused forms, three
# ways to name groups.
HLO = """HloModule jit_f

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %s = f32[] add(%x, %y)
}

%all-reduce-scatter.1 (p.1: f32[8,16]) -> f32[4,16] {
  %all-reduce.2 = f32[8,16]{1,0:T(8,128)} all-reduce(%p.1), replica_groups={{0,2},{1,3},{4,6},{5,7}}, to_apply=%add
  ROOT %slice = f32[4,16]{1,0} dynamic-slice(%all-reduce.2, %o)
}

%condition.1 (arg: (s32[], f32[8])) -> pred[] {
  %constant.5 = s32[]{:T(128)} constant(4)
  ROOT %lt = pred[]{:T(512)} compare(%i, %constant.5), direction=LT
}

%body.1 (arg: (s32[], f32[8])) -> (s32[], f32[8]) {
  %all-gather.1 = bf16[2048,4096]{1,0:T(8,128)(2,1)} all-gather(%a), channel_id=1, replica_groups=[4,2]<=[4,2]T(1,0), dimensions={0}, metadata={op_name="jit(f)/while/body/gather"}
  %fusion.1 = f32[4,16]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %t = (s32[], f32[8]) tuple(%i, %x)
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %while.1 = (s32[], f32[8]) while(%init), condition=%condition.1, body=%body.1, metadata={op_name="jit(f)/while"}
  %all-gather-start.1 = (f32[4,16]{1,0}, f32[8,16]{1,0}) all-gather-start(%b), replica_groups=[2,4]<=[2,2,2]T(1,0,2), dimensions={0}
  %all-reduce.3 = f32[]{:T(128)} all-reduce(%c), replica_groups=mesh['a'=4,'b'=2] {'a'}, to_apply=%add
  ROOT %r = f32[8] copy(%d)
}
"""  # noqa: E501


def test_collectives_of_a_program_written_by_hand():
    found = {c.where or f"{c.kind} {c.runs}": c for c in collectives(HLO, MESH)}
    gather = found["jit(f)/while/body/gather"]
    assert (gather.kind, gather.runs, gather.bytes) == ("all-gather", 4, 2048 * 4096 * 2)
    # Two groups of [4, 2] transposed: 0, 2 differ in the second axis... of 2 x 2 x 2: fsdp.
    assert gather.axes == ("fsdp",) and gather.group_size == 2
    assert gather.sent == gather.bytes / 2
    scatter = found["reduce-scatter 4"]
    assert scatter.axes == ("fsdp",) and scatter.bytes == 4 * 16 * 4
    assert scatter.sent == scatter.bytes  # its part from the one other device
    start = found["all-gather 1"]
    assert start.shapes == (("f32", (8, 16)),) and start.axes == ("data", "tensor")
    total = found["all-reduce 1"]
    assert total.axes == ("data", "fsdp") and total.bytes == 4 and total.sent == 2 * 4 * 3 / 4
    table = traffic(list(found.values()))
    assert table["all-gather", "fsdp"]["runs"] == 4
    assert table["all-gather", "fsdp"]["sent"] == 4 * gather.sent


@pytest.mark.parametrize(
    ("groups", "members"),
    [
        ("{{0,4},{1,5}}", [0, 4]),
        ("[2,4]<=[8]", [0, 1, 2, 3]),
        ("[4,2]<=[2,4]T(1,0)", [0, 4]),
        ("", list(range(8))),
        ("mesh['x'=2,'y'=4] {'x'}", [0, 4]),
        ("mesh['x'=2,'y'=4] {'y':(2)2}", [0, 1]),
        ("mesh['x'=2,'y'=4] {'y':(1)2}", [0, 2]),
        ("mesh['x'=1,'y'=2,'z'=1,'w'=4], device_ids=([2,2,2]T(1,0,2)) {'y'}", [0, 2]),
        ("something new", None),
    ],
)
def test_groups_of_devices(groups, members):
    found = first_group(groups, 8)
    assert (found is None) if members is None else list(found) == members


def test_loops_whose_trip_count_depends_on_data_count_once():
    unknown = HLO.replace("constant(4)", "get-tuple-element(%arg), index=0")
    assert {c.runs for c in collectives(unknown, MESH)} == {1}
    known = unknown.replace(
        "body=%body.1", 'body=%body.1, backend_config={"known_trip_count":{"n":"7"}}'
    )
    assert 7 in {c.runs for c in collectives(known, MESH)}


def test_the_collectives_of_a_compiled_scan():
    """Three layers of weights sharded over fsdp: gathered along that axis alone, once each."""
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    cut = NamedSharding(mesh, P(None, "fsdp"))
    rows = NamedSharding(mesh, P(("data", "fsdp")))

    def layer(x, w):
        w = jax.lax.with_sharding_constraint(w, NamedSharding(mesh, P()))
        return jax.lax.with_sharding_constraint(jnp.tanh(x @ w), rows), None

    w = jax.ShapeDtypeStruct((3, 64, 32 * 2), jnp.float32, sharding=cut)
    x = jax.ShapeDtypeStruct((8, 64), jnp.float32, sharding=rows)
    compiled = jax.jit(lambda x, w: jax.lax.scan(layer, x, w)[0]).lower(x, w).compile()
    found = collectives(compiled.as_text(), dict(mesh.shape))
    gathers = [c for c in found if c.kind == "all-gather"]
    assert {c.axes for c in gathers} == {("fsdp",)}
    # Either a layer in each of three iterations, or all layers before the loop.
    moved = sum(c.bytes * c.runs for c in gathers)
    assert moved == 3 * 64 * 64 * np.dtype(np.float32).itemsize
