"""Save, resume, kill, damage: on a toy state with a real Grain iterator."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mogao_jax.checkpoints.files import digest, load_params, read_meta
from mogao_jax.checkpoints.fingerprint import fingerprint
from mogao_jax.config.schema import (
    MeshConfig,
    ModelConfig,
    MogaoConfig,
    OptimizerConfig,
    TrainConfig,
)
from mogao_jax.errors import CheckpointError
from mogao_jax.sharding import mesh as mesh_lib
from mogao_jax.training import checkpointing, compatibility
from mogao_jax.training import optimizer as optim
from mogao_jax.training import state as state_lib
from mogao_jax.training.metrics import LossNotFinite

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = MogaoConfig(train=TrainConfig(checkpoint_every=2, keep_checkpoints=3))
TRANSFORM, SCHEDULE = optim.make_optimizer(OptimizerConfig(warmup_steps=2), 100)
EMA = 0.9


def _init():
    key = jax.random.key(0)
    return {
        "up": {
            "kernel": nn.LogicallyPartitioned(
                jax.random.normal(key, (64, 48)) / 8, ("embed", "mlp")
            ),
            "bias": jnp.zeros(48),
        },
        "half": {"kernel": jnp.ones((48, 3), jnp.bfloat16)},
    }


def _loss(params, x):
    y = jnp.tanh(x @ params["up"]["kernel"] + params["up"]["bias"])
    return jnp.mean((y @ params["half"]["kernel"].astype(jnp.float32) - x[:, :3]) ** 2)


def _train_step(state, x, learning_rate):
    loss, grads = jax.value_and_grad(_loss)(state.params, x)
    return state.apply_gradients(grads, TRANSFORM, learning_rate=learning_rate, ema_decay=EMA), loss


def _jitted(abstract):
    # Without out_shardings the compiler picks some for what is copied everywhere, which can then
    # neither be donated nor be what a restored run starts from.
    shardings = state_lib.shardings_of(abstract)
    return jax.jit(_train_step, donate_argnums=0, out_shardings=(shardings, None))


def _data():
    def batch(i, rng):
        return rng.normal(size=(8, 64)).astype(np.float32) + np.float32(i % 3)

    dataset = grain.MapDataset.range(1000).shuffle(seed=1).seed(2).random_map(batch)
    return iter(dataset.to_iter_dataset())


class _Run:
    """A toy training run in a folder: the order of things is that of a real loop."""

    def __init__(self, folder, mesh_config=None, config=CONFIG, report=None, made_with=None):
        self.mesh = mesh_lib.make_mesh(mesh_config or MeshConfig(data=1, fsdp=4, tensor=2))
        self.said = []
        self.checkpointer = checkpointing.Checkpointer(
            folder, config, made_with=made_with, report=report or self.said.append
        )
        self.data = _data()
        abstract = state_lib.abstract_state(_init, TRANSFORM, self.mesh, EMA)
        self.train_step = _jitted(abstract)
        restored = self.checkpointer.restore(abstract, data=self.data)
        self.counters = {"tokens": 0}
        if restored is None:
            self.state, self.step = state_lib.init_state(_init, abstract, TRANSFORM), 0
        else:
            self.state, self.step, self.counters = restored

    def train(self, until):
        losses = {}
        while self.step < until:
            x = mesh_lib.global_batch(self.mesh, next(self.data))
            self.state, loss = self.train_step(self.state, x, np.float32(SCHEDULE(self.step)))
            self.step += 1
            self.counters["tokens"] += 8
            losses[self.step] = np.float32(loss).tobytes().hex()
            self.checkpointer.save(self.step, self.state, counters=self.counters, data=self.data)
        return losses


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of 6 steps (checkpoints 2, 4, 6), its losses, and those of steps 7 to 10."""
    folder = tmp_path_factory.mktemp("run")
    run = _Run(folder)
    losses = run.train(6)
    run.checkpointer.wait()
    final = jax.tree.map(np.asarray, run.state)
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    losses |= run.train(10)
    run.checkpointer.close()
    return copy, losses, final


def test_going_on_with_other_encoders_is_said(tmp_path):
    for vit, said in (("a", 0), ("a", 0), ("b", 1)):
        run = _Run(tmp_path, made_with={"encoders": {"vit": vit}})
        assert len(run.said) == said and (not said or "vision tower (a then, b now)" in run.said[0])
        run.train(run.step + 2)
        run.checkpointer.close()


@pytest.fixture
def folder(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "run")
    return tmp_path / "run"


