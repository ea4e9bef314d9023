"""The examples run, and the notebook is one that was run to its end."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

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
def test_the_notebook_and_the_script_that_trains(tmp_path):
    """In a process of their own, which has one device, as a user's has."""
    script = "\n".join("".join(cell["source"]) for cell in cells()) + (
        "\nassert drawn.result.images and result.finished"
        f"\nimport sys; sys.path.insert(0, {str(EXAMPLES)!r}); import finetune"
        '\nfinetune.main("flags", "a flag of red over blue", "0.02", "runs/script")'
    )
    environment = {**os.environ, "MOGAO_MINUTES": "0.02", "PYTHONPATH": str(EXAMPLES.parent)}
    environment["XLA_FLAGS"] = environment["XLA_FLAGS"].replace("count=8", "count=1")
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, text=True,
        capture_output=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "drawn: " in done.stdout and (tmp_path / "runs/script/drawn.png").is_file()


def test_the_notebook_was_run_to_its_end():
    numbers = [cell["execution_count"] for cell in cells()]
    assert numbers == [*range(1, len(numbers) + 1)]
    outputs = [output for cell in cells() for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    shown = json.dumps(outputs)
    assert shown.count("data:image/png;base64,") >= 4  # results show their images
    assert "/home/" not in shown and "/work/" not in shown
