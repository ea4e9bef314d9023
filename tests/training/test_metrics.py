from __future__ import annotations

import functools
import json
import math
import os

import jax.numpy as jnp
import numpy as np
import pytest

from mogao_jax.errors import EnvironmentProblem, MogaoError
from mogao_jax.losses import WeightedMean
from mogao_jax.training import loop, metrics
from mogao_jax.training.state import TrainState


def test_means_are_divided_last():
    accumulator = metrics.Accumulator()
    totals, weights = [3.0, 10.0, 0.0], [1.0, 8.0, 0.0]
    for step, (t, w) in enumerate(zip(totals, weights, strict=True)):
        pair = WeightedMean(jnp.float32(t), jnp.float32(w))
        accumulator.add(step, {"ntp_loss": pair, "grad_norm": jnp.float32(step)})
    taken = accumulator.take()
    assert taken == {"ntp_loss": pytest.approx(13 / 9), "grad_norm": pytest.approx(1.0)}
    assert accumulator.take() == {}  # it begins anew


def test_vectors_get_their_names_and_empty_ones_are_left_out():
    accumulator = metrics.Accumulator(metrics.labels(["text", "qa", "t2i"], 4))
    accumulator.add(
        1,
        {
            "ntp_loss/source": (jnp.array([2.0, 6.0, 0.0]), jnp.array([1.0, 3.0, 0.0])),
            "flow_loss/timestep": (jnp.arange(4.0), jnp.array([0.0, 1.0, 2.0, 2.0])),
        },
    )
    assert accumulator.take() == {
        "ntp_loss/text": 2.0,
        "ntp_loss/qa": 2.0,
        "flow_loss/t0.25-0.50": 1.0,
        "flow_loss/t0.50-0.75": 1.0,
        "flow_loss/t0.75-1.00": 1.5,
    }
    with pytest.raises(ValueError, match="flow_loss/source"):
        accumulator.add(2, {"flow_loss/source": (np.ones(2), np.ones(2))})
        accumulator.take()


def test_checking_takes_nothing_away():
    accumulator = metrics.Accumulator()
    accumulator.add(1, {"loss": (3.0, 1.0)})
    accumulator.check()
    accumulator.add(2, {"loss": (5.0, 3.0)})
    assert accumulator.take() == {"loss": 2.0}
    accumulator.add(3, {"loss": (math.nan, 1.0)})
    with pytest.raises(metrics.LossNotFinite, match="step 3"):
        accumulator.check()


class _Lazy:
    """Stands for a device array: counts how often it is fetched."""

    def __init__(self, value):
        self.value, self.fetched = value, 0

    def __array__(self, dtype=None, copy=None):
        self.fetched += 1
        return np.asarray(self.value, dtype)


def test_nothing_is_fetched_before_it_is_wanted():
    accumulator = metrics.Accumulator()
    lazy = _Lazy(2.0)
    accumulator.add(0, {"loss": (lazy, 1.0)})
    assert lazy.fetched == 0
    assert accumulator.take() == {"loss": 2.0}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_divergence_names_the_step_and_the_source(bad):
    accumulator = metrics.Accumulator(metrics.labels(["text", "qa"], 2))

    def step(value):
        return {
            "ntp_loss": (jnp.float32(2.0 + value), jnp.float32(1.0)),
            "ntp_loss/source": (jnp.array([2.0, value]), jnp.array([1.0, 1.0])),
            "grad_norm": jnp.float32(7.5),
        }

    accumulator.add(41, step(0.5))
    accumulator.add(42, step(bad))
    accumulator.add(43, step(bad))
    with pytest.raises(metrics.LossNotFinite) as e:
        accumulator.take()
    assert isinstance(e.value, MogaoError)
    message = str(e.value)
    assert message.startswith("step 42: not a finite number: ntp_loss, ntp_loss/qa.")
    assert "grad_norm 7.5" in message and "Last good step: step 41" in message
    assert "data behind ntp_loss/qa" in message


def test_no_source_is_blamed_where_all_are_bad():
    names = ["ntp_loss/qa", "ntp_loss/t0_pairs", "flow_loss/t0.00-0.25", "flow_loss/t0.25-0.50"]
    values = [*names]
    assert metrics.suspects(names[:2], values) == ""
    assert metrics.suspects(names, values) == ""
    assert metrics.suspects(names[1:], values) == "Look first at the data behind ntp_loss/t0_pairs."


def test_throughput_with_a_clock_of_ones_own():
    now = [100.0]
    throughput = metrics.Throughput(clock=lambda: now[0])
    for _ in range(4):
        with throughput.waiting_for_data():
            now[0] += 0.5
        now[0] += 1.5
        throughput.step(tokens=1000)
    with throughput.paused():
        now[0] += 60.0
    assert throughput.take() == {
        "tokens_per_second": pytest.approx(500.0),
        "steps_per_second": pytest.approx(0.5),
        "data_wait_share": pytest.approx(0.25),
    }
    now[0] += 1.0
    assert throughput.take()["steps_per_second"] == 0


