"""A Profile as text for people, and as numbers for programs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax

from mogao_jax.tools import flops
from mogao_jax.tools.profile.measure import Profile

Row = tuple[str, str, str]  # name, value, remark
_MEMORY = {
    "process peak": "most memory the process ever held (compiler included)",
    "device peak": "most memory the device ever held",
    "step arguments": "weights, optimizer state, encoders and batch",
    "step temporaries": "what the step needs besides (activations, gradients)",
}


def as_json(profile: Profile, machine: Mapping[str, str]) -> dict[str, Any]:
    """The same numbers as `as_text`, JSON-able; seconds, bytes, FLOPs, shares of 1."""
    record = dataclasses.asdict(profile)
    step = profile.step
    record["step"] = {
        "median_seconds": step.median,
        "best_seconds": step.best,
        "seconds": list(step.seconds),
        "compile_seconds": record.pop("compile_seconds"),
        "steps_per_second": 1 / step.median,
        "tokens_per_second": profile.work.tokens / step.median,
    }
    record["machine"] = dict(machine)
    record["work"]["tokens"] = profile.work.tokens
    record["utilization"] = {
        "matmul_flops_per_second": profile.matmul_rate,
        "model_flops": flops.total(profile.model_flops),
        "model_flops_per_second": profile.model_rate,
        "share": profile.share,
        "share_at_best_step": profile.share_at_best,
        "share_with_encoders": profile.share_with_encoders,
    }
    if profile.operations is not None:
        record["operations"]["shares"] = profile.operations.shares
    return record


def as_text(profile: Profile, machine: Mapping[str, str]) -> str:
    """The report: machine, work, speed, FLOPs, and where the time goes."""
    sections = {
        "Machine": _machine(profile, machine),
        "What one step works on (mean; padding is not counted)": _work(profile),
        "What the machine can do: matmuls, measured just now": _matmul(profile),
        "The training step": _step(profile),
        "Useful arithmetic per step (forward and backward)": _flops(profile),
        "Parts of the step, each compiled and timed alone": _parts(profile),
        "Inside the step, by kind of operation": _operations(profile),
    }
    text = [f"Profile of {profile.name!r}"]
    for title, lines in sections.items():
        text += ["", title, "-" * len(title), *lines]
    return "\n".join(text)


def _machine(profile: Profile, machine: Mapping[str, str]) -> list[str]:
    axes = " x ".join(f"{a}={n}" for a, n in profile.mesh.items() if n > 1) or "one device"
    total = sum(profile.parameters.values())
    counts = ", ".join(f"{k} {n:,}" for k, n in profile.parameters.items())
    rows = dict(machine) | {
        "mesh": f"{axes}, backend {jax.default_backend()}",
        "parameters": f"{total:,} ({counts})",
    }
    return _rows([(k, v, "") for k, v in rows.items()])


def _work(profile: Profile) -> list[str]:
    w = profile.work
    overhead = w.pairs_executed / max(w.pairs, 1)
    return _rows(
        [
            ("tokens", f"{w.tokens:,.0f}", "all real tokens of the transformer"),
            ("  und", f"{w.und:,.0f}", f"text and ViT tokens; {w.fill_und:.1%} of their budget"),
            ("  clean", f"{w.clean:,.0f}", "VAE tokens of images that are read"),
            ("  noised", f"{w.noised:,.0f}", "VAE tokens of images that are generated"),
            ("gen fill", f"{w.fill_gen:.1%}", "clean and noised tokens over their budget"),
            ("trained text", f"{w.trained_text:,.0f}", "tokens with a next-token loss"),
            ("attention pairs", f"{w.pairs:,.0f}", "(query, key) pairs that may attend"),
            ("  executed", f"{overhead:.2f} x", "computed by blockwise attention for them"),
        ]
    )


def _matmul(profile: Profile) -> list[str]:
    rows = []
    for name, rate in profile.matmul.items():
        m, k, n = rate.shape
        shape = f"[{m}, {k}] x [{k}, {n}] {rate.dtype}"
        rows.append((name, f"{_si(rate.flops_per_second)}FLOP/s", shape))
    rows.append(("yardstick", f"{_si(profile.matmul_rate)}FLOP/s", "the best of them"))
    return _rows(rows)


def _step(profile: Profile) -> list[str]:
    step, tokens = profile.step, profile.work.tokens
    rows = [
        ("time, median", _seconds(step.median), f"of {len(step.seconds)} steps"),
        ("time, best", _seconds(step.best), ""),
        ("steps/s", f"{1 / step.median:.3g}", "at the median"),
        ("tokens/s", f"{tokens / step.median:,.0f}", "real tokens, at the median"),
        ("compilation", _seconds(profile.compile_seconds), "once, before the first step"),
        ("state", _bytes(profile.state_bytes), "weights, Adam's moments, moving average"),
    ]
    return _rows(rows + [(k, _bytes(v), _MEMORY[k]) for k, v in profile.memory.items()])


def _flops(profile: Profile) -> list[str]:
    total = flops.total(profile.model_flops)
    rows = [
        *(
            (k, f"{_si(v)}FLOP", f"{v / max(total, 1):5.1%}")
            for k, v in profile.model_flops.items()
        ),
        ("model, total", f"{_si(total)}FLOP", ""),
        *(
            (f"{k} (frozen)", f"{_si(v)}FLOP", "forward alone; not part of the total")
            for k, v in profile.encoder_flops.items()
        ),
        ("model FLOP/s", f"{_si(profile.model_rate)}FLOP/s", "at the median step"),
        ("share of the yardstick", f"{profile.share:.1%}", "model alone: the figure to quote"),
        ("  at the best step", f"{profile.share_at_best:.1%}", "if other programs disturbed it"),
        (
            "  with the encoders",
            f"{profile.share_with_encoders:.1%}",
            "frozen encoders' forward pass counted too",
        ),
    ]
    return _rows(rows) + [
        "Counted: 6 x weights of its branch per real token, 12 x layers x heads x head_dim per",
        "pair that may attend, the language head on trained text, AdaLN once per image. Padding,",
        "recomputation and elementwise work count nothing.",
    ]


def _parts(profile: Profile) -> list[str]:
    step = profile.step.median
    rows = [
        (p.name, f"{_seconds(p.seconds)}  {p.seconds / step:6.1%}", p.remark) for p in profile.parts
    ]
    rows.append(("whole step", f"{_seconds(step)}  {1:6.1%}", "median"))
    return _rows(rows) + ["Shares are of the whole step; alone, parts may be slower or faster."]


def _operations(profile: Profile) -> list[str]:
    operations = profile.operations
    if operations is None:
        return [f"Not available: {profile.no_trace}."]
    rows = [
        (group, f"{_seconds(seconds)}  {operations.shares[group]:6.1%}", "")
        for group, seconds in sorted(operations.groups.items(), key=lambda x: -x[1])
        if seconds
    ]
    total = sum(operations.groups.values())
    lines = _rows([*rows, ("all operations", f"{_seconds(total)}  {1:6.1%}", "")])
    covered = operations.covered / profile.traced_step if profile.traced_step else math.nan
    lines += [
        "Seconds are summed over threads (or devices) that work at once. A traced step took",
        f"{_seconds(profile.traced_step).strip()} (tracing costs), and some operation ran in "
        f"{covered:.0%} of it; a fused operation",
        "counts where its last part belongs. Longest instructions:",
    ]
    return lines + [
        f"  {_seconds(seconds)}  {name}  {first_path(path)}"
        for seconds, name, path in operations.top
    ]


def first_path(joined: str) -> str:
    """The first path of an instruction that the compiler joined from many ("a:b:c")."""
    first, *others = joined.split(":")
    return f"{first} and {len(others)} more" if others else first


def _rows(rows: list[Row]) -> list[str]:
    width = max(len(name) for name, _, _ in rows)
    values = max((len(v) for _, v, remark in rows if remark), default=0)
    return [f"{n:<{width}}  {v:<{values}}  {remark}".rstrip() for n, v, remark in rows]


def _seconds(seconds: float) -> str:
    return f"{seconds:7.2f} s " if seconds >= 10 else f"{seconds * 1e3:7.1f} ms"


def _bytes(count: float) -> str:
    return f"{count / 2**20:,.0f} MiB" if count < 2**30 else f"{count / 2**30:.2f} GiB"


def _si(value: float) -> str:
    for scale, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= scale:
            return f"{value / scale:.3g} {letter}"
    return f"{value:.3g} "
