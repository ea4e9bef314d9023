from __future__ import annotations

import sys

import pytest
from two_processes import free_port, run_two

from mogao_jax.errors import EnvironmentProblem
from mogao_jax.sharding import multihost


def test_one_process_needs_nothing(monkeypatch):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    assert multihost.initialize() is False
    assert multihost.process_count() == 1 and multihost.is_main()
    multihost.sync("alone")
    assert multihost.gather(5) == [5]
    assert multihost.all_agree(True) and not multihost.all_agree(False)


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.delenv("JAX_PROCESS_ID", raising=False)
    with pytest.raises(EnvironmentProblem, match="JAX_PROCESS_ID must be set"):
        multihost.initialize()
    monkeypatch.setenv("JAX_PROCESS_ID", "one")
    with pytest.raises(EnvironmentProblem, match="could not find each other"):
        multihost.initialize()


_CHILD = """
import os, sys
os.environ["JAX_COORDINATOR_ADDRESS"] = "127.0.0.1:{port}"
os.environ["JAX_NUM_PROCESSES"] = "2"
os.environ["JAX_PROCESS_ID"] = sys.argv[1]
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.pop("XLA_FLAGS", None)
import jax
jax.config.update("jax_num_cpu_devices", 2)
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec as P
from mogao_jax.config.schema import MeshConfig, MogaoConfig
from mogao_jax.sharding import mesh as mesh_lib, multihost
from mogao_jax.training.checkpointing import Checkpointer
from mogao_jax.training.state import TrainState
import grain

assert multihost.initialize(heartbeat_timeout_seconds=300)
me = multihost.process_index()
mesh = mesh_lib.make_mesh(MeshConfig(fsdp=2))
batch = mesh_lib.global_batch(mesh, np.arange(12).reshape(4, 3) + 100 * me)
assert batch.shape == (8, 3)
total = int(jax.jit(lambda x: x.sum())(batch))
assert total == 2 * 66 + 100 * 12, total
assert multihost.gather(me + 7) == [7, 8]
assert multihost.gather(2**32 - 1) == [2**32 - 1] * 2
assert not multihost.all_agree(me == 0) and multihost.all_agree(True)

data = iter(grain.MapDataset.range(100)[me::2].to_iter_dataset())
first = [next(data) for _ in range(3 + me)]
weights = jax.make_array_from_callback(
    (4, 4), NamedSharding(mesh, P("fsdp", "data")), lambda i: np.arange(16.0).reshape(4, 4)[i])
state = TrainState.create({{"w": weights}}, optax.identity())
state = state._replace(step=jax.device_put(state.step, mesh_lib.replicated(mesh)))
with Checkpointer({folder!r}, MogaoConfig()) as checkpointer:
    for step in (500, 1000):
        assert checkpointer.save(step, state, data=data, counters={{"tokens": step}})
        checkpointer.wait()
    multihost.sync("saved")
    if me == 1:  # damage that only one process can see
        file = {folder!r} + "/checkpoints/1000/data/process_1-of-2.json"
        text = open(file).read()
        open(file, "w").write(text.replace("4", "5"))
    again = iter(grain.MapDataset.range(100)[me::2].to_iter_dataset())
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    restored = checkpointer.restore(abstract, data=again)
    assert restored.step == 500, restored
    assert next(again) == 2 * (3 + me) + me
    for shard in restored.state.params["w"].addressable_shards:
        assert (np.asarray(shard.data) == np.arange(16.0).reshape(4, 4)[shard.index]).all()
    assert checkpointer.steps() == [500]
print("fine", me)
"""


@pytest.mark.slow
def test_two_processes(tmp_path):
    """Global arrays, agreement, and checkpoints (with damage that one process alone sees)."""
    code = _CHILD.format(port=free_port(), folder=str(tmp_path / "run"))
    outputs = run_two(lambda i: [sys.executable, "-c", code, str(i)], timeout=900)
    for i, out in enumerate(outputs):
        assert f"fine {i}\n" in out