def _assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_resume_is_bit_identical(trained, folder):
    _, losses, final = trained
    run = _Run(folder)
    assert run.step == 6 and run.counters == {"tokens": 48} and run.said == []
    _assert_same(run.state, final)
    before = run.state
    assert run.train(10) == {s: losses[s] for s in range(7, 11)}
    assert all(x.is_deleted() for x in jax.tree.leaves(before))  # it could be donated
    run.checkpointer.wait()
    assert run.checkpointer.steps() == [6, 8, 10]  # keep_checkpoints = 3
    run.checkpointer.close()


def test_restore_onto_another_mesh(trained, folder):
    run = _Run(folder, MeshConfig(data=2, fsdp=2, tensor=1, context=2))
    _assert_same(run.state, trained[2])
    kernel = run.state.params["up"]["kernel"]
    assert {s.data.shape for s in kernel.addressable_shards} == {(32, 48)}
    run.checkpointer.close()


def test_saved_steps_and_forced_saves(tmp_path):
    with checkpointing.Checkpointer(tmp_path, CONFIG) as checkpointer:
        state = state_lib.TrainState.create({"w": jnp.ones(3)}, TRANSFORM)  # no average
        assert not checkpointer.save(1, state)
        assert checkpointer.save(3, state, force=True)
        checkpointer.wait()
        assert not checkpointer.save(3, state, force=True)
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
        )
        restored = checkpointer.restore(abstract)
        _assert_same(restored.state, state)
        assert restored.counters == {}
        with pytest.raises(CheckpointError, match="no data position"):
            checkpointer.restore(abstract, data=_data())
        assert checkpointer.restore(abstract, data=_data(), restart_data=True).step == 3
        assert not checkpointer.reached_preemption(3)


def test_lost_weights_are_not_saved(tmp_path):
    with checkpointing.Checkpointer(tmp_path, CONFIG) as checkpointer:
        lost = {"a": {"w": jnp.array([1.0, jnp.nan])}, "b": jnp.ones(2)}
        with pytest.raises(LossNotFinite, match="step 2: 1 of 2 parameters.*a/w"):
            checkpointer.save(2, state_lib.TrainState.create(lost, TRANSFORM))
        assert checkpointer.steps() == []


def test_no_checkpoint_is_none(tmp_path):
    with checkpointing.Checkpointer(tmp_path, CONFIG) as checkpointer:
        assert checkpointer.steps() == []
        assert checkpointer.restore(state_lib.TrainState(0, {}, {})) is None


# ------------------------------------------------------------------------------------ damage


def _largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def _swap(folder):
    """Whole files with wrong numbers in them: what a flipped bit mostly amounts to."""
    shutil.rmtree(folder / "6" / "state")
    shutil.copytree(folder / "4" / "state", folder / "6" / "state")


def _truncate(folder):
    file = _largest(folder / "6" / "state")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _empty_meta(folder):
    (folder / "6" / "meta" / "metadata").write_text("")


def _edit_meta(folder):
    file = folder / "6" / "meta" / "metadata"
    file.write_text(file.read_text().replace('"tokens": 48', '"tokens": 40'))
    assert '"tokens": 40' in file.read_text()


def _edit_data(folder):
    file = folder / "6" / "data" / "process_0-of-1.json"
    assert "6" in file.read_text()
    file.write_text(file.read_text().replace("6", "7"))


def _lose_data(folder):
    shutil.rmtree(folder / "6" / "data")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of the reader
@pytest.mark.parametrize(
    "damage", [_swap, _truncate, _empty_meta, _edit_meta, _edit_data, _lose_data]
)
def test_damage_falls_back_and_says_so(trained, folder, damage):
    damage(folder / "checkpoints")
    run = _Run(folder)
    assert run.step == 4
    (said,) = run.said
    assert "checkpoint of step 6 is damaged" in said and "Going on from step 4" in said
    assert (folder / "checkpoints_damaged" / "6").is_dir()
    assert run.train(6) == {s: trained[1][s] for s in (5, 6)}
    run.checkpointer.close()  # step 6 was saved anew
    assert fingerprint(load_params(folder)[0]) == fingerprint(trained[2].ema_params)


def test_all_damaged(folder):
    for step in ("2", "4", "6"):
        (folder / "checkpoints" / step / "meta" / "metadata").write_text("{}")
    with pytest.raises(CheckpointError, match="none of the checkpoints.*step 6.*step 4.*step 2"):
        _Run(folder)
    with pytest.raises(CheckpointError, match="no checkpoint can be read"):
        load_params(folder)


