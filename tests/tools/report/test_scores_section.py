"""The report's scores: which models, told apart, and nothing from broken or foreign files."""

from __future__ import annotations

import json
import os

import PIL.Image
import pytest

from mogao_jax.evals.proportion import Proportion
from mogao_jax.tools.report import command
from mogao_jax.tools.report.results_section import as_text, compare, scores_section
from mogao_jax.tools.report.run_folder import Run, load_run
from mogao_jax.worlds.shapes.evals import saving, scores
from mogao_jax.worlds.shapes.evals.scores import OVERALL, Row, Scores

EVIL = "<script>alert(1)</script>"


def scored(name, role, right=3):
    rows = tuple(
        Row("t2i", group, "right", Proportion(right, 4), 0.25) for group in ("counting", OVERALL)
    ) + (
        Row("edit", OVERALL, "done", Proportion(1, 2)),
        Row("edit", OVERALL, "kept", Proportion(2, 2)),
    )
    return Scores(name, role, rows, {"steps": 50})


@pytest.fixture
def run(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "split": "train", "flow_loss": 1.0}\n')
    return load_run(tmp_path)


def test_models_are_told_apart(run: Run):
    saving.save(scored("demo", "demo"), run.workdir, "_demo")
    saving.save(scored(EVIL, "own", right=1), run.workdir)
    saving.save(scored("x", "untrained", right=0), run.workdir, "_untrained")
    section = scores_section(run)
    assert [e["role"] for e in section] == ["own", "untrained", "demo"]
    assert "not trained in this run" in section[2]["heading"]
    table = section[0]["tables"][0]
    assert table["title"] == scores.TITLES["t2i"]
    assert table["lines"][-1] == ["overall", "25.0", "4.6 .. 69.9", "4", "25.0"]
    html = command.render(run)
    assert 'id="scores"' in html and EVIL not in html and "&lt;script&gt;" in html
    assert html.index("The model of this run") < html.index("The demo checkpoint")


def test_no_scores_no_section(run: Run):
    assert scores_section(run) == [] and 'id="scores"' not in command.render(run)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"role": "own", "tables": 3}', "\x00"])
def test_other_files_are_left_out(run: Run, text):
    (run.workdir / "scores_x.json").write_text(text)
    assert scores_section(run) == []


def test_only_pngs_of_the_folder_itself_are_shown(run: Run, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "secret.png"
    PIL.Image.new("RGB", (4, 4)).save(outside)
    record = scores.to_json(scored("m", "own"))

    def shown(grid):
        (run.workdir / "scores.json").write_text(json.dumps({**record, "grid": grid}))
        return scores_section(run)[0]["grid"]

    os.symlink(outside, run.workdir / "link.png")
    (run.workdir / "text.png").write_text("no image")
    PIL.Image.new("RGB", (4, 4)).save(run.workdir / "grid.png")
    assert shown("grid.png").startswith("data:image/png;base64,")
    for name in ("", "missing.png", str(outside), "../outside/secret.png", "link.png", "text.png"):
        assert shown(name) is None


def test_models_stand_beside_each_other_where_their_worlds_are_one(run: Run):
    def save(role, right, world, suffix):
        found = scored("m", role, right)
        settings = {"world": world}
        saving.save(Scores("m", role, found.rows, settings), run.workdir, suffix)

    save("own", 3, "novel", "")
    save("untrained", 0, "novel", "_untrained")
    save("demo", 2, "novel", "_demo")
    save("own", 4, "grid", "_old")  # another world: left out
    table = compare(scores_section(run))
    assert table["columns"] == ["trained", "untrained", "demo", "chance"]
    rows = {row["name"]: row["cells"] for row in table["rows"]}
    assert [value for value, _ in rows["counting"]] == ["75", "0", "50", "25.0"]
    assert rows["rest kept"][0] == ("100", "34, 100") and rows[scores.TITLES["edit"]] == []
    first, *_, last = as_text(table).splitlines()
    assert first.split() == ["trained", "untrained", "demo", "chance"]
    assert last.split()[:3] == ["rest", "kept", "100"]
    assert as_text(compare([])) == ""
