"""The report: what it shows, that it escapes everything, and that half a run is enough."""

from __future__ import annotations

import base64
import html.parser
import io
import json
import re

import numpy as np
import PIL.Image
import pytest
from report_rows import EVIL, write_run

from mogao_jax.errors import DataError, EnvironmentProblem
from mogao_jax.sequence.masking import TEXT, VAE_CLEAN, VAE_NOISED, VIT, TokenMeta, dense_mask
from mogao_jax.tools.report import charts, command, data_sample, data_section, summary
from mogao_jax.tools.report.run_folder import load_run


@pytest.fixture
def workdir(tmp_path):
    return write_run(tmp_path)


class _Reader(html.parser.HTMLParser):
    """Collects text and tags, and fails on tags that are not closed in order."""

    VOID = {"meta", "img", "br", "link", "input", "hr"}

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text, self.sources = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [v for k, v in attributes if k in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.text.append(data)


def _read(text):
    reader = _Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


def test_page_shows_the_run(workdir):
    reader = _read(command.write_report(workdir).read_text(encoding="utf-8"))
    words = " ".join(" ".join(reader.text).split())
    for expected in (
        "Finished: 60 steps",
        "1.5 k",  # parameters in all
        "images (flow), all 0.5000 0.7500 2.2500",
        "96.0%",
        "3,050",  # median tokens per second
        "2 x cpu:0",
        "Document 1",
        "learned in full context",
        "data.sources.qa.options.task",
    ):
        assert expected in words
    for chart in ("All losses", "Text, per data source", "Images, per timestep", "Speed"):
        assert chart in words


def test_everything_from_the_run_is_escaped(workdir):
    text = command.write_report(workdir).read_text(encoding="utf-8")
    reader = _read(text)
    assert "script" not in reader.tags and "<script" not in text
    assert EVIL in "".join(reader.text)  # it is shown, as text


def test_page_is_self_contained(workdir):
    text = command.write_report(workdir).read_text(encoding="utf-8")
    sources = _read(text).sources
    assert len(sources) > 8 and all(s.startswith(("data:image/", "#")) for s in sources)
    assert not re.search(r"""(src|href|url\()\s*=?\s*["']?(https?:)?//""", text)


def test_images_are_embedded_as_they_are(workdir):
    sources = _read(command.write_report(workdir).read_text(encoding="utf-8")).sources
    _, arrays = data_sample.load_data_sample(workdir)
    embedded = {
        np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(s.split(",")[1])))).tobytes()
        for s in sources
        if s.startswith("data:image/png")
    }
    assert arrays["image_0"].tobytes() in embedded


@pytest.mark.parametrize(
    "missing",
    [
        ["config.json"],
        ["metrics.jsonl"],
        ["run_facts.json"],
        ["data_sample.npz"],
        ["config.json", "run_facts.json", "data_sample.json", "data_sample.npz"],
    ],
)
def test_parts_that_are_missing_are_named(workdir, missing):
    for name in missing:
        (workdir / name).unlink()
    words = " ".join(_read(command.write_report(workdir).read_text(encoding="utf-8")).text)
    for name in missing:
        assert name in words or (name.startswith("data_sample") and "No data sample" in words)


def test_a_run_killed_in_the_middle(workdir):
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)[:20]
    path.write_text("".join(lines) + lines[0][:37])
    (workdir / "data_sample.npz").write_bytes(b"PK torn")
    words = " ".join(_read(command.write_report(workdir).read_text(encoding="utf-8")).text)
    assert "Step 20 of at most 60" in words and "The data is not shown" in words
    assert "What was learned" not in words


def test_a_run_that_the_clock_ended_is_finished(workdir):
    config = json.loads((workdir / "config.json").read_text())
    config["train"] |= {"num_steps": 100_000, "max_minutes": 1.0}
    (workdir / "config.json").write_text(json.dumps(config))
    assert summary.status(load_run(workdir)).startswith("Finished: 60 steps")


def test_a_run_that_has_logged_nothing(workdir):
    (workdir / "metrics.jsonl").write_text("")
    words = " ".join(_read(command.write_report(workdir).read_text(encoding="utf-8")).text)
    assert "Nothing has been logged yet." in words and "Curves" not in words


def test_folders_without_a_run(tmp_path):
    with pytest.raises(DataError, match="no run folder"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no run"):
        load_run(tmp_path)


def test_command(workdir, capsys):
    assert command.main(["--workdir", str(workdir)]) == 0
    assert str(workdir / "report.html") in capsys.readouterr().out


# -------------------------------------------------------------------------------------- the parts


def test_charts_are_written_as_files(workdir, tmp_path, capsys):
    folder = tmp_path / "curves"
    assert command.main(["--workdir", str(workdir), "--curves", str(folder)]) == 0
    files = sorted(folder.glob("*.svg"))
    assert folder / "all-losses.svg" in files
    assert all(b"<svg" in file.read_bytes() for file in files)
    assert str(files[0]) in capsys.readouterr().out
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EnvironmentProblem, match="--curves"):
        command.main(["--workdir", str(workdir), "--curves", str(tmp_path / "file")])