def test_every_single_bit_flip_is_noticed():
    x = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    whole = fingerprint({"x": jnp.asarray(x)})
    for position in range(x.size):
        for bit in range(32):
            changed = x.view(np.uint32).ravel().copy()
            changed[position] ^= np.uint32(1) << np.uint32(bit)
            other = jnp.asarray(changed.reshape(x.shape)).view(jnp.float32)
            assert fingerprint({"x": other}) != whole
    swapped = x.copy()
    swapped[0, 0], swapped[2, 4] = x[2, 4], x[0, 0]
    assert fingerprint({"x": jnp.asarray(swapped)}) != whole


def test_fingerprint_is_that_of_its_definition_on_every_mesh():
    rng = np.random.default_rng(1)
    arrays = {
        "f": rng.normal(size=(16, 8)).astype(np.float32),
        "i": rng.integers(-9, 9, size=(16,)).astype(np.int32),
        "b": rng.integers(0, 2, size=(4, 2, 3)).astype(bool),
    }
    half = jnp.asarray(arrays["f"], jnp.bfloat16)

    def by_hand(bits):
        text = ""
        for m in (0x9E3779B1, 0x85EBCA77):
            total = 0
            for position, value in enumerate(bits.ravel().tolist()):
                mixed = ((position + 1) * m) % 2**32
                mixed = ((mixed ^ (mixed >> 15)) * m) % 2**32
                total += value * (mixed | 1)
            text += f"{total % 2**32:08x}"
        return text

    expected = {
        "f": by_hand(arrays["f"].view(np.uint32)),
        "i": by_hand(arrays["i"].view(np.uint32)),
        "b": by_hand(arrays["b"].astype(np.uint8)),
        "half": by_hand(np.asarray(half).view(np.uint16)),
    }
    for config in (MeshConfig(), MeshConfig(data=2, fsdp=4)):
        mesh = mesh_lib.make_mesh(config)
        rows = mesh_lib.batch_sharding(mesh) if config.fsdp == 1 else mesh_lib.replicated(mesh)
        placed = {k: jnp.asarray(v) for k, v in arrays.items()} | {"half": half}
        placed |= {k: jax.device_put(placed[k], rows) for k in ("f", "i", "half")}
        assert fingerprint(placed) == expected


# ------------------------------------------------------------------------------- other configs


def _state_of(optimizer):
    transform = optim.make_optimizer(optimizer, 10).transform
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state = state_lib.TrainState.create({"dense": {"kernel": jnp.ones((4, 4))}}, transform)
    grads = jax.tree.map(lambda x: 0.123 * x, state.params)
    state = state.apply_gradients(grads, transform, learning_rate=1e-3)
    return state, jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), state
    )


def _saved_and_restored(folder, before, now):
    config = dataclasses.replace(CONFIG, optimizer=before)
    with checkpointing.Checkpointer(folder, config) as checkpointer:
        checkpointer.save(5, _state_of(before)[0], force=True)
    config = dataclasses.replace(CONFIG, optimizer=now)
    with checkpointing.Checkpointer(folder, config, report=lambda _: None) as checkpointer:
        return checkpointer.restore(_state_of(now)[1])


@pytest.mark.parametrize("dtypes", [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_moments_go_on_in_another_dtype(tmp_path, dtypes):
    before, now = (OptimizerConfig(moments_dtype=x) for x in dtypes)
    found = _saved_and_restored(tmp_path, before, now)
    assert found is not None and found.step == 5
    saved, wanted = _state_of(before)[0], _state_of(now)[1]
    for x, y, z in zip(*map(jax.tree.leaves, (found.state, saved, wanted)), strict=True):
        assert (x.dtype, x.shape) == (z.dtype, z.shape)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y.astype(z.dtype)))


@pytest.mark.parametrize(
    ("before", "now", "fields"),
    [
        ({}, {"kind": "muon"}, ["optimizer.kind"]),
        ({"kind": "muon"}, {"kind": "muon", "muon_on": "und"}, ["optimizer.muon_on"]),
        ({}, {"clip_norm": 0.0}, ["optimizer.clip_norm"]),
        ({}, {"frozen": "llm"}, ["optimizer.frozen"]),
        ({}, {"muon_on": "und"}, []),
        ({}, {"clip_norm": 2.0, "moments_dtype": "bfloat16"}, []),
        ({}, {"weight_decay": 0.1, "b1": 0.8, "eps": 1e-6}, []),
    ],
)
def test_another_optimizer_is_refused_by_name_before_anything_is_read(before, now, fields):
    saved = json.loads(
        json.dumps(dataclasses.asdict(MogaoConfig(optimizer=OptimizerConfig(**before))))
    )
    refused, _ = compatibility.differences(saved, MogaoConfig(optimizer=OptimizerConfig(**now)))
    assert [d.field for d in refused] == fields
    assert ("train.init_from=FOLDER" in compatibility.remedy(refused)) == bool(fields)


