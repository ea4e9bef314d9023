"""`mogao sample`: what it writes, prints and refuses. The sampler itself is a fake."""

from __future__ import annotations

import html.parser
import io
import json
import pathlib
import sys

import numpy as np
import PIL.Image
import pytest
import tiny_checkpoint as checkpoint
from fake_sampler import FakeSampler

from mogao_jax import compile_cache
from mogao_jax import images as image_ops
from mogao_jax.cli.main import main
from mogao_jax.errors import CheckpointError
from mogao_jax.sampling import loading
from mogao_jax.sampling import pipeline as generator_lib
from mogao_jax.sampling.requests import GeneratedImage
from mogao_jax.sequence.document import Image, Text, from_json


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return checkpoint.write_file(tmp_path_factory.mktemp("exported") / "tiny.safetensors")


@pytest.fixture
def sampler(monkeypatch):
    fake = FakeSampler()
    monkeypatch.setattr(generator_lib, "make_sampler", lambda *arguments: fake)
    monkeypatch.setattr(loading.Opened, "load", _load_once)
    monkeypatch.setattr(compile_cache, "keep_compiled_programs", lambda: None)
    return fake


def _load_once(opened, *, _load=loading.Opened.load, _loaded={}):  # noqa: B006
    if opened.name not in _loaded:
        _loaded[opened.name] = _load(opened)
    return _loaded[opened.name]


