"""Reading files of others: what the library itself reads, and every kind of damage refused."""

from __future__ import annotations

import json
import os
import pickle

import numpy as np
import pytest
import safetensors.numpy
import tiny_files as files

from mogao_jax.errors import CheckpointError
from mogao_jax.porting.safetensors_reader import SafetensorsFolder, require_floats
from mogao_jax.porting.safetensors_writer import ShardWriter

SHAPES = {"a.weight": (4, 3), "b.weight": (2, 2, 5), "c.bias": (7,), "d": (1, 6)}
INDEX = "model.safetensors.index.json"


def refused(path, **options) -> str:
    with pytest.raises(CheckpointError) as error:
        SafetensorsFolder(path, **options)
    return str(error.value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shards", [1, 3])
def test_every_tensor_as_the_library_reads_it(tmp_path, dtype, shards):
    values = files.values(SHAPES, dtype)
    folder = SafetensorsFolder(files.write(tmp_path / "m", values, {"x": 1}, shards=shards))
    assert folder.config == {"x": 1}
    assert folder.shapes == SHAPES and set(folder.dtypes.values()) == {dtype}
    for key, value in values.items():
        assert folder.read(key).tobytes() == value.tobytes()
        assert folder.read(key).dtype == value.dtype
        for start in range(len(value)):
            rows = folder.read_rows(key, start, len(value))
            assert rows.tobytes() == value[start:].tobytes()


@pytest.mark.parametrize("shard_bytes", [10**9, 40])
def test_what_is_written_the_library_reads(tmp_path, shard_bytes):
    values = files.values(SHAPES, "bfloat16") | files.values({"e": (5,)}, "float32")
    tensors = {key: (x.shape, x.dtype.name) for key, x in values.items()}
    writer = ShardWriter(tmp_path, tensors, shard_bytes=shard_bytes)
    for key in reversed(values):  # in any order, in parts
        for row in reversed(range(len(values[key]))):
            writer.write(key, values[key][row : row + 1], row)
    names = writer.finish()
    read: dict = {}
    shards = [name for name in names if name.endswith(".safetensors")]
    assert len(shards) == (1 if shard_bytes > 40 else 4)
    for name in shards:
        read |= safetensors.numpy.load_file(tmp_path / name)
    assert read.keys() == values.keys()
    for key, value in values.items():
        assert read[key].dtype == value.dtype and read[key].tobytes() == value.tobytes()
    SafetensorsFolder(tmp_path)  # the index fits
    if len(shards) > 1:
        index = json.loads((tmp_path / INDEX).read_text())
        assert index["metadata"]["total_size"] == sum(x.nbytes for x in values.values())


def test_a_writer_notices_what_was_not_written(tmp_path):
    writer = ShardWriter(tmp_path, {"a": ((2, 2), "float32"), "b": ((1,), "float32")})
    writer.write("a", np.zeros((1, 2), np.float32))
    with pytest.raises(ValueError, match="a, b"):
        writer.finish()


def test_no_tensors_make_no_file(tmp_path):
    assert ShardWriter(tmp_path, {}, stem="").finish() == []
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_truncated(tmp_path, cut):
    file = files.write(tmp_path / "m", files.values(SHAPES)) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-cut])
    message = refused(tmp_path / "m")
    assert str(file) in message and "damaged" in message and "again" in message


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "header"),
        (b"\xff" * 64, "header"),
        ((5).to_bytes(8, "little") + b"{]   ", "invalid JSON"),
        ((2).to_bytes(8, "little") + b"[]", "invalid type"),
        ((2).to_bytes(8, "little") + b"{}surplus", "not fully covered"),
    ],
)
def test_no_safetensors_at_all(tmp_path, content, word):
    (tmp_path / "x.safetensors").write_bytes(content)
    assert word in refused(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("field", "word"),
    [
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, "invalid shape"),
        ({"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}, "`-1`"),
        ({"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 4]}, "overflow"),
        ({"dtype": "F31", "shape": [1], "data_offsets": [0, 4]}, "`F31`"),
        ({"dtype": [], "shape": [1], "data_offsets": [0, 4]}, "invalid type"),
        ({"dtype": "F32", "shape": [1]}, "`data_offsets`"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}, "invalid offset for tensor `a`"),
        ({"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}, "not fully covered"),
    ],
)
def test_headers_that_contradict_the_file(tmp_path, field, word):
    header = json.dumps({"a": field}).encode()
    data = len(header).to_bytes(8, "little") + header + b"\0" * 4
    (tmp_path / "x.safetensors").write_bytes(data)
    assert word in refused(tmp_path / "x.safetensors")


def test_a_key_with_two_values_in_one_header(tmp_path):
    first, second = (
        json.dumps({"dtype": "F32", "shape": [1], "data_offsets": [n, n + 4]}) for n in (0, 4)
    )
    header = f'{{"a":{first},"a":{second}}}'.encode()
    data = len(header).to_bytes(8, "little") + header + b"\0" * 8
    (tmp_path / "x.safetensors").write_bytes(data)
    assert "tensor `a`" in refused(tmp_path / "x.safetensors")


def test_an_index_that_does_not_fit(tmp_path):
    folder = files.write(tmp_path / "m", files.values(SHAPES), shards=2)
    index = json.loads((folder / INDEX).read_text())
    first, second = sorted(set(index["weight_map"].values()))
    index["weight_map"]["b.weight"] = first  # it is in the second
    index["weight_map"]["ghost"] = second
    index["weight_map"]["lost"] = "model-00009-of-00009.safetensors"
    (folder / INDEX).write_text(json.dumps(index))
    message = refused(folder)
    for part in (
        f"b.weight is not in {first}",
        f"b.weight is in {second}",
        f"ghost is not in {second}",
        "model-00009-of-00009.safetensors",
        "4 problem(s)",
    ):
        assert part in message, message


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "a\\b.safetensors"]
)
def test_paths_outside_the_folder(tmp_path, name):
    folder = files.write(tmp_path / "m", files.values(SHAPES), shards=2)
    files.write(tmp_path, files.values(SHAPES), stem="secret")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a.weight": name}}))
    message = refused(folder)
    assert "outside its folder" in message and repr(name) in message


class _Bomb:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (self.file, "w")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "ae.pth", "x.pt", "x.ckpt"])
def test_pickles_are_refused_and_never_opened(tmp_path, name):
    bomb = tmp_path / "gone-off"
    file = tmp_path / "m" / name
    file.parent.mkdir()
    file.write_bytes(pickle.dumps(_Bomb(str(bomb))))
    for path in (file, file.parent):
        message = refused(path)
        assert "pickle" in message and "save_pretrained" in message and name in message
    folder = files.write(tmp_path / "n", files.values(SHAPES), shards=2)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    (folder / name).write_bytes(file.read_bytes())
    assert "pickle" in refused(folder)
    assert not bomb.exists()


