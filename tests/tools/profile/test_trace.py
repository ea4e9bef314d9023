"""Own times of nested events, their sums by group, and the reading of a compiled program."""

from __future__ import annotations

import pytest

from mogao_jax.tools.profile import printing, trace
from mogao_jax.tools.profile.trace import covered, instruction_events, operation_times, self_times


def event(name, ts, dur, tid=1, **more):
    return {"ph": "X", "pid": 7, "tid": tid, "name": name, "ts": ts, "dur": dur, **more}


def op(name, ts, dur, tid=1):
    return event("thunk", ts, dur, tid, args={"hlo_op": name})


def test_own_time_leaves_out_what_lies_inside():
    events = [
        event("inner", 12, 3),
        event("loop", 10, 20),
        event("outer", 0, 100),
        event("inner", 20, 5),
        event("after", 100, 5),
        event("elsewhere", 10, 50, tid=2),
    ]
    own = {(e["name"], e["ts"]): (t, p and p["name"]) for e, t, p in self_times(events)}
    assert own == {
        ("outer", 0): (80, None),
        ("loop", 10): (12, "outer"),
        ("inner", 12): (3, "loop"),
        ("inner", 20): (5, "loop"),
        ("after", 100): (5, None),
        ("elsewhere", 10): (50, None),
    }
    assert covered(events) == 105
    assert sum(t for t, _ in own.values()) == 105 + 50


def test_only_instructions_of_the_program_count_and_on_one_line_each():
    events = [
        op("dot.1", 0, 5),
        op("other.1", 5, 5),
        event("end: dot.1", 5, 1),
        event("dot.1", 9, 1),
    ]
    assert [e["ts"] for e in instruction_events(events, ["dot.1"])] == [0, 9]
    line = {"ph": "M", "pid": 7, "tid": 3, "name": "thread_name", "args": {"name": "XLA Ops"}}
    events += [line, op("dot.1", 20, 5, tid=3)]
    assert [e["ts"] for e in instruction_events(events, ["dot.1"])] == [20]


M = "jit(train_step)/jvp(Mogao)/"
T = "jit(train_step)/transpose(jvp(Mogao))/"


@pytest.mark.parametrize(
    ("name", "group"),
    [
        (M + "layers_0/und.qkv/query/dot_general", trace.UND),
        (T + "layers_11/und.finish/gate/transpose", trace.UND),
        (T + "layers/block/gen.finish/down/dot_general", trace.GEN),
        (M + "layers_0/attention/while/body/dot_general", trace.ATTENTION),
        (T + "layers_0/attention/transpose", trace.ATTENTION),
        (M + "layers_0/und.qkv/attention_norm/mul", trace.ELEMENTWISE),
        (T + "layers_3/gen.finish/jit(silu)/mul", trace.ELEMENTWISE),
        (M + "layers_3/gen.qkv/modulation/mul", trace.ADALN),
        (M + "layers_3/adaln/dot_general", trace.ADALN),
        (M + "Mogao._conditioning/timestep_embedder/in/dot_general", trace.ADALN),
        (M + "layers_3/gen.qkv/rope/concatenate", trace.ROPE),
        (M + "Mogao._embed/vit_merger/in/dot_general", trace.CONNECTORS),
        (T + "velocity_head/out/dot_general", trace.CONNECTORS),
        ("jit(train_step)/jvp(cross_entropy)/while/body/dot_general", trace.CROSS_ENTROPY),
        ("jit(train_step)/transpose(jvp(cross_entropy))/while", trace.CROSS_ENTROPY),
        ("jit(train_step)/jvp(FluxVae.encode_latents)/encoder/conv_in/add", trace.VAE),
        ("jit(train_step)/VisionTower/blocks_0/attention/while/body/exp", trace.VIT),
        ("jit(train_step)/jvp()/vmap(vmap(jit(_normal)))/erf_inv", trace.NOISE),
        ("jit(train_step)/mul", trace.OPTIMIZER),
        ("jit(train_step)/jvp()/gather", trace.OTHER),
        ("", trace.OTHER),
    ],
)
def test_groups_by_path_of_names(name, group):
    assert trace.group_of(name) == group
    assert group in trace.GROUPS


def test_collectives_are_communication_whatever_their_path():
    assert trace.group_of(M + "layers_0/und.qkv/query/dot_general", "all-gather-start.3") == (
        trace.COMMUNICATION
    )


HLO = """HloModule jit_train_step

%fused (p.1: f32[2]) -> f32[2] {
  %p.1 = f32[2]{0} parameter(0)
  ROOT %mul.9 = f32[2]{0} multiply(%p.1, %p.1), metadata={op_name="jit(train_step)/mul" id=3}
}

ENTRY %main (a: f32[2]) -> f32[2] {
  %a = f32[2]{0} parameter(0)
  %dot.2 = f32[2]{0} dot(%a, %a), metadata={op_name="jit(train_step)/jvp(Mogao)/adaln/dot_general"}
  %copy.3 = f32[2]{0} copy(%dot.2)
  %reduce.4 = f32[] reduce(%copy.3), metadata={op_name="reduce_sum"}
  ROOT %fusion.5 = f32[2]{0} fusion(%reduce.4), kind=kLoop, calls=%fused
}
"""


def test_op_names_are_read_and_passed_on_to_instructions_without():
    names = trace.op_names(HLO)
    adaln = "jit(train_step)/jvp(Mogao)/adaln/dot_general"
    assert names["dot.2"] == names["copy.3"] == names["reduce.4"] == adaln
    assert names["fusion.5"] == names["mul.9"] == "jit(train_step)/mul"
    assert names["a"] == ""


def test_operation_times_add_up():
    names = {
        "while.1": M + "layers_0/attention/while",
        "dot.1": M + "layers_0/attention/while/body/dot_general",
        "helper.1": "",
        "dot.2": M + "layers_0/gen.qkv/key/dot_general",
    }
    events = [
        op("while.1", 0, 10e6), op("dot.1", 1e6, 4e6), op("helper.1", 6e6, 1e6),
        op("dot.2", 10e6, 6e6), op("dot.2", 2e6, 2e6, tid=2),
    ]  # fmt: skip
    times = operation_times(events, names, num_steps=2)
    assert times.groups[trace.ATTENTION] == pytest.approx(5)  # the nameless helper is the loop's
    assert times.groups[trace.GEN] == pytest.approx(4)
    assert sum(times.groups.values()) == pytest.approx(9)
    assert times.covered == pytest.approx(8)
    assert times.top[0] == (pytest.approx(4), "dot.2", names["dot.2"])
    assert operation_times(events, {"unknown": ""}, 1) is None


def test_an_instruction_joined_from_many_is_named_by_its_first_path():
    assert printing.first_path("step/dot") == "step/dot"
    assert printing.first_path("step/dot:step/add:step/sum") == "step/dot and 2 more"
