"""The report's samples: all of what was sampled, inlined, and nothing from outside its folder."""

from __future__ import annotations

import base64
import io
import json
import os

import numpy as np
import PIL.Image
import pytest

from mogao_jax.gallery.folder import PAGE, Folder
from mogao_jax.sequence.document import Document, Image, Text
from mogao_jax.tools.report import command
from mogao_jax.tools.report.results_section import samples_section
from mogao_jax.tools.report.run_folder import Run, load_run

EVIL = "<script>alert(1)</script>"
FACTS = {"checkpoint": EVIL, "step": 7, "weights": "ema", "num_steps": 50,
         "guidance_scale": 7.5, "image_guidance_scale": 1.5}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "split": "train", "flow_loss": 1.0}\n')
    return load_run(tmp_path)


def image(value, height=48, width=64):
    return Image(pixels=np.full((height, width, 3), value, np.uint8), role="user")


def save(run: Run, documents, stop="end", **facts) -> Folder:
    """Writes documents whose first item is the prompt, as `mogao sample` does."""
    folder = Folder(run.workdir / "samples", overwrite=True)
    entries = []
    for number, document in enumerate(documents, start=1):
        name = folder.write_document(number, document).name
        entries.append({"file": name, "id": document.id, "seed": 0, "given": 1, "stop": stop})
    folder.write_run({**FACTS, **facts, "documents": entries})
    return folder


def test_documents_are_shown_in_order_with_their_images(run: Run):
    told = Document((Text(EVIL, "user"), Text("first"), image(9), image(8, 16, 320)), id="tale")
    folder = save(run, [told, Document((Text("b"), Text("c")), id="two")])
    section = samples_section(run)
    first, second = section["documents"]
    assert [first["title"], second["title"]] == ["tale", "two"]
    assert [e.get("text") for e in first["entries"]] == [EVIL, "first", None, None]
    assert [e["given"] for e in first["entries"]] == [True, False, False, False]
    small, large = first["entries"][2:]
    assert (small["width"], small["size"]) == (128, "48 x 64")
    assert (large["width"], large["size"]) == (128, "16 x 320")
    shown = PIL.Image.open(io.BytesIO(base64.b64decode(small["image"].split(",")[1])))
    np.testing.assert_array_equal(np.asarray(shown), told.items[2].pixels)
    assert section["page"] is None
    folder.write_text(PAGE, "x")
    html = command.render(run)
    assert 'id="samples"' in html and "samples/index.html" in html
    assert EVIL not in html and html.count("&lt;script&gt;") == 2
    assert "50 steps of the solver, guidance 7.5 and 1.5" in html


def test_what_was_cut_is_said(run: Run):
    save(run, [Document((Text("a"), Text("b")), id="d")], stop="max_tokens")
    assert samples_section(run)["documents"][0]["stop"] == "cut: too much text"


def test_many_documents_are_counted(run: Run):
    save(run, [Document((Text("a"),), id=str(i)) for i in range(30)])
    section = samples_section(run)
    assert len(section["documents"]) == 24 and section["num_hidden"] == 6


def test_options_that_differ_are_not_named(run: Run):
    folder = save(run, [Document((Text("a"),), id="d")])
    record = json.loads((folder.path / "run.json").read_text())
    for name in ("num_steps", "guidance_scale"):
        del record[name]
    folder.write_run(record)
    assert "steps of the solver" not in command.render(run)


@pytest.mark.parametrize("text", ["", "[]", "{}", "\x00", '{"documents": 3}', "[" * 10**5])
def test_no_samples_no_section(run: Run, text):
    assert samples_section(run) is None and 'id="samples"' not in command.render(run)
    (run.workdir / "samples").mkdir()
    (run.workdir / "samples" / "run.json").write_text(text)
    assert samples_section(run) is None


def test_broken_documents_are_left_out(run: Run):
    good = Document((Text("a"), image(3)), id="good")
    folder = save(run, [good, Document((Text("b"), image(4)), id="bad"), good])
    (folder.path / "002-1.png").write_bytes(b"no image")
    assert [d["title"] for d in samples_section(run)["documents"]] == ["good", "good"]
    (folder.path / "001.json").write_text("{")
    record = json.loads((folder.path / "run.json").read_text())
    folder.write_run({**record, "documents": [3, {}, *record["documents"]]})
    assert len(samples_section(run)["documents"]) == 1


def test_only_files_of_the_folder_itself_are_read(run: Run, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    PIL.Image.new("RGB", (4, 4)).save(outside / "secret.png")
    folder = save(run, [Document((Text("a"), image(3)), id="d")])
    (folder.path / "001-1.png").unlink()
    os.symlink(outside / "secret.png", folder.path / "001-1.png")
    assert samples_section(run) is None
    save(run, [Document((Text("a"),), id="d")])
    record = json.loads((folder.path / "run.json").read_text())
    (outside / "001.json").write_text((folder.path / "001.json").read_text())
    for name in (str(outside / "001.json"), f"../{outside.name}/001.json", ""):
        record["documents"][0]["file"] = name
        folder.write_run(record)
        assert samples_section(run) is None