def test_series_leave_out_null_and_absent(workdir):
    run = load_run(workdir)
    steps, values = run.series("train", "flow_loss/t0.50-1.00")
    assert 3 not in steps and len(steps) == 59 and set(values) == {2.0}
    assert run.series("validation", "flow_loss") == ([60], [0.5])


def test_bins_are_told_from_sources():
    assert charts.is_bin("flow_loss/t0.25-0.50")
    for name in ("flow_loss/t2i", "flow_loss/train-set", "flow_loss", "flow_loss/t-x"):
        assert not charts.is_bin(name)


def test_smooth_is_a_centred_mean():
    values = np.arange(200.0) ** 2
    half = 200 // 40
    got = charts.smooth(values)
    assert got[0] == values[0] and got[-1] == values[-1]
    np.testing.assert_allclose(got[100], values[100 - half : 101 + half].mean(), rtol=1e-12)
    np.testing.assert_allclose(got[2], values[0:5].mean(), rtol=1e-12)


def test_smooth_steps_over_gaps():
    values = np.array([1.0, np.nan, 3.0] * 30)
    assert np.isfinite(charts.smooth(values)).all()


def test_thin_keeps_the_mean():
    steps, values = np.arange(1000.0), np.random.default_rng(0).normal(size=1000)
    few_steps, few = charts.thin(steps, values, 100)
    assert len(few) == 100 and few_steps[0] == np.arange(10).mean()
    np.testing.assert_allclose(few.mean(), values.mean(), rtol=1e-9)


def test_chart_of_nothing_is_none():
    assert charts.chart([], "y") is None
    assert charts.chart([charts.Line("a", [1, 2], [np.nan, np.nan])], "y") is None


def test_chart_labels_are_shown_as_they_are():
    image = charts.chart([charts.Line("_a $x_1$ <b>", [1, 2], [1.0, 2.0])], "loss")
    svg = base64.b64decode(image.split(",")[1]).decode()
    assert "$x_1$ &lt;b&gt;" in svg and "_a" in svg


def test_the_optimizer_that_was_used_is_named():
    adamw = {"kind": "adamw", "learning_rate": 0.1, "schedule": "cosine", "warmup_steps": 3}
    for given, words in (
        (adamw, "AdamW, learning rate 0.1, cosine, 3 warm-up"),
        ({**adamw, "kind": "muon", "muon_on": "und"}, "Muon (layers: und) beside AdamW, learning"),
        ({**adamw, "frozen": "llm"}, "AdamW (frozen: llm), learning rate 0.1"),
        ({**adamw, "frozen": "nothing"}, "AdamW, learning rate 0.1"),
    ):
        assert words in dict(summary.config_summary({"optimizer": given}))["optimizer"]


def test_short_numbers_and_durations():
    assert [summary.short(n) for n in (6767120384, 1_234_000, 1500, 12)] == [
        "6.77 B",
        "1.23 M",
        "1.5 k",
        "12",
    ]
    assert summary.duration(3725) == "1 h 2 min" and summary.duration(125) == "2 min 5 s"


def test_mask_image_is_the_mask():
    """Every cell of the image has the key's colour where the predicate says so."""
    streams = {
        "und": TokenMeta(*np.array([[1, 1, 1, 2, 0], [0, 1, 2, 0, 0], [TEXT, VIT, TEXT, TEXT, 0]])),
        "clean": TokenMeta(*np.array([[1, 1], [1, 1], [VAE_CLEAN] * 2])),
        "noised": TokenMeta(*np.array([[1, 2], [3, 4], [VAE_NOISED] * 2])),
    }
    chosen = data_section.select(streams, None, 100)
    assert [len(m.segment) for m in chosen] == [4, 2, 2]  # padding left out
    png = data_section.mask_png(chosen, min_side=80)
    image = np.asarray(PIL.Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    assert image.shape == (80, 80, 3)  # 8 tokens
    centres = image[5::10, 5::10]
    meta = TokenMeta(*(np.concatenate(parts) for parts in zip(*chosen, strict=True)))
    colours = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in _colours(meta.kind)])
    grey = np.array([243, 244, 246])
    expected = np.where(dense_mask(meta, meta)[..., None], colours[None], grey)
    assert np.abs(centres - expected).max() <= 8  # quantised colours


def _colours(kinds):
    return [data_section.KIND_COLOURS[k] for k in kinds]


def test_mask_image_takes_whole_segments_up_to_a_limit():
    segments = np.repeat([1, 2, 3], 5)
    zeros = np.zeros(15, int)
    streams = {"und": TokenMeta(segments, zeros, zeros)}
    assert set(data_section.select(streams, None, 11)[0].segment) == {1, 2}
    assert set(data_section.select(streams, None, 1)[0].segment) == {1}
    assert set(data_section.select(streams, [3], 0)[0].segment) == {3}
