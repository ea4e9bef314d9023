"""Noto emoji: the archive, read with suspicion, becomes documents."""

import io
import json
import pathlib
import zipfile

import numpy as np
import pytest

from mogao_jax import images
from mogao_jax.data.sources import DocumentsSource
from mogao_jax.errors import DataError, EnvironmentProblem
from mogao_jax.sequence.document import Document, Image, Text
from mogao_jax.worlds.emoji import archive
from mogao_jax.worlds.emoji import documents as emoji


def png(shade: int) -> bytes:
    return images.encoded_bytes(Image(pixels=np.full((16, 16, 3), shade, np.uint8)))


def record(number: int, **changes) -> dict:
    tones = ["light", "dark", "light+dark"] if number % 2 else []
    return {
        "file": f"{number:x}.png",
        "name": f"thing {number}",
        "short_names": [f"thing_{number}"],
        "category": "Objects",
        "subcategory": "x",
        "variants": [
            {"skin_tone": tone, "file": f"{number:x}-{i}.png"} for i, tone in enumerate(tones)
        ],
        **changes,
    }


def make_zip(path: pathlib.Path, records, drop: str | None = None) -> pathlib.Path:
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("index.jsonl", "\n".join(json.dumps(r) for r in records))
        z.writestr("LICENSE.txt", "free")
        for r in records:
            for file in [r["file"], *(v["file"] for v in r["variants"])]:
                if file != drop:
                    z.writestr(f"images/{file}", png(len(file)))
    return path


def all_documents(out: pathlib.Path, kind: str) -> dict[str, list[Document]]:
    found = {}
    for split in ("train", "validation"):
        source = DocumentsSource(out / f"{kind}.jsonl", split)
        found[split] = [source[i] for i in range(len(source))]
    return found


def test_every_kind_of_document(tmp_path):
    out = tmp_path / "out"
    counts = emoji.convert(make_zip(tmp_path / "e.zip", [record(i) for i in range(60)]), out)
    assert set(counts) == {f"{k}{s}.jsonl" for k in emoji.KINDS for s in ("", ".validation")}
    shapes = {
        "captions": [(Text, "user", False), (Image, "assistant", True)],
        "names": [(Image, "user", False), (Text, "user", False), (Text, "assistant", True)],
        "edits": [(Image, "user", False), (Text, "user", False), (Image, "assistant", True)],
    }
    seen: dict[str, set[str]] = {"train": set(), "validation": set()}
    ids = set()
    for kind in emoji.KINDS:
        for split, documents in all_documents(out, kind).items():
            name = kind if split == "train" else f"{kind}.validation"
            assert len(documents) == counts[f"{name}.jsonl"]
            for document in documents:
                ids.add(document.id)
                pictures = [i for i in document.items if isinstance(i, Image)]
                seen[split].update(p.path.name.split("-")[0].split(".")[0] for p in pictures)
                for picture in pictures:
                    assert images.load_pixels(picture).shape == (16, 16, 3)
                if kind in shapes:
                    got = [(type(i), i.role, i.loss) for i in document.items]
                    assert got == shapes[kind]
                else:
                    assert 2 <= len(pictures) <= 4
                    assert all(i.role is None and i.loss for i in document.items)
    assert seen["train"] | seen["validation"] == {f"{i:x}" for i in range(60)}
    assert seen["validation"] and not seen["train"] & seen["validation"]
    assert len(ids) == sum(counts.values())
    assert (out / "LICENSE.txt").read_text() == "free"


def test_an_edit_says_what_its_second_picture_is():
    parsed = emoji.read_index(json.dumps(record(1)))[0]
    files = {v: k for k, v in emoji.files_by_tone(parsed).items()}
    edits = emoji.documents_of(parsed, "edits")
    assert len(edits) == 4 * 3
    for document in edits:
        before, text, after = document["items"]
        tone = files[after["path"].removeprefix("images/")]
        assert before["path"] != after["path"]
        if tone == "default":
            assert text["text"] in emoji.EDITS_TO_DEFAULT
        else:
            assert any(text["text"] == t.format(tone=tone) for t in emoji.EDITS)


