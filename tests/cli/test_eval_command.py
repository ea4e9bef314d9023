"""`mogao eval`: what it prints, writes and refuses. The sampler knows the truth."""

from __future__ import annotations

import json
import types

import flax.linen as nn
import jax
import numpy as np
import PIL.Image
import pytest
import tiny_checkpoint
import tiny_system as tiny
from shapes_oracles import Oracle

from mogao_jax import compile_cache
from mogao_jax.cli.main import main
from mogao_jax.evals.proportion import Proportion
from mogao_jax.models import modules
from mogao_jax.sampling import loading, pipeline
from mogao_jax.sampling.requests import Result
from mogao_jax.sequence.document import Image
from mogao_jax.worlds.shapes.evals import validation
from mogao_jax.worlds.shapes.scene import WORLDS


@pytest.fixture
def loaded(monkeypatch):
    """The arguments that a model was loaded and a sampler was made with."""
    seen = types.SimpleNamespace(load=None, model=None, batch_size=None, sampler=Oracle())
    seen.sampler.num_compilations = 0

    def load_model(path, **arguments):
        seen.load = (path, arguments)
        made = tiny.load_modules(tiny.config(images={"max_pixels": 4096, "max_side": 80}))
        return loading.Model(made, {}, None, tiny.TOKENIZER, path, 12, "ema")

    def make_sampler(model, batch_size):
        seen.model, seen.batch_size = model, batch_size
        return seen.sampler

    monkeypatch.setattr(loading, "load_model", load_model)
    monkeypatch.setattr(pipeline, "make_sampler", make_sampler)
    monkeypatch.setattr(compile_cache, "keep_compiled_programs", lambda: None)
    return seen


def test_table_and_files(loaded, tmp_path, capsys):
    out = tmp_path / "new" / "scores"
    arguments = ["eval", "shapes", "--tasks", "t2i,qa", "--per-category", "1", "--out", str(out),
                 "--steps", "7", "--guidance", "3", "--image-guidance", "2", "--solver", "heun",
                 "--seed", "4", "--batch-size", "5"]  # fmt: skip
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert "Scores of demo" in said.out and "color attribution" in said.out
    assert "ema parameters after 12 steps" in said.out and "Stories" not in said.out
    assert sorted(p.name for p in out.iterdir()) == ["grid.html", "grid.png", "scores.json"]
    record = json.loads((out / "scores.json").read_text())
    assert (record["name"], record["role"], record["settings"]["steps"]) == ("demo", "demo", 7)
    assert loaded.load == ("demo", {"weights": "best"}) and loaded.batch_size == 5
    options = loaded.sampler.requests[0].options
    assert (options.num_steps, options.solver) == (7, "heun")
    assert (options.guidance_scale, options.image_guidance_scale) == (3, 2)
    assert loaded.sampler.requests[0].seed == 4 * 2**20
    canvases = {j.document.items[0].pixels.shape for j in loaded.sampler.requests[6:]}
    assert max(max(shape) for shape in canvases) <= 80  # of the world that the model knows


def test_beside_and_own(loaded, tmp_path, capsys):
    first = ["eval", "shapes", "--tasks", "qa", "--per-category", "1", "--checkpoint", "runs/x"]
    assert main([*first, "--out", str(tmp_path)]) == 0
    assert main([*first, "--beside", str(tmp_path / "scores.json")]) == 0
    assert main([*first, "--out", str(tmp_path), "--suffix", "_2"]) == 0
    files = {f"{name}{n}" for n in ("", "_2") for name in ("scores", "grid")}
    assert {p.stem for p in tmp_path.iterdir()} == files
    header = [x for x in capsys.readouterr().out.splitlines() if "95% interval" in x]
    assert [line.split()[-1] for line in header] == ["chance", "own", "chance"]


def test_untrained(loaded, capsys, monkeypatch):
    monkeypatch.setattr(tiny, "config", lambda **sections: tiny.CONFIG)

    def init_params(config, model, key):
        assert config is tiny.CONFIG and model is not None
        return {"w": nn.Partitioned(jax.random.normal(key, (2,)), ("embed",))}

    monkeypatch.setattr(modules, "init_params", init_params)
    assert main(["eval", "shapes", "--untrained", "--tasks", "qa", "--per-category", "1"]) == 0
    assert "(untrained)" in capsys.readouterr().out
    expected = jax.random.normal(jax.random.key(0), (2,))
    np.testing.assert_array_equal(loaded.model.params["w"], expected)