@pytest.fixture
def sample(file, sampler, tmp_path, monkeypatch):
    """Runs the command in an empty folder, with the output in out/; returns its status."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, out="out"):
        place = ["--out", out] if out else []
        return main(["sample", "--checkpoint", str(file), "--steps", "2", *place, *arguments])

    return run


@pytest.fixture
def refused(sample, sampler, capsys, tmp_path):
    """Runs the command, which must end with one message before anything is sampled or written."""

    def run(*arguments) -> str:
        assert sample(*arguments) == 2
        said = capsys.readouterr()
        assert "Traceback" not in said.err and not said.out
        assert not sampler.batches and not (tmp_path / "out").exists()
        return said.err

    return run


def save(path, mode="RGB", size=(32, 32), **arguments):
    PIL.Image.new(mode, size, **arguments).save(path)
    return str(path)


def read(path) -> list:
    return list(from_json(path.read_text(), base_dir=path.parent, place=path.name).items)


# ---------------------------------------------------------------------------------------- output


def test_a_prompt_becomes_images_a_document_and_a_page(sample, sampler, tmp_path, capsys):
    assert sample("a red circle", "--size", "16x32", "--seed", "9") == 0
    (request,) = sampler.batches[0]
    assert request.document.items == (Text("a red circle", role="user", loss=False),)
    assert (request.seed, request.options.size) == (9, (16, 32))
    out = tmp_path / "out"
    names = {p.name for p in out.iterdir()}
    assert names == {"001.json", "001-1.png", "index.html", "run.json"}
    prompt, before, image, after = read(out / "001.json")
    assert prompt == request.document.items[0] and before.text.startswith("look")
    pixels = image_ops.load_pixels(image)
    np.testing.assert_array_equal(pixels, np.full((16, 32, 3), 9, np.uint8))
    assert image.role == after.role == "assistant"
    said = capsys.readouterr()
    assert said.out == f"look:  \n{pathlib.Path('out/001-1.png')}\nthat is all. \n"
    last = said.err.strip().splitlines()[-1]
    assert "1 image" in last and "tokens of text" in last and "5 compilations" in last
    run = json.loads((out / "run.json").read_text())
    document = {"file": "001.json", "id": "prompt", "seed": 9, "given": 1, "stop": "end"}
    assert run["documents"] == [document]
    assert run["num_steps"] == 2 and run["step"] == checkpoint.STEP


def test_what_was_written_can_be_fed_back_in(sample, sampler, tmp_path):
    assert sample("a red circle") == 0
    assert sample("--document", "out/001.json", "now a blue one", out="again") == 0
    items = sampler.batches[1][0].document.items
    assert [type(i) for i in items] == [Text, Text, Image, Text, Text]
    assert items[-1] == Text("now a blue one", role="user", loss=False)
    names = {p.name for p in (tmp_path / "again").iterdir()}
    assert {"001-1.png", "001-2.png", "001.json"} <= names
    # The first image, which was the prompt's, is still the first; pixel for pixel.
    first, second = (tmp_path / d / "001-1.png" for d in ("out", "again"))
    assert first.read_bytes() == second.read_bytes()


class _Page(html.parser.HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags, self.text, self.sources = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [v for k, v in attrs if k in ("src", "href")]

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_and_escapes_everything(sample, sampler, tmp_path):
    nasty = "<script>alert(1)</script> & \"quotes\" {{ 7 * 7 }} <img src='http://x/y.png'>"
    sampler.script = (nasty, "</div><h1>")
    assert sample(nasty, "--image", save(tmp_path / "a.png"), "--num", "2") == 0
    page = _Page((tmp_path / "out" / "index.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags and page.tags.count("h1") == 1
    text = "".join(page.text)
    assert text.count(nasty) == 2 * 3  # title, prompt and answer of both documents
    assert page.tags.count("img") == 4 and len(page.sources) == 4
    for source in page.sources:
        assert source.startswith("data:image/png;base64,")


def test_several_documents_are_told_apart(sample, sampler, tmp_path, capsys):
    (tmp_path / "b.jsonl").write_text('"one"\n\n{"items": [{"type": "text", "text": "two"}]}\n')
    assert sample("--batch", "b.jsonl", "--num", "2", "--batch-size", "3", "--seed", "5") == 0
    assert [len(b) for b in sampler.batches] == [3, 1]
    requests = [r for b in sampler.batches for r in b]
    assert [(r.document.items[0].text, r.seed) for r in requests] == [
        ("one", 5), ("one", 6), ("two", 5), ("two", 6)]  # fmt: skip
    assert requests[0].document.items[0].role == "user"
    assert requests[2].document.items[0].role is None
    assert requests[2].document.id == "b.jsonl:3"
    lines = capsys.readouterr().out.splitlines()
    for number in range(1, 5):
        assert [line for line in lines if line.startswith(f"00{number}: ")] == [
            f"00{number}: look:", f"00{number}: out/00{number}-1.png", f"00{number}: that is all."
        ]  # fmt: skip
        assert (tmp_path / "out" / f"00{number}.json").is_file()


def test_default_folders_are_named_after_the_prompt(sample, tmp_path):
    for _ in range(2):
        assert sample("../A red/circle?!", out=None) == 0
    assert {p.name for p in (tmp_path / "samples").iterdir()} == {"a-red-circle", "a-red-circle-2"}


def test_done_batches_stay_when_a_later_one_fails(sample, sampler, tmp_path, monkeypatch):
    class Interrupt(KeyboardInterrupt):
        pass

    whole = FakeSampler.sample

    def second_fails(self, requests, on_event=None):
        if len(self.batches) == 1:
            raise Interrupt
        return whole(self, requests, on_event)

    monkeypatch.setattr(FakeSampler, "sample", second_fails)
    assert sample("go", "--num", "3", "--batch-size", "1") == 130
    assert {"001.json", "index.html", "run.json"} <= {p.name for p in (tmp_path / "out").iterdir()}
    assert len(json.loads((tmp_path / "out" / "run.json").read_text())["documents"]) == 1


def test_what_is_finished_is_kept_when_its_batch_is_interrupted(
    sample, sampler, tmp_path, monkeypatch
):
    whole = FakeSampler.serve_one

    def third_is_cut(self, index, request, tell):
        def interrupt(index, event):
            tell(index, event)
            if index == 2 and isinstance(event, GeneratedImage):
                raise KeyboardInterrupt

        return whole(self, index, request, interrupt)

    monkeypatch.setattr(FakeSampler, "serve_one", third_is_cut)
    assert sample("go", "--num", "4", "--seed", "5") == 130
    out = tmp_path / "out"
    assert {p.name for p in out.glob("*.json")} == {"001.json", "002.json", "run.json"}
    assert [i for i in read(out / "002.json") if isinstance(i, Image)]
    run = json.loads((out / "run.json").read_text())
    assert [(d["file"], d["seed"]) for d in run["documents"]] == [("001.json", 5), ("002.json", 6)]
    assert run["images"] == 2


def files(folder) -> dict:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_a_folder_holds_one_run(sample, sampler, tmp_path, capsys):
    assert sample("a red circle", "--num", "3") == 0
    (tmp_path / "out" / "notes.txt").write_text("mine")
    before = files(tmp_path / "out")
    assert sample("a star") == 2
    said = capsys.readouterr().err
    assert "'out'" in said and "--out" in said and "--overwrite" in said
    assert files(tmp_path / "out") == before and len(sampler.batches) == 1
    assert sample("a star", "--overwrite") == 0
    assert set(files(tmp_path / "out")) == {
        "001.json", "001-1.png", "index.html", "run.json", "notes.txt"
    }  # fmt: skip
    assert read(tmp_path / "out" / "001.json")[0].text == "a star"


def test_images_alone_are_what_an_earlier_run_left(sample, sampler, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    save(tmp_path / "out" / "001-1.png")
    assert sample("go") == 2 and not sampler.batches
    assert "001-1.png" in capsys.readouterr().err


def test_what_is_read_is_not_overwritten(sample, sampler, tmp_path, capsys):
    assert sample("a red circle") == 0
    before = files(tmp_path / "out")
    (tmp_path / "b.jsonl").write_text('{"prompt": "go", "image": "out/001-1.png"}\n"other"\n')
    for given in (
        ["--document", "out/001.json", "more"],
        ["--image", "out/001-1.png", "what is it?"],
        ["--batch", "b.jsonl"],
    ):
        assert sample(*given, "--overwrite") == 2
        assert "give another folder with --out" in capsys.readouterr().err
        assert files(tmp_path / "out") == before
    assert len(sampler.batches) == 1


def test_nothing_is_removed_for_a_run_that_cannot_begin(sample, tmp_path, monkeypatch):
    assert sample("a red circle") == 0
    before = files(tmp_path / "out")
    assert sample("x" * 2000, "--overwrite") == 2
    monkeypatch.setattr(loading.Opened, "load", _damaged)
    assert sample("a star", "--overwrite") == 2
    assert files(tmp_path / "out") == before


def _damaged(opened):
    raise CheckpointError("the parameters are damaged.")


# --------------------------------------------------------------------------------------- options


def test_options_reach_the_sampler(sample, sampler):
    arguments = (
        "--guidance 3 --image-guidance 2 --guidance-interval 0.1 0.9 --solver heun "
        "--temperature 0.7 --top-p 0.9 --top-k 40 --max-images 3 --max-tokens 60"
    )
    assert sample("go", *arguments.split()) == 0
    options = sampler.batches[0][0].options
    assert (options.guidance_scale, options.image_guidance_scale) == (3.0, 2.0)
    assert options.guidance_interval == (0.1, 0.9) and options.solver == "heun"
    assert (options.temperature, options.top_p, options.top_k) == (0.7, 0.9, 40)
    assert (options.max_images, options.max_tokens, options.num_steps) == (3, 60, 2)
    assert not options.draw_first and options.allow_images


def test_longer_contexts(sample, sampler):
    assert sample("x" * 2000, "--max-context", "3000") == 0
    assert len(sampler.batches[0][0].document.items[0].text) == 2000


def test_tasks(sample, sampler, tmp_path):
    image = save(tmp_path / "a.png")
    seen = []

    def last(*arguments):
        assert sample(*arguments, out=f"out{len(seen)}") == 0
        seen.append(sampler.batches[-1][0])
        return seen[-1].options, seen[-1].document.items

    options, _ = last("--task", "t2i", "a cat")
    assert options.draw_first and options.max_images == 1
    options, items = last("--task", "qa", "--image", image, "what is it?")
    assert not options.allow_images and isinstance(items[0], Image) and items[0].role == "user"
    options, items = last("--task", "clip", "--frames", "3", "--image", image, "it moves")
    assert options.draw_first and options.max_images == 3
    assert [i.role for i in items] == [None, None]
    options, _ = last("--task", "edit", "--image", image, "--max-images", "2", "make it red")
    assert options.draw_first and options.max_images == 2
    options, items = last("--image", image, "--image", image)
    assert len(items) == 2 and not options.draw_first


def test_aspects_are_sizes_of_the_model(sample, sampler):
    assert sample("go", "--aspect", "4:3") == 0
    assert sampler.batches[0][0].options.size == (32, 48)
    assert sample("go", "--size", "16", out="second") == 0
    assert sampler.batches[1][0].options.size == (16, 16)


# -------------------------------------------------------------------------------------- images


@pytest.mark.parametrize(
    ("mode", "color", "shown"),
    [
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),  # transparent: on white
        ("L", 77, (77, 77, 77)),
        ("I;16", 77 * 257, (77, 77, 77)),
        ("P", 0, (0, 0, 0)),
    ],
)
def test_any_kind_of_image_is_accepted(sample, sampler, tmp_path, mode, color, shown):
    assert sample("go", "--image", save(tmp_path / "a.png", mode, color=color)) == 0
    pixels = sampler.batches[0][0].document.items[0].pixels
    np.testing.assert_array_equal(pixels, np.broadcast_to(np.uint8(shown), (32, 32, 3)))


def test_large_images_are_made_smaller_and_it_is_said(sample, sampler, tmp_path, capsys):
    assert sample("go", "--image", save(tmp_path / "large.png", size=(300, 200))) == 0
    assert sampler.batches[0][0].document.items[0].pixels.shape == (32, 48, 3)
    said = capsys.readouterr().err
    assert "large.png" in said and "200x300" in said and "32x48" in said


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n cut"])
def test_files_that_are_no_images(refused, tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    message = refused("go", "--image", str(tmp_path / "a.png"))
    assert "a.png" in message and "not an image" in message


def test_images_cut_short_or_missing(refused, tmp_path):
    save(tmp_path / "a.png", size=(64, 64))
    whole = io.BytesIO()
    rng = np.random.default_rng(0)
    PIL.Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(whole, "PNG")
    (tmp_path / "a.png").write_bytes(whole.getvalue()[:2000])
    assert "a.png" in refused("go", "--image", str(tmp_path / "a.png"))
    assert "does not exist" in refused("go", "--image", "none.png")


# -------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], ["give a prompt", "--help"]),
        ([""], ["empty"]),
        (["  \n"], ["empty"]),
        (["go", "--steps", "0"], ["num_steps", "0"]),
        (["go", "--steps", "1.5"], ["--steps", "1.5", "mogao sample --help"]),
        (["go", "--stepz", "2"], ["--stepz", "mogao sample --help"]),
        (["go", "--guidance", "1e9"], ["guidance_scale", "from 0 to 1000"]),
        (["go", "--tokenizer", "nowhere"], ["nowhere", "--tokenizer"]),
        (["go", "--guidance", "-1"], ["guidance_scale", "-1"]),
        (["go", "--guidance", "nan"], ["guidance_scale"]),
        (["go", "--guidance-interval", "0.9", "0.1"], ["guidance_interval"]),
        (["go", "--size", "30x32"], ["30x32", "32x32"]),
        (["go", "--size", "64x64"], ["64x64", "1536 pixels", "32x32"]),
        (["go", "--size", "0"], ["0x0"]),
        (["go", "--size", "large"], ["--size", "large", "48x64"]),
        (["go", "--aspect", "4:0"], ["--aspect", "4:3"]),
        (["go", "--aspect", "wide"], ["--aspect", "wide"]),
        (["go", "--aspect", "1:100000"], ["--aspect"]),
        (["go", "--aspect", "4:3", "--size", "32"], ["--size", "--aspect"]),
        (["go", "--num", "0"], ["--num"]),
        (["go", "--batch-size", "0"], ["--batch-size"]),
        (["go", "--seed", "-1"], ["--seed"]),
        (["go", "--task", "edit"], ["--task edit", "--image"]),
        (["go", "--task", "t2i", "--max-images", "0"], ["draw_first", "max_images"]),
        (["x" * 2000], ["tokens", "112", "Shorten", "--max-length 20"]),
        (["go", "--max-length", "0"], ["max_length", "0", "from 1"]),
        (["go", "--document", "none.json"], ["none.json"]),
        (["go", "--batch", "none.jsonl"], ["--batch", "PROMPT"]),
        (["--batch", "none.jsonl"], ["none.jsonl"]),
    ],
)
def test_refusals(refused, arguments, named):
    message = refused(*arguments)
    for word in named:
        assert word in message, message


def test_checkpoints_that_are_not_there(refused, tmp_path):
    assert "nowhere" in refused("go", "--checkpoint", "nowhere")
    (tmp_path / "bad.safetensors").write_bytes(b"not a model")
    message = refused("go", "--checkpoint", "bad.safetensors")
    assert "bad.safetensors" in message and "damaged" in message


def test_documents_that_cannot_be_read(refused, tmp_path):
    for text, named in (("{", "JSON"), ('{"items": []}', "empty"), ('{"item": 1}', "item")):
        (tmp_path / "d.json").write_text(text)
        message = refused("--document", "d.json")
        assert "d.json" in message and named in message
    outside = {"items": [{"type": "image", "path": "../secret.png"}]}
    (tmp_path / "d.json").write_text(json.dumps(outside))
    assert "leaves the folder" in refused("--document", "d.json")


def _batch(tmp_path) -> pathlib.Path:
    lines = [
        b'"good"',
        b"{broken",
        b'{"items": [{"type": "image", "path": "none.png"}]}',
        b'"' + b"x" * 500 + b'"',
        b'"\xff"',
        b'" "',
        b'"also good"',
        b'{"prompt": "go", "size": "30x32"}',
        b'{"prompt": "go", "steps": "many"}',
        b'{"prompt": "go", "task": "paint"}',
        b'{"prompt": "go", "colour": "red"}',
        b'{"prompt": "go", "image": "../a.png"}',
        b'{"prompt": "go", "seed": -1}',
        b"[1, 2]",
        b'{"prompt": "go", "task": "edit"}',
        b'{"prompt": "go", "guidance_interval": [0, "x"]}',
        b'{"prompt": "go", "task": ["edit"]}',
        b'{"prompt": "go", "guidance": 1' + b"0" * 400 + b"}",
        b'{"prompt": "go", "top_k": 2147483648}',
        b'{"prompt": "go", "temperature": 1e-37}',
        b'{"prompt": "go", "seed": 1' + b"0" * 400 + b"}",
    ]
    path = tmp_path / "b.jsonl"
    path.write_bytes(b"\n".join(lines))
    return path


# fmt: off
_BROKEN = (
    (2, "JSON"), (3, "none.png"), (4, "tokens"), (5, "JSON"), (6, "empty"), (8, "30x32"),
    (9, "num_steps"), (10, "task"), (11, "colour"), (12, "leaves the folder"), (13, "--seed"),
    (14, "text in quotes"), (15, "--image"), (16, "guidance_interval"), (17, "task"),
    (18, "guidance_scale"), (19, "top_k"), (20, "temperature"), (21, "--seed"),
)
# fmt: on


def test_the_other_lines_of_a_batch_are_served(sample, sampler, tmp_path, capsys):
    assert sample("--batch", str(_batch(tmp_path))) == 2
    texts = [r.document.items[0].text for r in sampler.batches[0]]
    assert texts == ["good", "also good"]
    said = capsys.readouterr().err
    for number, word in _BROKEN:
        lines = [line for line in said.splitlines() if line.startswith(f"  line {number}: ")]
        assert len(lines) == 1 and word in lines[0], said
    last = said.strip().splitlines()[-1]
    assert "served 2 prompts, refused 19 (lines 2-6, 8-21;" in last
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert [d["file"] for d in run["documents"]] == ["001.json", "002.json"]
    assert [r["line"] for r in run["refused"]] == [number for number, _ in _BROKEN]


def test_a_strict_batch_is_refused_whole(refused, tmp_path):
    message = refused("--batch", str(_batch(tmp_path)), "--strict")
    for number, word in _BROKEN:
        lines = [line for line in message.splitlines() if f"line {number}:" in line]
        assert len(lines) == 1 and word in lines[0], message
    assert "line 1:" not in message and "leave out --strict" in message


def test_lines_have_options_of_their_own(sample, sampler, tmp_path):
    save(tmp_path / "a.png")
    lines = [
        "a star",
        {"prompt": "two stars", "task": "t2i", "size": "16x32", "seed": 4},
        {"prompt": "make it red", "image": "a.png", "task": "edit", "guidance": 2},
        {"image": ["a.png", "a.png"], "aspect": "1:1", "task": "qa"},
        {"items": [{"type": "text", "text": "it moves"}], "max_images": 3, "id": "clip"},
    ]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, lines)))
    arguments = ("--aspect", "1:2", "--guidance", "5", "--seed", "2", "--num", "2")
    assert sample("--batch", "b.jsonl", *arguments, "--batch-size", "16") == 0
    requests = sampler.batches[0][::2]
    assert [r.seed for r in sampler.batches[0]] == [2, 3, 4, 5, 2, 3, 2, 3, 2, 3]
    tall = (32, 16)
    assert [r.options.size for r in requests] == [tall, (16, 32), tall, (32, 32), tall]
    assert [r.options.guidance_scale for r in requests] == [5, 5, 2, 5, 5]
    assert [r.options.draw_first for r in requests] == [False, True, True, False, False]
    assert [r.options.max_images for r in requests] == [16, 1, 1, 16, 3]
    assert [len(r.document.items) for r in requests] == [1, 1, 2, 2, 1]
    assert [r.document.items[-1].role for r in requests] == ["user"] * 4 + [None]
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert "size" not in run and run["num_steps"] == 2
    assert run["documents"][2]["size"] == [16, 32] and run["documents"][8]["id"] == "clip"


def test_the_commands_own_options_are_refused_once(refused, tmp_path):
    message = refused("--batch", str(_batch(tmp_path)), "--steps", "0")
    assert "num_steps" in message and "line" not in message


def test_batches_of_nothing(refused, tmp_path):
    (tmp_path / "b.jsonl").write_text("\n \n")
    assert "empty" in refused("--batch", "b.jsonl")
    (tmp_path / "b.jsonl").write_text("{\n")
    assert "no line" in refused("--batch", "b.jsonl")


def test_a_folder_that_cannot_be_made(sample, sampler, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert sample("go", out="file/out") == 2
    assert "--out" in capsys.readouterr().err and not sampler.batches


def test_control_characters_of_the_model_do_not_reach_the_terminal(sample, sampler, capsys):
    sampler.script = ("\x1b[2Jred\x07", "done")
    assert sample("go") == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\x07" not in out and "red" in out


def test_without_jinja2_only_the_page_is_missing(sample, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert sample("go") == 0
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"001.json", "001-1.png", "run.json"}
    assert "mogao_jax[demo]" in capsys.readouterr().err
