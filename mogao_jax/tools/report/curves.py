"""Charts of a run as SVG images that stand in the page itself (data: addresses)."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Sequence

import numpy as np

from mogao_jax.errors import EnvironmentProblem

# Distinguishable in the common forms of colour blindness (Okabe and Ito's set, without yellow).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#666666", "#882255")
_MAX_POINTS = 400


@dataclasses.dataclass(frozen=True)
class Line:
    """One series of a chart.

    Attributes:
      label: for the legend; "" leaves it out.
      steps, values: the points; not-finite values leave gaps.
      colour: an index into COLOURS.
      points: draw markers (few, exact values) instead of a smoothed curve.
    """

    label: str
    steps: Sequence[float]
    values: Sequence[float]
    colour: int = 0
    points: bool = False


def chart(lines: Sequence[Line], ylabel: str, *, percent: bool = False) -> str | None:
    """A chart over the steps as a data: address of an SVG; None where there is nothing to draw.

    Curves are drawn twice: the values, faint, and a running mean. The y axis is logarithmic where
    the values span more than a factor of 20.

    Raises:
      EnvironmentProblem: matplotlib is not installed.
    """
    lines = [line for line in lines if np.isfinite(np.asarray(line.values, float)).any()]
    if not lines:
        return None
    figure_class = _figure_class()
    figure = figure_class(figsize=(5.2, 3.1), layout="constrained")
    axes = figure.subplots()
    for line in lines:
        _draw(axes, line)
    values = np.concatenate([np.asarray(line.values, float) for line in lines])
    values = values[np.isfinite(values)]
    if percent:
        axes.set_ylim(0, max(1.0, float(values.max())) * 1.02)
        axes.yaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
    elif values.min() > 0 and values.max() / values.min() > 20:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda v, _: f"{v:g}")
        axes.yaxis.set_minor_formatter(lambda v, _: "")
    axes.set_xlabel("step", fontsize=9, color="#555")
    axes.set_ylabel(ylabel, fontsize=9, color="#555")
    axes.tick_params(which="both", labelsize=8, colors="#555", length=0)
    axes.grid(True, color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#c5c9ce")
    if any(line.label for line in lines):
        axes.legend(fontsize=8, frameon=False, ncols=2 if len(lines) > 4 else 1)
    return _svg(figure)


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
    return (
        np.add.reduceat(steps, edges[:-1]) / count,
        np.add.reduceat(values, edges[:-1]) / count,
    )


def _svg(figure) -> str:
    import matplotlib

    buffer = io.BytesIO()
    # Text as text: small, sharp and selectable; the hash salt makes equal runs equal files.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "mogao"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return data_address(buffer.getvalue(), "image/svg+xml")


def data_address(content: bytes, kind: str) -> str:
    """'data:image/png;base64,...': a picture that stands in the page itself."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _figure_class():
    try:
        from matplotlib.backends import backend_svg  # noqa: F401  (no display is looked for)
        from matplotlib.figure import Figure
    except ImportError as e:
        raise EnvironmentProblem(
            "the report needs matplotlib and jinja2: pip install 'mogao_jax[demo]'"
        ) from e
    return Figure