def test_records_are_lines_of_json(tmp_path):
    with metrics.MetricsWriter(tmp_path, tensorboard=False, clock=lambda: 12.5) as writer:
        writer.write(10, {"loss": np.float32(1.5)})
        writer.write(20, {"loss": 1.0, "flow_loss/qa": math.nan}, split="validation")
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {"step": 10, "time": 12.5, "split": "train", "loss": 1.5}
    assert json.loads(lines[1])["flow_loss/qa"] is None
    assert [r["step"] for r in metrics.read_metrics(tmp_path)] == [10, 20]
    assert [r["step"] for r in metrics.read_metrics(tmp_path, "validation")] == [20]
    assert metrics.read_metrics(tmp_path / "nowhere") == []


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics.multihost, "is_main", lambda: False)
    with metrics.MetricsWriter(tmp_path) as writer:
        writer.write(1, {"loss": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_resuming_removes_what_will_be_done_again_and_a_torn_line(tmp_path):
    with metrics.MetricsWriter(tmp_path, tensorboard=False) as writer:
        for step in (10, 20, 30, 40):
            writer.write(step, {"loss": float(step)})
    with open(tmp_path / "metrics.jsonl", "a") as f:
        f.write('{"step": 50, "los')
    with metrics.MetricsWriter(tmp_path, resume_step=20, tensorboard=False) as writer:
        assert [r["step"] for r in metrics.read_metrics(tmp_path)] == [10, 20]
        writer.write(30, {"loss": 0.0})
    assert [(r["step"], r["loss"]) for r in metrics.read_metrics(tmp_path)] == [
        (10, 10.0), (20, 20.0), (30, 0.0)
    ]  # fmt: skip
    with metrics.MetricsWriter(tmp_path, tensorboard=False):  # begun anew
        assert metrics.read_metrics(tmp_path) == []


def test_what_was_measured_before_a_checkpoint_is_known_after_it(tmp_path):
    with metrics.MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write(0, {"loss": 3.0}, split="validation_untrained")
        for step in (10, 20, 30):
            writer.write(step, {"loss": float(step)}, split="validation")
    with metrics.MetricsWriter(tmp_path, resume_step=20, tensorboard=False) as writer:
        assert writer.has(20, "validation") and writer.has(0, "validation_untrained")
        assert not writer.has(30, "validation") and not writer.has(20, "train")

        def measure(_):
            raise AssertionError("measured again")

        state = TrainState(step=20, params={}, opt_state=())
        trainer = functools.partial(
            loop.Trainer, config=None, mesh=None, train_step=None, encoders=None, data=None,
            schedule=None, checkpointer=None, record=writer, writers=(), sources=(),
        )  # fmt: skip
        trainer(evaluators={"validation": measure}).evaluate(state, 20)
        trainer(evaluators={"validation": lambda _: {"loss": 5.0}}).evaluate(state, 30)
    assert [r["step"] for r in metrics.read_metrics(tmp_path, "validation")] == [10, 20, 30]
    with metrics.MetricsWriter(tmp_path, tensorboard=False):  # stopped before its first checkpoint
        assert metrics.read_metrics(tmp_path) == []


def test_tensorboard_gets_the_same_numbers(tmp_path):
    from tensorboardX.event_file_writer import EventsWriter  # noqa: F401  (it is there)
    from tensorboardX.proto import event_pb2

    with metrics.MetricsWriter(tmp_path) as writer:
        writer.write(7, {"loss": 1.25, "flow_loss/t0.00-0.25": 0.5})
    (file,) = (tmp_path / "tensorboard").iterdir()
    data, found = file.read_bytes(), {}
    while data:  # TFRecord framing: length u64, crc u32, payload, crc u32
        size = int.from_bytes(data[:8], "little")
        event = event_pb2.Event.FromString(data[12 : 12 + size])
        found |= {v.tag: (event.step, v.simple_value) for v in event.summary.value}
        data = data[16 + size :]
    assert found == {"train/loss": (7, 1.25), "train/flow_loss/t0.00-0.25": (7, 0.5)}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_full_disk_is_one_message(tmp_path):
    path = str(tmp_path / "metrics.jsonl")
    with metrics.MetricsWriter(tmp_path, tensorboard=False) as writer:
        opened = {
            int(fd): os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
        }
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, next(fd for fd, name in opened.items() if name == os.path.realpath(path)))
        os.close(full)
        with pytest.raises(EnvironmentProblem, match="metrics.jsonl.*resumes"):
            writer.write(1, {"loss": 1.0})