def test_values_that_are_not_finite_name_every_tensor(tmp_path):
    for dtype in ("float32", "bfloat16", "float16"):
        values = files.values(SHAPES, dtype)
        values["b.weight"][1, 0, 2] = np.nan
        values["d"][0, 5] = -np.inf
        path = files.write(tmp_path / dtype, values)
        folder = SafetensorsFolder(path)
        folder.read("a.weight")
        for key in ("b.weight", "d"):
            with pytest.raises(CheckpointError) as error:
                folder.read(key)
            assert "b.weight; d." in str(error.value) and "--allow-nan" in str(error.value)
        allowed = SafetensorsFolder(path, allow_non_finite=True)
        assert allowed.read("d").tobytes() == values["d"].tobytes()


def test_numbers_that_are_no_floats(tmp_path):
    values = {"a": np.zeros(3, np.int64), "b": np.zeros(2, np.float64), "c": np.zeros(1, np.int64)}
    safetensors.numpy.save_file(values, tmp_path / "x.safetensors")
    folder = SafetensorsFolder(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"I64: a, c; F64: b"):
        require_floats(folder, sorted(folder.shapes))
    with pytest.raises(CheckpointError, match="I64"):
        folder.read("a")


def test_which_file_of_a_folder(tmp_path):
    assert "no file or folder" in refused(tmp_path / "nothing")
    assert "holds no .safetensors" in refused(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    assert "no safetensors file" in refused(tmp_path / "notes.txt")
    files.write(tmp_path, files.values(SHAPES), stem="ae")
    assert SafetensorsFolder(tmp_path).shapes == SHAPES
    files.write(tmp_path, files.values(SHAPES), stem="other")
    message = refused(tmp_path)
    assert "ae.safetensors" in message and "no index" in message
    files.write(tmp_path, files.values({"z": (1,)}))  # model.safetensors is the one meant
    assert list(SafetensorsFolder(tmp_path).shapes) == ["z"]
    files.write(tmp_path, files.values(SHAPES), shards=2)
    assert "both" in refused(tmp_path)
    assert SafetensorsFolder(tmp_path / INDEX).shapes == SHAPES


def test_links_into_a_cache_are_followed(tmp_path):
    """As huggingface_hub's cache has them: names in the folder, bytes elsewhere."""
    blobs = files.write(tmp_path / "blobs", files.values(SHAPES))
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    os.symlink(blobs / "model.safetensors", snapshot / "model.safetensors")
    assert SafetensorsFolder(snapshot).shapes == SHAPES


def test_a_config_that_is_none(tmp_path):
    folder = files.write(tmp_path / "m", files.values(SHAPES))
    (folder / "config.json").write_text("{")
    assert "config.json" in refused(folder)
    (folder / "config.json").write_text("[1]")
    assert "JSON object" in refused(folder)


def test_a_shard_name_that_no_file_can_have(tmp_path):
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "x\0y.safetensors"}}))
    assert "outside its folder" in refused(tmp_path)
