"""What was run and what it reached, in words and numbers for the page."""

from __future__ import annotations

import datetime
import re
import statistics
from collections.abc import Mapping
from typing import Any

from mogao_jax.tools.report.charts import is_bin
from mogao_jax.tools.report.run_folder import Run
from mogao_jax.training.metrics import UNCONDITIONAL, UNTRAINED, VALIDATION

_COLUMNS = {VALIDATION: "trained", UNCONDITIONAL: "no condition", UNTRAINED: "untrained"}
_VALIDATED = {"flow_loss": "validation flow loss", "ntp_loss": "validation NTP loss"}
_MEDIANS = {
    "tokens_per_second": ("tokens per second (median)", "{:,.0f}"),
    "data_wait_share": ("of the time waiting for data (median)", "{:.1%}"),
    "fill/und": ("of und tokens are no padding", "{:.1%}"),
    "fill/gen": ("of gen tokens are no padding", "{:.1%}"),
}
_SETTINGS = {
    "data sources (weight)": "{sources}",
    "transformer": "{model.num_layers} layers, width {model.embed_dim}, {model.num_heads} heads "
    "({model.num_kv_heads} for keys), MLP {model.mlp_dim}",
    "weights": "{fusion}",
    "positions": "{rope}",
    "images": "up to {images.max_pixels} pixels, no side over {images.max_side}",
    "row": "{packing.und_tokens} und + {packing.clean_tokens} clean + {packing.noised_tokens} "
    "noised tokens",
    "batch": "{train.global_batch_rows} rows x {train.grad_accum_steps} micro-steps",
    "optimizer": "{optimizer}, learning rate {optimizer.learning_rate}, {optimizer.schedule}, "
    "{optimizer.warmup_steps} warm-up steps",
    "seed": "{seed}",
}
_FUSION = {"deep": "one set per branch", "shared": "one set for all tokens"}


def status(run: Run) -> str:
    """How far the run is, in a sentence."""
    steps = [r["step"] for r in run.records]
    if not steps:
        return "Nothing has been logged yet."
    planned = run.config.get("train", {}).get("num_steps")
    evaluated = run.last(UNCONDITIONAL).get("step")  # the last thing of a run
    if evaluated == max(steps) or (planned and max(steps) >= planned):
        return f"Finished: {max(steps):,} steps{_when(run)}."
    most = f" of at most {planned:,}" if planned else ""
    return f"Step {max(steps):,}{most}{_when(run)}. The run is still going on, or was stopped."


def _when(run: Run) -> str:
    times = [r["time"] for r in run.records if isinstance(r.get("time"), (int, float))]
    if not times:
        return ""
    last = datetime.datetime.fromtimestamp(times[-1]).astimezone()
    after = f", {duration(times[-1] - times[0])} after the first" if times[-1] > times[0] else ""
    return f", last record {last.strftime('%Y-%m-%d %H:%M %Z')}{after}"


def headlines(run: Run) -> list[tuple[str, str]]:
    """The few numbers at the top: (value, what it is)."""
    total = sum(run.facts.get("parameters", {}).values())
    cards = [(short(total), "parameters in all")] if total else []
    last = run.last(VALIDATION)
    cards += [(f"{last[m]:.4f}", words) for m, words in _VALIDATED.items() if m in last]
    for metric, (words, form) in _MEDIANS.items():
        if values := run.series("train", metric)[1]:
            cards.append((form.format(statistics.median(values)), words))
    return cards


def config_summary(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The settings a reader asks for first; the full list is in the page too."""
    if not config:
        return []
    flat = dict(flatten(config))
    sources = config.get("data", {}).get("sources", {})
    mixture = [
        f"{name} ({settings.get('weight', '?')})"
        for name, settings in sources.items()
        if isinstance(settings, Mapping)
    ]
    fusion = flat.get("model.fusion", "?")
    named = {
        "sources": ", ".join(mixture) or "?",
        "fusion": _FUSION.get(fusion, fusion),
        "rope": flat.get("model.rope", "?").replace("_", "-"),
        "optimizer": _optimizer(flat),
    }
    values = flat | named
    return [
        (title, re.sub(r"\{([\w.]+)\}", lambda found: values.get(found[1], "?"), text))
        for title, text in _SETTINGS.items()
    ]


def _optimizer(flat: Mapping[str, str]) -> str:
    kind = flat.get("optimizer.kind", "?")
    muon = f"Muon (layers: {flat.get('optimizer.muon_on', '?')}) beside AdamW"
    frozen = flat.get("optimizer.frozen", "nothing")
    held = f" (frozen: {frozen})" if frozen != "nothing" else ""
    return {"adamw": "AdamW", "muon": muon}.get(kind, kind) + held


def flatten(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """[('model.num_layers', '6'), ...] of a nested config."""
    rows: list[tuple[str, str]] = []
    for key, value in config.items():
        nested = isinstance(value, Mapping) and value
        name = f"{prefix}{key}"
        rows += flatten(value, f"{name}.") if nested else [(name, shown_value(value))]
    return rows


def parameters(facts: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """(part, count, share of the largest part) for the bars."""
    parts = facts.get("parameters", {})
    largest = max(parts.values(), default=0)
    return [(str(k), f"{v:,}", v / largest if largest else 0.0) for k, v in parts.items()]


def duration(seconds: float) -> str:
    """3725 -> '1 h 2 min'; 125 -> '2 min 5 s'."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {whole % 60} s"


def short(number: float) -> str:
    """6767120384 -> '6.77 B'; 1234 -> '1.2 k'."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:g}"


def shown_value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def validation_table(run: Run) -> dict[str, Any]:
    """Losses on the fixed validation set: of this model, without its condition, untrained."""
    last = {split: found for split in _COLUMNS if (found := run.last(split))}
    names = {m for found in last.values() for m in found if m.startswith(("ntp_loss", "flow_loss"))}

    rows = []
    for name in sorted(names, key=lambda m: (m.split("/")[0] != "flow_loss", is_bin(m), m)):
        loss, _, part = name.partition("/")
        words = {"ntp_loss": "text (NTP)", "flow_loss": "images (flow)"}.get(loss, loss)
        cells = [f"{found[name]:.4f}" if name in found else "" for found in last.values()]
        rows.append((f"{words}, {part or 'all'}", cells))
    step = int(last.get(VALIDATION, {}).get("step", 0))
    return {"columns": [_COLUMNS[split] for split in last], "rows": rows, "step": step}
