"""Which charts the page has: a question each, with a sentence on how to read it."""

from __future__ import annotations

from collections.abc import Sequence

from mogao_jax.tools.report.curves import Line, chart
from mogao_jax.tools.report.run_folder import Run


def charts(run: Run) -> list[dict[str, str]]:
    """[{'title', 'text', 'image'}]: a chart for every question that the records can answer."""
    sources = ("ntp_loss/", "flow_loss/")
    bins = [m for m in run.metrics("flow_loss/") if is_bin(m)]
    specs: list[tuple[str, str, str, list[Line], bool]] = [
        (
            "All losses",
            "Curves are training (faint: as logged; bold: running mean). Dots are the fixed "
            "validation set: always the same documents, noise and timesteps.",
            "loss",
            _lines(run, ["ntp_loss", "flow_loss"], ""),
            False,
        )
    ]
    words = {
        "ntp_loss/": (
            "Text, per data source",
            "Next-token prediction: nats per trained token. Lower is better; 0 is certainty.",
        ),
        "flow_loss/": (
            "Pictures, per data source",
            "Squared error of the predicted velocity, per latent value. It does not go to 0: "
            "part of the noise cannot be guessed.",
        ),
    }
    for prefix in sources:
        names = [m for m in run.metrics(prefix) if not is_bin(m)]
        title, text = words[prefix]
        specs.append(
            (title, text, prefix[:-1].replace("_", " "), _lines(run, names, prefix), False)
        )
    specs += [
        (
            "Pictures, per timestep",
            "The same error by how much of the picture is there already: t = 0 is pure noise, "
            "t = 1 the finished picture.",
            "flow loss",
            _lines(run, bins, "flow_loss/"),
            False,
        ),
        (
            "Speed",
            "Tokens (no padding) through the model per second, evaluation and saving left out.",
            "tokens per second",
            [Line("", *run.series("train", "tokens_per_second"))],
            False,
        ),
        (
            "How full the rows are, and waiting for data",
            "Share of each stream's places that hold a token, and share of the time that the "
            "model stood still because data was late.",
            "share",
            [
                Line(label, *run.series("train", metric), colour=i)
                for i, (metric, label) in enumerate(
                    [
                        ("fill/und", "und tokens"),
                        ("fill/gen", "gen tokens"),
                        ("data_wait_share", "waiting for data"),
                    ]
                )
            ],
            True,
        ),
        (
            "Gradient",
            "Norm of the gradient before clipping. Spikes tell of odd batches or of a learning "
            "rate that is too high.",
            "gradient norm",
            [Line("", *run.series("train", "grad_norm"))],
            False,
        ),
    ]
    made = []
    for title, text, ylabel, lines, percent in specs:
        image = chart(lines, ylabel, percent=percent)
        if image:
            made.append({"title": title, "text": text, "image": image})
    return made


def _lines(run: Run, metrics: Sequence[str], prefix: str) -> list[Line]:
    """Training curves and validation dots of some metrics, one colour each."""
    lines: list[Line] = []
    for i, metric in enumerate(metrics):
        label = metric.removeprefix(prefix) if prefix else metric.replace("_", " ")
        train, validation = run.series("train", metric), run.series("validation", metric)
        if train[0]:
            lines.append(Line(label, *train, colour=i))
        if validation[0]:
            lines.append(Line("" if train[0] else label, *validation, colour=i, points=True))
    return lines


def is_bin(metric: str) -> bool:
    """Whether a name is that of a timestep bin, as 'flow_loss/t0.25-0.50'."""
    name = metric.rpartition("/")[2]
    low, dash, high = name.removeprefix("t").partition("-")
    return name.startswith("t") and bool(dash) and all(_is_float(part) for part in (low, high))


def _is_float(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()
