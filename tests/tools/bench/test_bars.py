"""The arithmetic of the bars, and their command; what needs a compiler is in launch/bench.sh."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import pytest

from mogao_jax.cli import main
from mogao_jax.config import load_config
from mogao_jax.sequence.batch import Sizes
from mogao_jax.sequence.packing import budgets
from mogao_jax.sharding.mesh import nearest_on_torus
from mogao_jax.tools.bench import bars
from mogao_jax.tools.bench.command import BENCHMARKS, run_bars

CONFIGS = pathlib.Path(__file__).resolve().parents[3] / "configs"


@pytest.fixture(scope="module")
def config():
    return load_config(CONFIGS / "mogao_7b_stage3.py")


@pytest.mark.parametrize("tokens", [8192, 16384, 32768, 262144])
def test_rows_have_the_length_that_the_bar_names(config, tokens):
    sizes = budgets(bars.with_rows(config, tokens).packing)
    assert sizes.und + sizes.clean + sizes.noised == tokens
    # Room for every image's ViT tokens, and whole blocks of 128 in every part.
    assert sizes.vit_patches / 4 < sizes.und
    assert not any(n % 128 for n in sizes[:3])
    assert sizes.noised >= sizes.images * 1024


def test_the_recipe_has_the_rows_that_are_measured(config):
    assert budgets(config.packing) == Sizes(*bars.BUDGETS[16384])
    other = bars.with_rows(config, 8192)
    assert dataclasses.replace(other, packing=config.packing) == config


def test_one_row_per_device_of_the_batch_axes(config):
    found = bars.on_mesh(config, remat="keep_matmuls", fsdp=4, context=16)
    assert found.train.global_batch_rows == 4 and found.train.grad_accum_steps == 1
    assert (found.mesh.data, found.mesh.fsdp, found.mesh.context) == (1, 4, 16)
    assert found.model.remat == "keep_matmuls"
    for fsdp, context in bars.LONG_MESHES:
        assert nearest_on_torus((1, fsdp, 1, context), (4, 4, 4)) == (1, fsdp, 1, context)


def test_every_bar_has_its_command():
    assert list(bars.BARS) == [name for name, b in BENCHMARKS.items() if b.run is run_bars]


def test_figures_stand_beside_their_bars(config, tmp_path, capsys, monkeypatch):
    rows = [bars.Row("a", "1.2", "<= 1", False), bars.Row("b", "0.5", "", None)]
    monkeypatch.setitem(bars.BARS, "tiles", lambda config, say: iter(rows))
    path = tmp_path / "bars.json"
    flag = f"--config={CONFIGS / 'mogao_7b_stage3.py'}"
    assert main.main(["bench", "tiles", flag, "--json", str(path)]) == 1  # a bar is not met
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ["a", "1.2", "<=", "1", "NOT", "MET"]
    assert out[1].split() == ["b", "0.5"]
    assert [r["is_met"] for r in json.loads(path.read_text())] == [False, None]
    monkeypatch.setitem(bars.BARS, "tiles", lambda config, say: iter(rows[1:]))
    assert main.main(["bench", "tiles", flag]) == 0
