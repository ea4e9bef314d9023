"""Arrays written and read in parts: the same files and checksums as when saved as a whole."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tiny_checkpoint

from mogao_jax.checkpoints import chunked_io, files
from mogao_jax.checkpoints.fingerprint import RunningFingerprint, fingerprint

DTYPES = [np.float32, ml_dtypes.bfloat16, np.float16, np.int32, np.uint8]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_a_running_fingerprint_is_that_of_the_whole(dtype, monkeypatch):
    monkeypatch.setattr("mogao_jax.checkpoints.fingerprint.PIECE", 64)
    x = np.random.default_rng(0).integers(0, 255, (9, 5, 7)).astype(dtype)
    total = RunningFingerprint()
    for start, stop in ((6, 9), (0, 1), (1, 6)):
        total.add(x[start:stop], start * 35)
    assert total.hexdigest() == fingerprint({"x": jnp.asarray(x)})["x"]
    swapped = RunningFingerprint()
    swapped.add(x[::-1], 0)
    assert swapped.hexdigest() != total.hexdigest()


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "params/layers/kernel": rng.normal(size=(5, 4, 6)).astype(np.float32),
        "params/scale": rng.normal(size=7).astype(ml_dtypes.bfloat16),
        "params/zeros": np.zeros((6, 3), np.float32),
    }


def written(folder, arrays) -> dict[str, str]:
    writer = chunked_io.PartWriter(
        folder / "state", {name: (x.shape, x.dtype) for name, x in arrays.items()}
    )
    for name, x in arrays.items():
        for start in reversed(range(0, len(x), 2)):
            writer.write(name, start, x[start : start + 2])
    return writer.finish()


@pytest.mark.parametrize("part_bytes", [10**8, 100])
def test_orbax_reads_what_is_written_in_parts(tmp_path, arrays, part_bytes, monkeypatch):
    monkeypatch.setattr(chunked_io, "PART_BYTES", part_bytes)
    sums = written(tmp_path, arrays)
    shapes = files.saved_shapes(tmp_path)
    assert {n: tuple(x.shape) for n, x in files.named_leaves(shapes)} == {
        n: x.shape for n, x in arrays.items()
    }
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)
    tree = files.read_arrays(tmp_path, target)
    for name, x in files.named_leaves(tree):
        assert np.asarray(x).dtype == arrays[name].dtype
        np.testing.assert_array_equal(np.asarray(x), arrays[name])
    files.verify(tree, sums)


def test_gaps_and_wrong_parts_are_defects(tmp_path, arrays):
    writer = chunked_io.PartWriter(
        tmp_path / "state", {name: (x.shape, x.dtype) for name, x in arrays.items()}
    )
    with pytest.raises(ValueError, match="no part of"):
        writer.write("params/scale", 0, np.zeros(7, np.float32))
    writer.write("params/zeros", 0, arrays["params/zeros"])
    with pytest.raises(ValueError, match=r"params/layers/kernel, params/scale$"):
        writer.finish()


@pytest.mark.parametrize("ema", [True, False])
def test_what_training_saved_is_read_in_parts(tmp_path, ema):
    """Orbax's own files: a database in place of folders."""
    folder = tiny_checkpoint.write_run(tmp_path / "run", ema=ema) / "checkpoints"
    folder = folder / str(tiny_checkpoint.STEP)
    meta = files.read_folder_meta(folder)
    reader = chunked_io.PartReader(folder, meta, "ema_params" if ema else "params")
    wanted = {
        name.replace("/", "."): x
        for name, x in files.named_leaves(tiny_checkpoint.params(1 if ema else 0))
    }
    assert reader.arrays == {
        name: jax.ShapeDtypeStruct(x.shape, "float32") for name, x in wanted.items()
    }
    for name, x in wanted.items():
        np.testing.assert_array_equal(reader.rows(name, 0, len(x)), x)
        np.testing.assert_array_equal(reader.rows(name, len(x) // 2, len(x)), x[len(x) // 2 :])
    reader.verify()
    some = next(iter(meta["fingerprint"]))
    meta["fingerprint"] = {n: v for n, v in meta["fingerprint"].items() if n != some}
    if some.startswith("ema_params" if ema else "params"):
        with pytest.raises(files.Damaged, match=some):
            reader.verify()
