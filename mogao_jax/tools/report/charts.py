"""Charts of a run: a question each, as SVG images that stand in the page itself (data: URLs)."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from collections.abc import Iterator, Sequence

import numpy as np

from mogao_jax.errors import EnvironmentProblem
from mogao_jax.tools.report.run_folder import Run

# Distinguishable in the common forms of colour blindness (Okabe and Ito's set, without yellow).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#666666", "#882255")
_MAX_POINTS = 400
_LOG_RATIO = 20  # values that span more than this factor get a logarithmic axis


@dataclasses.dataclass(frozen=True)
class Line:
    """One series of a chart."""

    label: str  # for the legend; "" leaves it out
    steps: Sequence[float]
    values: Sequence[float]  # not-finite ones leave gaps
    colour: int = 0  # an index into COLOURS
    points: bool = False  # draw markers (few, exact values) instead of a smoothed curve


def charts(run: Run) -> list[dict[str, str]]:
    """[{'title', 'text', 'image'}]: a chart for every question that the records can answer."""
    return [
        {"title": title, "text": text, "image": image}
        for title, text, ylabel, lines in _specs(run)
        if (image := chart(lines, ylabel, percent=ylabel == "share"))
    ]


def _specs(run: Run) -> Iterator[tuple[str, str, str, list[Line]]]:
    """(title, how to read it, label of the y axis, lines)"""
    flow = run.metrics("flow_loss/")
    fill = {"fill/und": "und tokens", "fill/gen": "gen tokens"}
    yield (
        "All losses",
        "Curves are training (faint: as logged; bold: running mean). Dots are the fixed "
        "validation set: always the same documents, noise and timesteps.",
        "loss",
        _losses(run, ["ntp_loss", "flow_loss"]),
    )
    yield (
        "Text, per data source",
        "Next-token prediction: nats per trained token. Lower is better; 0 is certainty.",
        "ntp loss",
        _losses(run, run.metrics("ntp_loss/")),
    )
    yield (
        "Images, per data source",
        "Squared error of the predicted velocity, per latent value. It does not go to 0: "
        "part of the noise cannot be guessed.",
        "flow loss",
        _losses(run, [m for m in flow if not is_bin(m)]),
    )
    yield (
        "Images, per timestep",
        "The same error by how much of the image is there already: t = 0 is pure noise, "
        "t = 1 the finished image.",
        "flow loss",
        _losses(run, [m for m in flow if is_bin(m)]),
    )
    yield (
        "Speed",
        "Tokens (no padding) through the model per second, evaluation and saving left out.",
        "tokens per second",
        _plain(run, {"tokens_per_second": ""}),
    )
    yield (
        "How full the rows are, and waiting for data",
        "Share of each stream's places that hold a token, and share of the time that the "
        "model stood still because data was late.",
        "share",
        _plain(run, fill | {"data_wait_share": "waiting for data"}),
    )
    yield (
        "Gradient",
        "Norm of the gradient before clipping. Spikes are a sign of odd batches or of a learning "
        "rate that is too high.",
        "gradient norm",
        _plain(run, {"grad_norm": ""}),
    )


def _plain(run: Run, labels: dict[str, str]) -> list[Line]:
    """Training curves of {metric: label}, one colour each."""
    named = enumerate(labels.items())
    return [Line(label, *run.series("train", metric), colour=i) for i, (metric, label) in named]


def _losses(run: Run, metrics: Sequence[str]) -> list[Line]:
    """Training curves and validation dots of some losses, one colour each."""
    lines: list[Line] = []
    for i, metric in enumerate(metrics):
        label = metric.partition("/")[2] or metric.replace("_", " ")
        train, validation = run.series("train", metric), run.series("validation", metric)
        if train[0]:
            lines.append(Line(label, *train, colour=i))
        if validation[0]:
            lines.append(Line("" if train[0] else label, *validation, colour=i, points=True))
    return lines


def is_bin(metric: str) -> bool:
    """Whether a name is that of a timestep bin, as 'flow_loss/t0.25-0.50'."""
    number = r"(\d+\.?\d*|\.\d+)"
    return bool(re.fullmatch(f"t{number}-{number}", metric.rpartition("/")[2]))


# --------------------------------------------------------------------------------- one chart


def chart(lines: Sequence[Line], ylabel: str, *, percent: bool = False) -> str | None:
    """A chart over the steps as the data: URL of an SVG; None where there is nothing to draw.

    Curves are drawn twice: the values, faint, and a running mean. The y axis is logarithmic where
    the values span more than a factor of 20.

    Raises:
      EnvironmentProblem: matplotlib is not installed.
    """
    lines = [line for line in lines if np.isfinite(np.asarray(line.values, float)).any()]
    if not lines:
        return None
    figure = _figure_class()(figsize=(5.2, 3.1), layout="constrained")
    axes = figure.subplots()
    for line in lines:
        _draw(axes, line)
    values = np.concatenate([np.asarray(line.values, float) for line in lines])
    _scale(axes, values[np.isfinite(values)], percent)
    axes.set_xlabel("step", fontsize=9, color="#555")
    axes.set_ylabel(ylabel, fontsize=9, color="#555")
    axes.tick_params(which="both", labelsize=8, colors="#555", length=0)
    axes.grid(True, color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#c5c9ce")
    if any(line.label for line in lines):
        axes.legend(fontsize=8, frameon=False, ncols=2 if len(lines) > 4 else 1)
    import matplotlib

    buffer = io.BytesIO()
    # Text as text: small, sharp and selectable; the hash salt makes equal runs equal files.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "mogao"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return data_url(buffer.getvalue(), "image/svg+xml")


def _scale(axes, values: np.ndarray, percent: bool) -> None:
    if percent:
        axes.set_ylim(0, max(1.0, float(values.max())) * 1.02)
        axes.yaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
    elif values.min() > 0 and values.max() / values.min() > _LOG_RATIO:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda v, _: f"{v:g}")
        axes.yaxis.set_minor_formatter(lambda v, _: "")


def _draw(axes, line: Line) -> None:
    colour = COLOURS[line.colour % len(COLOURS)]
    steps, values = np.asarray(line.steps, float), np.asarray(line.values, float)
    # A label that starts with "_" would be hidden by matplotlib.
    label = line.label.replace("_", "\u200b_", 1) if line.label.startswith("_") else line.label
    label = label.replace("$", r"\$") or "_nolegend_"
    if line.points:
        axes.plot(steps, values, "o--", color=colour, ms=4, lw=1, label=label)
        return
    steps, values = thin(steps, values, _MAX_POINTS)
    if len(values) < 8:
        axes.plot(steps, values, color=colour, lw=1.6, marker="o", ms=3, label=label)
        return
    axes.plot(steps, values, color=colour, lw=0.8, alpha=0.25)
    axes.plot(steps, smooth(values), color=colour, lw=1.6, label=label)


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred running mean over about a twentieth of the points, narrower at the ends."""
    half = max(1, len(values) // 40)
    finite = np.isfinite(values)
    total = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    count = np.concatenate([[0], np.cumsum(finite)])
    index = np.arange(len(values))
    reach = np.minimum(half, np.minimum(index, len(values) - 1 - index))
    low, high = index - reach, index + reach + 1
    with np.errstate(invalid="ignore"):
        return (total[high] - total[low]) / (count[high] - count[low])


def thin(steps: np.ndarray, values: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` points: means over equal runs of points, so that nothing is left out."""
    if len(steps) <= most:
        return steps, values
    edges = np.linspace(0, len(steps), most + 1).astype(int)
    count = np.diff(edges)
    return np.add.reduceat(steps, edges[:-1]) / count, np.add.reduceat(values, edges[:-1]) / count


def data_url(content: bytes, kind: str) -> str:
    """'data:image/png;base64,...': an image that stands in the page itself."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _figure_class():
    try:
        from matplotlib.backends import backend_svg  # noqa: F401  (no display is looked for)
        from matplotlib.figure import Figure
    except ImportError as e:
        raise EnvironmentProblem(
            "the report needs matplotlib: pip install 'mogao_jax[demo]'"
        ) from e
    return Figure
