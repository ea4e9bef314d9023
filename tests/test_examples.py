"""The examples run, and the notebook is one that was run to its end."""

from __future__ import annotations

import importlib.util
import json
import pathlib

import pytest

from mogao_jax.sequence.document import Image

EXAMPLES = pathlib.Path(__file__).resolve().parents[1] / "examples"


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cells() -> list[dict]:
    notebook = json.loads((EXAMPLES / "tour.ipynb").read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_chat(tmp_path, capsys):
    document = load("chat").main("a red circle", "paint the circle green.", folder=str(tmp_path))
    drawn = [i for i in document.items if isinstance(i, Image)]
    assert len(drawn) == 2 and (tmp_path / "2.png").is_file()
    assert "> paint the circle green." in capsys.readouterr().out


@pytest.mark.slow
def test_the_notebook_and_the_script_that_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOGAO_MINUTES", "0.02")
    names: dict = {}
    for cell in cells():
        exec(compile("".join(cell["source"]), "tour.ipynb", "exec"), names)  # noqa: S102
    assert names["drawn"].result.images and names["result"].finished
    load("finetune").main("flags", "a flag of red over blue", "0.02", "runs/script")
    assert (tmp_path / "runs/script/drawn.png").is_file()
    assert "drawn: " in capsys.readouterr().out


def test_the_notebook_was_run_to_its_end():
    numbers = [cell["execution_count"] for cell in cells()]
    assert numbers == [*range(1, len(numbers) + 1)]
    outputs = [output for cell in cells() for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    shown = json.dumps(outputs)
    assert shown.count("data:image/png;base64,") >= 4  # results show their images
    assert "/home/" not in shown and "/work/" not in shown