def test_guidance_table(loaded, tmp_path, capsys):
    assert main(["eval", "shapes", "--guidance-table", "--per-category", "1", "--out",
                 str(tmp_path)]) == 0  # fmt: skip
    assert "story repeats" in capsys.readouterr().out
    record = json.loads((tmp_path / "guidance.json").read_text())
    settings = record.pop("table")
    assert record == {
        "name": "demo", "role": "demo", "parameters": "ema parameters after 12 steps",
        "cases per category": 1, "steps": 50, "solver": "euler", "draws first": False,
        "seed": 0, "data seed": 0,
    }  # fmt: skip
    assert not any(r.options.draw_first for r in loaded.sampler.requests)
    scales = [(s["guidance"], s["image_guidance"]) for s in settings]
    assert scales == [(a, b) for a in (1, 3, 7.5) for b in (1, 1.5, 7.5)]


class Interrupted(Oracle):
    """Ctrl-C when so many requests have been served."""

    num_compilations = 0

    def __init__(self, after):
        super().__init__()
        self.after = after

    def sample(self, requests, *arguments):
        if len(self.requests) >= self.after:
            raise KeyboardInterrupt
        return super().sample(requests, *arguments)


def test_finished_tasks_outlive_an_interrupt(loaded, tmp_path, capsys):
    loaded.sampler = Interrupted(after=6)
    assert main(["eval", "shapes", "--tasks", "t2i,qa", "--per-category", "1", "--out",
                 str(tmp_path)]) == 130  # fmt: skip
    said = capsys.readouterr().out
    assert "color attribution" in said and "without qa" in said and "Questions" not in said
    record = json.loads((tmp_path / "scores.json").read_text())
    assert record["settings"]["incomplete"] == "without qa"
    assert {r["task"] for r in record["rows"]} == {"t2i"} and (tmp_path / "grid.png").is_file()


def test_an_interrupted_guidance_table(loaded, tmp_path, capsys, monkeypatch):
    loaded.sampler = Interrupted(after=1)
    arguments = ["eval", "shapes", "--guidance-table", "--per-category", "1", "--suffix", "_x",
                 "--draw-first", "--seed", "3", "--out", str(tmp_path)]  # fmt: skip
    assert main(arguments) == 130 and not list(tmp_path.iterdir())
    loaded.sampler.after = 40  # of the second setting
    assert main(arguments) == 130
    assert "story repeats" in capsys.readouterr().out
    record = json.loads((tmp_path / "guidance_x.json").read_text())
    assert (record["draws first"], record["seed"]) == (True, 3)
    assert len(record["table"]) < 9
    first = loaded.sampler.requests[0]
    assert first.options.draw_first and first.seed == 3 * 2**20


def test_home_folders(loaded, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    arguments = ["eval", "shapes", "--tasks", "qa", "--per-category", "1"]
    assert main([*arguments, "--out", "~/scores"]) == 0
    assert (tmp_path / "scores" / "scores.json").is_file() and not (tmp_path / "~").exists()
    assert main([*arguments, "--beside", "~/scores/scores.json"]) == 0


@pytest.mark.parametrize("refused, status", [(100, 0), (98, 1)])
def test_validation_has_a_bar(monkeypatch, tmp_path, capsys, refused, status):
    found = validation.Validation("t2i", "x", Proportion(100, 100), Proportion(refused, 100), {})
    monkeypatch.setattr(validation, "distortions", lambda: {"rendered": validation.as_rendered})
    monkeypatch.setattr(validation, "trials", lambda *a: [])
    monkeypatch.setattr(validation, "validate", lambda *a: found)
    assert main(["eval", "shapes", "--validate", "--out", str(tmp_path)]) == status
    assert ("passed" in capsys.readouterr().out) == (status == 0)
    record = json.loads((tmp_path / "validation.json").read_text())
    assert [r["world"] for r in record] == [world for world in WORLDS for _ in range(3)]  # tasks


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "draw"], "there is no task 'draw'"),
        (["--tasks", ","], "there is no task"),
        (["--per-category", "0"], "--per-category must be 1 or more"),
        (["--batch-size", "-1"], "--batch-size must be 1 or more"),
        (["--steps", "0"], "num_steps"),
        (["--steps", "x"], "--steps: invalid int value: 'x'; see `mogao eval shapes --help`"),
        (["--steps", "99999999"], "num_steps is 99999999"),
        (["--guidance", "nan"], "guidance_scale is nan"),
        (["--image-guidance", "-1"], "image_guidance_scale is -1.0"),
        (["--suffix", "../x"], "--suffix is '../x'"),
        (["--beside", "/nowhere/scores.json"], "cannot be read"),
        (["--out", "/proc/scores"], "--out"),
        (["--out", "~nosuchuser/x"], "'~nosuchuser/x': there is no such home folder"),
        (["--seed", "-1"], "--seed is -1"),
        (["--data-seed", "-1"], "--data-seed is -1"),
        (["--guidance-table", "--tasks", "qa"], "--guidance-table has no use for --tasks"),
        (["--guidance-table", "--guidance", "2"], "has no use for --guidance"),
        (["--guidance-table", "--beside", "x.json"], "has no use for --beside"),
        (["--validate", "--guidance-table"], "has no use for --validate"),
        (["--validate", "--checkpoint", "x", "--draw-first"], "--checkpoint, --draw-first"),
        (["--validate", "--seed", "2"], "has no use for --seed"),
    ],
)
def test_refusals(loaded, capsys, arguments, message):
    assert main(["eval", "shapes", *arguments]) == 2
    said = capsys.readouterr()
    assert message in said.err and "Traceback" not in said.err
    assert loaded.load is None  # before time is spent