def test_conversion_twice_gives_the_same(tmp_path):
    path = make_zip(tmp_path / "e.zip", [record(i) for i in range(8)])
    emoji.convert(path, tmp_path / "a")
    emoji.convert(path, tmp_path / "b")
    for file in (tmp_path / "a").glob("*.jsonl"):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_a_few_emoji_are_taken_evenly_with_all_their_variants(tmp_path):
    path = make_zip(tmp_path / "e.zip", [record(i) for i in range(60)])
    emoji.convert(path, tmp_path / "all")
    emoji.convert(path, tmp_path / "few", count=20)
    of = {}
    for folder in ("all", "few"):
        lines = "".join(p.read_text() for p in (tmp_path / folder).glob("captions*.jsonl"))
        of[folder] = {json.loads(x)["id"]: x for x in lines.splitlines()}
    third = {f"{i:x}" for i in range(0, 60, 3)}
    assert of["few"] == {k: x for k, x in of["all"].items() if k.split("/")[2] in third}
    pictures = {p.name for p in (tmp_path / "few" / "images").iterdir()}
    assert pictures == {f"{i}.png" for i in third} | {
        f"{i:x}-{v}.png" for i in range(3, 60, 6) for v in range(3)
    }
    for count in (61, -1):
        with pytest.raises(DataError, match=f"{count} emoji are asked for; the archive holds 60"):
            emoji.convert(path, tmp_path / "x", count=count)


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"file": "../../evil.png"}, r"index.jsonl:1 .*file name '\.\./\.\./evil.png'"),
        ({"file": "/tmp/x.png"}, "file name"),
        ({"variants": [{"skin_tone": "dark", "file": "..\\x.png"}]}, "file name"),
        ({"variants": [{"file": "aa.png"}]}, "skin_tone"),
        ({"name": ""}, "text expected, got ''"),
        ({"category": 3}, "text expected, got 3"),
        ({"variants": 3}, "index.jsonl:1"),
    ],
)
def test_bad_indices_are_named(changes, match):
    with pytest.raises(DataError, match=match):
        emoji.read_index(json.dumps(record(0, **changes)))


def test_bad_archives(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="nothing is at"):
        emoji.convert(tmp_path / "no.zip", tmp_path / "o")
    (tmp_path / "bad.zip").write_bytes(b"PK nonsense")
    with pytest.raises(DataError, match="not a readable zip"):
        emoji.convert(tmp_path / "bad.zip", tmp_path / "o")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as z:
        z.writestr("readme", "x")
    with pytest.raises(DataError, match="member 'index.jsonl' .*is missing"):
        emoji.convert(tmp_path / "other.zip", tmp_path / "o")
    lacking = make_zip(tmp_path / "lacking.zip", [record(0)], drop="0.png")
    with pytest.raises(DataError, match="member 'images/0.png' .*is missing"):
        emoji.convert(lacking, tmp_path / "o")
    (tmp_path / "file").write_text("x")
    whole = make_zip(tmp_path / "whole.zip", [record(0)])
    with pytest.raises(EnvironmentProblem, match="cannot write to"):
        emoji.convert(whole, tmp_path / "file" / "sub")
    monkeypatch.setattr(emoji, "MAX_IMAGE_BYTES", 20)
    with pytest.raises(DataError, match="has over 20 bytes"):
        emoji.convert(whole, tmp_path / "o")


def test_zip_limits_and_damage(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("big", b"\0" * 10_000_000)
        z.writestr("noise", np.random.default_rng(0).bytes(1000))
    raw = bytearray(buffer.getvalue())
    (tmp_path / "a.zip").write_bytes(raw)
    with archive.SafeZip(tmp_path / "a.zip") as z:
        assert "big" in z and "small" not in z
        with pytest.raises(DataError, match="has over 1000 bytes"):
            z.read("big", 1000)
    with pytest.raises(DataError, match="over 1 members"):
        archive.SafeZip(tmp_path / "a.zip", max_members=1)
    raw[raw.index(b"noise") + 200] ^= 255
    (tmp_path / "a.zip").write_bytes(raw)
    with archive.SafeZip(tmp_path / "a.zip") as z, pytest.raises(DataError, match="'noise'"):
        z.read("noise", 1000)


def test_the_real_archive(shared_dir, tmp_path):
    path = shared_dir / "data" / "noto-emoji-64.zip"
    if not path.is_file():
        pytest.skip("the archive of Noto emoji is not at hand")
    counts = emoji.convert(path, tmp_path)
    assert counts["captions.jsonl"] > 10_000 and counts["edits.jsonl"] > 4_000
    assert sum(n for k, n in counts.items() if "validation" in k) > 1_000
    document = DocumentsSource(tmp_path / "edits.jsonl")[0]
    assert images.load_pixels(document.items[0]).shape == (64, 64, 3)
