"""Sources: the forms documents come in, splits, random access, errors."""

import copy
import json

import numpy as np
import pytest

from mogao_jax import images
from mogao_jax.config.schema import ImageConfig, SourceConfig
from mogao_jax.data import sources
from mogao_jax.data.sources import DocumentsSource, held_out, open_source
from mogao_jax.data.tfds_source import TfdsSource
from mogao_jax.errors import DataError, DocumentError
from mogao_jax.sequence.document import Image, Text

PNG = images.encoded_bytes(Image(pixels=np.full((8, 8, 3), 9, np.uint8)))


def line(text: str) -> str:
    return json.dumps({"items": [{"type": "text", "text": text}]})


def texts(source) -> list[str]:
    return [source[i].items[0].text for i in range(len(source))]


def both(path) -> tuple[DocumentsSource, DocumentsSource]:
    return DocumentsSource(path, "train"), DocumentsSource(path, "validation")


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\r\n"])
@pytest.mark.parametrize("blank", [False, True])
def test_jsonl_lines_by_offset(tmp_path, end, blank):
    wanted = [f"é{'x' * (i % 7)} {i}" for i in range(50)]
    lines = [line(t) for t in wanted]
    if blank:
        lines.insert(10, "   ")
        lines.insert(0, "")
    newline = "\r\n" if end == "\r\n" else "\n"
    (tmp_path / "a.jsonl").write_bytes((newline.join(lines) + end).encode())
    train, validation = both(tmp_path / "a.jsonl")
    assert sorted(texts(train) + texts(validation)) == sorted(wanted)
    assert 0 < len(validation) < 10
    ids = {source[i].id for source in (train, validation) for i in range(len(source))}
    shift = 2 if blank else 0
    assert "a.jsonl:50" in ids and f"a.jsonl:{50 + shift}" in ids
    with pytest.raises(IndexError):
        train[len(train)]


def test_files_that_end_within_a_block(tmp_path, monkeypatch):
    """Offsets over several read blocks: a record longer than one, newlines at its border."""
    record = line("y" * (1 << 24))
    filler = line("z" * ((1 << 24) - len(line("")) - len("\n") - 5))
    (tmp_path / "a.jsonl").write_text("\n".join([filler, record, line("last")]))
    train, validation = both(tmp_path / "a.jsonl")
    got = sorted(texts(train) + texts(validation), key=len)
    assert [len(t) for t in got] == [4, (1 << 24) - len(line("")) - 6, 1 << 24]


def test_held_out_by_index():
    out = held_out(100_000)
    assert abs(out.mean() - 1 / sources.HELD_OUT_EVERY) < 0.003
    np.testing.assert_array_equal(out[:500], held_out(500))  # new records change no old one
    assert not held_out(0).size and not held_out(1).any()
    for n in range(2, 60):
        assert 1 <= held_out(n).sum() < n
    # No period: even and odd, or every tenth, are held out alike.
    assert abs(out[::2].mean() - out[1::2].mean()) < 0.005


def test_a_file_with_its_own_validation(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(line(f"t{i}") for i in range(30)))
    (tmp_path / "a.validation.jsonl").write_text("\n".join(line(f"v{i}") for i in range(3)))
    (tmp_path / "b.jsonl").write_text(line("b"))
    train, validation = both(tmp_path / "a.jsonl")
    assert texts(train) == [f"t{i}" for i in range(30)]
    assert texts(validation) == ["v0", "v1", "v2"]
    train, validation = both(tmp_path)  # the folder
    assert texts(train) == [f"t{i}" for i in range(30)] + ["b"]
    assert texts(validation) == ["v0", "v1", "v2"]


def test_image_paths_are_relative_to_the_file(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "p.png").write_bytes(PNG)
    record = {"items": [{"type": "image", "path": "p.png"}]}
    (tmp_path / "sub" / "a.jsonl").write_text(json.dumps(record))
    document = DocumentsSource(tmp_path)[0]
    assert images.load_pixels(document.items[0]).shape == (8, 8, 3)
    assert document.id == "sub/a.jsonl:1"