def test_another_config_is_refused_with_all_its_fields(folder):
    other = dataclasses.replace(
        CONFIG,
        model=ModelConfig(num_layers=7, rope="m_rope"),
        optimizer=OptimizerConfig(learning_rate=1.0, ema_decay=0.0),
    )
    with pytest.raises(CheckpointError) as e:
        _Run(folder, config=other)
    message = str(e.value)
    assert "model.num_layers: 6 -> 7" in message
    assert 'model.rope: "il_rope" -> "m_rope"' in message
    assert "optimizer.ema_decay: 0.999 -> 0.0" in message
    assert "learning_rate" not in message
    assert (folder / "checkpoints" / "6").is_dir()  # it is not damaged


def test_what_may_change_is_only_noted(folder):
    other = dataclasses.replace(
        CONFIG,
        train=dataclasses.replace(CONFIG.train, num_steps=77, log_every=3),
        mesh=MeshConfig(fsdp=2),
    )
    run = _Run(folder, config=other)
    assert run.step == 6
    (said,) = run.said
    assert "mesh.fsdp: 1 -> 2; train.log_every: 10 -> 3; train.num_steps: 1000 -> 77" in said
    run.checkpointer.close()


@pytest.mark.parametrize(
    ("field", "value", "fixed"),
    [
        ("packing.und_tokens", 77, True),
        ("tokenizer.kind", "shapes", True),
        ("train.global_batch_rows", 8, True),
        ("seed", 3, True),
        ("vit.weights", "/a/file", True),  # it was the embedded one
        ("tokenizer.path", "/elsewhere", False),
        ("model.remat", "full", False),
        ("model.attention.block_q", 32, False),
        ("name", "renamed", False),
    ],
)
def test_which_fields_are_fixed(field, value, fixed):
    saved = json.loads(json.dumps(dataclasses.asdict(MogaoConfig())))
    place = saved
    for key in field.split(".")[:-1]:
        place = place[key]
    place[field.split(".")[-1]] = value
    refused, noted = compatibility.differences(saved, MogaoConfig())
    assert [d.field for d in (refused if fixed else noted)] == [field]
    assert not (noted if fixed else refused)


def test_a_field_that_came_later_counts_as_its_default():
    saved = json.loads(json.dumps(dataclasses.asdict(MogaoConfig())))
    del saved["model"]["rope_tail"]
    assert compatibility.differences(saved, MogaoConfig()) == ([], [])
    changed = dataclasses.replace(MogaoConfig(), model=ModelConfig(rope_tail=0.0))
    (difference,), _ = compatibility.differences(saved, changed)
    assert str(difference) == "model.rope_tail: 0.25 -> 0.0"


def test_another_number_of_processes(folder):
    meta_file = folder / "checkpoints" / "6" / "meta" / "metadata"
    meta = json.loads(meta_file.read_text())
    del meta["checksum"]
    meta["data"] = meta["data"] * 2
    meta["checksum"] = digest(meta)
    meta_file.write_text(json.dumps(meta))
    with pytest.raises(CheckpointError, match="written by 2 processes.*among 1"):
        _Run(folder)


# ------------------------------------------------------------------------------------- loading


_PART = {"raw": "params/", "ema": "ema_params/"}


def _flat(tree):
    for module, arrays in tree.items():
        for name, array in arrays.items():
            yield f"{module}/{name}", array


def test_load_params(trained, folder):
    final = trained[2]
    params, meta = load_params(folder)
    _assert_same(params, final.ema_params)
    assert meta["step"] == 6 and meta["config"]["train"]["checkpoint_every"] == 2
    _assert_same(load_params(folder / "checkpoints", weights="raw")[0], final.params)
    older, meta = load_params(folder / "checkpoints" / "4", weights="ema")
    assert meta["step"] == 4
    assert not np.array_equal(older["up"]["kernel"], params["up"]["kernel"])
    assert read_meta(folder)["step"] == 6


