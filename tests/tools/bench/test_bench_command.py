"""`mogao bench sampling` and `soak` on a miniature: tables, numbers and messages."""

from __future__ import annotations

import json

import jax
import pytest
import tiny_checkpoint as checkpoint

from mogao_jax import compile_cache
from mogao_jax.cli.main import main
from mogao_jax.tools.bench import speed


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    monkeypatch.setattr(compile_cache, "keep_compiled_programs", lambda: None)
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return str(checkpoint.write_file(tmp_path_factory.mktemp("exported") / "tiny.safetensors"))


@pytest.mark.slow
def test_sampling(file, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(speed, "BATCH", 2)
    monkeypatch.setattr(speed, "MIXED", 2)
    out = tmp_path / "bench.json"
    argv = ["--checkpoint", file, "--rounds", "2", "--steps", "2", "--tokens", "4"]
    assert main(["bench", "sampling", *argv, "--json", str(out)]) == 0
    text = capsys.readouterr().out
    record = json.loads(out.read_text())
    assert record["setting"] == {"rounds": 2, "num_steps": 2, "num_tokens": 4}
    figures = record["figures"]
    assert len(figures) == 10
    for figure in figures:
        assert figure["what"] in text and figure["value"] >= 0
    assert [f["bar"] for f in figures] == [1.1, 1.1, *[None] * 8]
    assert text.count("held") + text.count("MISSED") == 2
    assert "processor" in text and "jax" in text
    flow, passes = (record["seconds"][f"image: {n}"] for n in ("flow", "bare steps"))
    ratios = sorted(a / b for a, b in zip(flow, passes, strict=True))
    assert figures[0]["value"] == pytest.approx(sum(ratios) / 2)
    assert figures[8]["value"] > 0  # programs of mixed requests


@pytest.mark.slow
def test_soak(file, tmp_path, capsys):
    out = tmp_path / "soak.json"
    argv = ["--checkpoint", file, "--num", "10", "--batch-size", "3", "--steps", "2"]
    assert main(["bench", "soak", *argv, "--json", str(out)]) == 0
    text = capsys.readouterr().out
    record = json.loads(out.read_text())
    assert "20 mixed generations" in text and "results in bad form: 0" in text
    assert sum(record["stops"].values()) == 20 and not record["broken"]
    assert record["recompiled"] == 0 and record["points"][-1]["done"] == 20
    first = [p["compilations"] for p in record["points"] if p["done"] >= 10]
    assert all(c == first[0] for c in first)  # the second time, everything is there
    assert all(p["memory"] > 2**24 for p in record["points"])
    for name in ("prefill", "integrate_flow"):
        assert 0 < record["points"][-1]["compilations"][name] == record["shapes"][name]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sampling", "--rounds", "0"], "--rounds"),
        (["soak", "--batch-size", "0"], "--batch-size"),
        (["sampling", "--only", "speed"], "compilations"),
        (["sampling", "--config=absent.py"], "absent.py"),
        (["sampling", "--config=configs/quickstart.py", "--checkpoint", "x"], "not both"),
        (["soak", "--checkpoint", "absent"], "absent"),
        (["soak", "--json", "absent/x.json"], "--json"),
    ],
)
def test_messages(arguments, words, capsys):
    assert main(["bench", *arguments]) == 2
    said = capsys.readouterr()
    assert words in said.err and not said.out