def test_one_document_per_json_file(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.json").write_text(json.dumps(json.loads(line(str(i))), indent=2))
    (tmp_path / "p.png").write_bytes(PNG)
    train, validation = both(tmp_path)
    assert sorted(texts(train) + texts(validation)) == list("0123")
    assert train[0].id.endswith(".json")
    assert texts(DocumentsSource(tmp_path / "2.json")) == ["2"]


def test_images_with_captions(tmp_path, caplog):
    for i in range(3):
        (tmp_path / f"{i}.PNG").write_bytes(PNG)
        (tmp_path / f"{i}.txt").write_text(f"caption {i}\n")
    (tmp_path / "alone.png").write_bytes(PNG)
    train, validation = both(tmp_path)
    assert "1 of 4 images have no caption" in caplog.text
    assert sorted(texts(train) + texts(validation)) == [f"caption {i}" for i in range(3)]
    text, image = train[0].items
    assert (text.role, text.loss, image.role, image.loss) == ("user", False, "assistant", True)
    (tmp_path / "0.txt").write_text(" \n")
    (tmp_path / "1.txt").write_bytes(b"\xff")
    (tmp_path / "2.txt").unlink()
    for source in (train, validation):
        for i in range(len(source)):
            with pytest.raises(DocumentError, match="is empty|not UTF-8|cannot be read"):
                source[i]


def test_sources_that_cannot_be_opened(tmp_path):
    (tmp_path / "x.csv").write_text("a")
    (tmp_path / "empty.jsonl").write_text("\n \n")
    for path, match in [
        ("", "path is empty"),
        (tmp_path / "no", "nothing is at"),
        (tmp_path / "x.csv", "not a .jsonl file"),
        (tmp_path, "holds no documents"),
        (tmp_path / "empty.jsonl", "holds no documents"),
    ]:
        with pytest.raises(DataError, match=match):
            DocumentsSource(path)
    with pytest.raises(DataError, match="data source 'mine': nothing is at"):
        config = SourceConfig(kind="documents", path=str(tmp_path / "no"))
        open_source("mine", config, seed=0, split="train", images=ImageConfig())
    with pytest.raises(DataError, match="no prepared tfds dataset"):
        TfdsSource(tmp_path)


def test_broken_records_name_their_line(tmp_path, monkeypatch):
    bad = ["{", '"x"', '{"items": []}', "\xff"]
    raw = "\n".join([line("ok"), *bad[:3]]).encode() + b"\n\xff\xfe is not UTF-8\n"
    (tmp_path / "a.validation.jsonl").write_text(line("v"))  # so that all lines are training
    (tmp_path / "a.jsonl").write_bytes(raw)
    source = DocumentsSource(tmp_path / "a.jsonl")
    assert len(source) == 5 and source[0].items[0].text == "ok"
    for i, match in enumerate(["JSON", "must be a JSON object", "empty", "not UTF-8"], start=1):
        with pytest.raises(DocumentError, match=rf"a\.jsonl:{i + 1}\b.*{match}"):
            source[i]
    monkeypatch.setattr(sources, "MAX_RECORD_BYTES", 10)
    with pytest.raises(DocumentError, match="MiB"):
        source[0]
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(DocumentError, match="cannot be read"):
        source[1]


def test_copies_share_the_index(tmp_path):
    (tmp_path / "a.jsonl").write_text(line("a"))
    source = DocumentsSource(tmp_path / "a.jsonl")
    assert copy.deepcopy(source) is source


def test_the_shapes_world_by_task():
    config = SourceConfig(kind="shapes", options={"task": "t2i"})
    train = open_source("s", config, seed=3, split="train", images=ImageConfig())
    validation = open_source("s", config, seed=3, split="validation", images=ImageConfig())
    kinds = [type(item) for item in train[5].items]
    assert kinds.count(Image) == 1 and Text in kinds
    assert train[5].id != validation[5].id