def test_a_missing_checkpoint(capsys, monkeypatch):
    monkeypatch.setattr(compile_cache, "keep_compiled_programs", lambda: None)
    assert main(["eval", "shapes", "--checkpoint", "/nowhere"]) == 2
    assert "there is no checkpoint '/nowhere'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_model(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compile_cache, "keep_compiled_programs", lambda: None)
    file = tiny_checkpoint.write_file(tmp_path / "tiny.safetensors")
    assert main(["eval", "shapes", "--checkpoint", str(file), "--tasks", "t2i", "--steps", "1",
                 "--per-category", "1", "--draw-first", "--untrained", "--out", str(tmp_path)]
                ) == 0  # fmt: skip
    record = json.loads((tmp_path / "scores.json").read_text())
    overall = next(r for r in record["rows"] if r["group"] == "overall")
    assert overall["total"] == 6 and overall["right"] == 0 and record["grid"] == "grid.png"
    assert np.isfinite(overall["high"])


class Draws:
    """White images, of requests that a sampler could serve."""

    def sample(self, requests):
        pixels = [np.full((*r.options.size, 3), 255, np.uint8) for r in requests]
        return [
            Result((Image(pixels=p),), "max_images", r.document)
            for r, p in zip(requests, pixels, strict=True)
        ]


def test_unreadable_images_and_long_prompts_are_left_out(loaded, tmp_path, capsys):
    loaded.sampler = Draws()
    PIL.Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    lines = []
    for number in range(40):
        path = "gone.png" if number % 4 == 0 else "a.png"
        text = "x" * 5000 if number % 4 == 1 else f"image {number}"
        items = [{"type": "text", "text": text, "role": "user"},
                 {"type": "image", "path": path, "role": "assistant"}]  # fmt: skip
        lines.append(json.dumps({"id": str(number), "items": items}))
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    command = ["eval", "retrieval", "--documents", str(tmp_path / "d.jsonl"), "--checkpoint", "x",
               "--num", "400"]  # fmt: skip
    assert main(command) == 0
    said = capsys.readouterr()
    counted = int(said.err.split(" documents left out of what is asked for")[0].split()[-1])
    served = int(said.out.split(" images of ")[0].split()[-1])
    assert counted > 10 and served > 10 and counted + served <= 40
    assert "gone.png" in said.err and "--max-length" in said.err
    assert "1 entry left out of the images that are compared with" in said.err
    assert main([*command, "--seed", "-1"]) == 2
    assert "--seed is -1" in capsys.readouterr().err


def test_benchmarks_are_shown_and_unknown_ones_named(capsys):
    assert main(["eval"]) == 2
    assert main(["eval", "--help"]) == 0
    assert capsys.readouterr().out.count("usage: mogao eval BENCHMARK") == 2
    assert main(["eval", "geneval"]) == 2
    said = capsys.readouterr().err
    assert "'geneval'" in said and "shapes" in said and "retrieval" in said
    assert main(["eval", "pictures", "--documents", "x"]) == 2  # its old name
    assert "is called 'mogao eval retrieval' now" in capsys.readouterr().err