def test_load_params_onto_a_mesh(trained, folder):
    mesh = mesh_lib.make_mesh(MeshConfig(data=1, fsdp=2, tensor=4))
    abstract = state_lib.abstract_state(_init, TRANSFORM, mesh, EMA).params
    params, _ = load_params(folder, abstract=abstract)
    assert {s.data.shape for s in params["up"]["kernel"].addressable_shards} == {(32, 12)}
    assert params["half"]["kernel"].dtype == jnp.bfloat16  # as asked; the average is float32
    np.testing.assert_array_equal(params["up"]["kernel"], trained[2].ema_params["up"]["kernel"])


def test_load_params_of_another_model(folder):
    mesh = mesh_lib.make_mesh(MeshConfig())
    abstract = dict(state_lib.abstract_state(_init, TRANSFORM, mesh, EMA).params)
    abstract["up"] = {"kernel": jax.ShapeDtypeStruct((64, 50), jnp.float32)}
    with pytest.raises(CheckpointError, match=r"2 parameters differ.*up/bias \(48,\) -> None"):
        load_params(folder, abstract=abstract)


def test_a_flipped_bit_never_does_harm(trained, folder):
    """Wherever it is (even where nothing is read): the arrays are right, or not used."""
    file = _largest(folder / "checkpoints" / "6" / "state")
    whole = file.read_bytes()
    for place in np.linspace(0.02, 0.98, 13):
        content = bytearray(whole)
        content[int(len(content) * place)] ^= 4
        file.write_bytes(content)
        said = []
        params, meta = load_params(folder, weights="raw", report=said.append)
        assert meta["step"] == (4 if said else 6)
        if not said:
            _assert_same(params, trained[2].params)


@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_wrong_numbers_are_noticed_by_their_checksums(folder, weights):
    older, newer = (
        dict(_flat(load_params(folder / "checkpoints" / step, weights=weights)[0]))
        for step in ("4", "6")
    )
    # Not all of them: two small steps leave bfloat16 ones as they are.
    changed = sorted(k for k in older if not np.array_equal(older[k], newer[k]))
    assert changed
    _swap(folder / "checkpoints")
    said = []
    assert load_params(folder, weights=weights, report=said.append)[1]["step"] == 4
    expected = f"{len(changed)} of {len(older)} arrays differ from their checksums, such as "
    assert expected + _PART[weights] + changed[0] in said[0]


def test_nothing_to_load(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        load_params(tmp_path)


# --------------------------------------------------------------------------------------- kill

_CHILD = """
import os, sys
sys.path[:0] = [{tests!r}, {root!r}]
import test_checkpointing as t
run = t._Run({folder!r})
print("resumed at", run.step, flush=True)
if {kill}:
    for until in range(run.step + 1, 1000):
        run.train(until)
        print("done", until, flush=True)
losses = run.train(run.step + 5)
run.checkpointer.close()
for step, loss in losses.items():
    print("loss", step, loss, flush=True)
"""


def _child(folder, kill):
    code = _CHILD.format(
        tests=str(pathlib.Path(__file__).parent), root=str(ROOT), folder=str(folder), kill=kill
    )
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ.copy()
    )


@pytest.mark.slow
def test_kill_and_resume(tmp_path):
    """kill -9 at any moment, mid-save included; the next 5 losses are those of one long run."""
    with _child(tmp_path, kill=True) as child:
        for line in child.stdout:
            if line == "done 7\n":
                break
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait(900) == -signal.SIGKILL
    with _child(tmp_path, kill=False) as child:
        lines = child.communicate(timeout=900)[0].splitlines()
    assert child.returncode == 0
    start = int(lines[0].removeprefix("resumed at "))
    assert start >= 4  # the save of step 6 may not have been finished
    resumed = {int(s): v for _, s, v in (x.split() for x in lines if x.startswith("loss"))}
    assert sorted(resumed) == list(range(start + 1, start + 6))
    whole = _Run(tmp_path / "whole")
    losses = whole.train(start + 5)
    whole.checkpointer.close()
    assert resumed == {s: losses[s] for s in resumed}


_FULL = """
import resource, signal, sys
sys.path[:0] = [{tests!r}, {root!r}]
import test_checkpointing as t
run = t._Run({folder!r})
run.train(3)
run.checkpointer.wait()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))  # writes fail as on a full disk
try:
    run.train(5)
    run.checkpointer.wait()
except t.CheckpointError as e:
    print(e)
"""


def test_a_save_that_fails_is_one_message(tmp_path):
    code = _FULL.format(
        tests=str(pathlib.Path(__file__).parent), root=str(ROOT), folder=str(tmp_path)
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=900)
    assert "could not be written" in done.stdout and "last whole one is of step 2" in done.stdout
    run = _Run(tmp_path)  # and what was there before can be gone on from
    assert run.step == 2
    run.checkpointer.close()
