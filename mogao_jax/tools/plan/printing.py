"""A Plan as text for people, and as numbers for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from mogao_jax.tools import flops
from mogao_jax.tools.plan import mixture
from mogao_jax.tools.plan.plan import SAMPLE_ROWS, Plan
from mogao_jax.tools.plan.roofline import EFFICIENCY

_GIB = 2.0**30


def as_json(plan: Plan, tokens: float) -> dict[str, Any]:
    """The figures of `as_text`, JSON-able; bytes, FLOPs, seconds, shares of 1."""
    record = dataclasses.asdict(plan)
    chip = plan.topology.chip
    record["peak_bytes_per_chip"] = plan.held
    record["memory_of_chip"] = chip.memory
    record["estimate"] = {
        "step_seconds": plan.roofline.step,
        "step_seconds_without_overlap": plan.roofline.serial,
        "limit": plan.roofline.limit,
        "tokens_per_second": plan.tokens_per_second,
        "mfu": plan.mfu,
        "tokens": tokens,
        "days": plan.days(tokens),
        "chip_hours": plan.chip_hours(tokens),
        "assumed_efficiency": dict(EFFICIENCY),
    }
    record["sent"] = [
        dict(zip(("what", "axes", "runs", "result_bytes", "sent_bytes"), row, strict=True))
        for row in plan.sent
    ]
    return record


def as_text(plan: Plan, tokens: float) -> str:
    """The report."""
    sections = [
        ("Machine and program", _machine(plan)),
        ("Parameters", _parameters(plan)),
        ("Memory per chip", _memory(plan)),
        ("What one step works on", _work(plan)),
        ("Arithmetic per step, all chips", _arithmetic(plan)),
        ("Communication per step and chip", _communication(plan)),
        ("Estimate (a roofline, not a measurement)", _estimate(plan, tokens)),
        ("Flags", plan.flags or ["none"]),
    ]
    text = [f"Plan of {plan.name!r} on {plan.topology}"]
    for title, lines in sections:
        text += ["", title, "-" * len(title), *lines]
    return "\n".join(text)


def _machine(plan: Plan) -> list[str]:
    topology, chip, c = plan.topology, plan.topology.chip, plan.compiled
    slices = f", {topology.num_slices} slices or nodes" if topology.num_slices > 1 else ""
    how = f"compiled in {c.seconds:.0f} s" if c else "not compiled: figures by formulas"
    if not topology.compiles:
        how += (
            "\n(no compiler for GPUs without a GPU: what XLA adds in temporaries, and its own "
            "collectives, are not in here)"
        )
    return table(
        [
            ("chips", f"{topology.num_chips} x {chip.name}{slices}"),
            ("each", f"{chip.flops / 1e12:.0f} TFLOP/s in bfloat16, "
                     f"{chip.memory / _GIB:.1f} GiB at {chip.bandwidth / 1e9:.0f} GB/s"),
            ("mesh", " x ".join(f"{a}={n}" for a, n in plan.mesh.items() if n > 1)
                     or "one device"),
            ("batch", f"{plan.rows_per_step} rows a step in {plan.grad_accum_steps} "
                      f"micro-step(s); {plan.tokens_per_chip:,.0f} tokens a chip and micro-step"),
            ("attention", plan.attention),
            ("remat", plan.remat),
            ("program", how),
        ]
    )  # fmt: skip


def _parameters(plan: Plan) -> list[str]:
    total = sum(plan.parameters.values())
    rows = [(name, f"{n:,}") for name, n in plan.parameters.items()]
    return table([*rows, ("total", f"{total:,}")])


def _memory(plan: Plan) -> list[str]:
    c, limit = plan.compiled, plan.topology.chip.memory
    rows = [(k, _gib(v)) for k, v in plan.estimated.items() if not c or k in plan.state]
    if c:
        state = sum(plan.state.values())
        rest = c.arguments - state
        rows += [
            ("encoders and batch", _gib(rest)),
            ("temporaries", f"{_gib(c.temporaries)}  activations, gradients, the compiler's own"),
            ("program", _gib(c.program)),
            ("peak (compiler)", f"{_gib(c.peak)}  of {_gib(limit).strip()} ({c.peak / limit:.0%})"),
            ("by formulas", _gib(sum(plan.estimated.values()))),
        ]
    else:
        rows.append(("sum (estimate)", f"{_gib(plan.held)}  of {_gib(limit).strip()} "
                                       f"({plan.held / limit:.0%})"))  # fmt: skip
    return table(rows)


def _work(plan: Plan) -> list[str]:
    w = plan.work
    lines = table(
        [
            ("und tokens", f"{w.und:,.0f}  ({w.fill_und:.1%} of their budget)"),
            ("clean tokens", f"{w.clean:,.0f}"),
            ("noised tokens", f"{w.noised:,.0f}  (gen stream: {w.fill_gen:.1%} full)"),
            ("all", f"{w.tokens:,.0f}"),
            ("attention pairs", f"{w.pairs:,.4g}"),
            ("  executed", f"{w.pairs_executed / max(w.pairs, 1):.2f} x"),
        ]
    )
    lines.append(f"Measured on {SAMPLE_ROWS} packed rows of {plan.origin}.")
    if plan.origin.startswith("made-up"):
        lines += [
            f"Made up: captions of {mixture.CAPTION} tokens, questions {mixture.QUESTION}, "
            f"answers {mixture.ANSWER}, passages {mixture.PASSAGE} (means, log-normal), "
            f"{mixture.IMAGES} images",
            "in an interleaved document, at full area and aspect ratios from 1:2 to 2:1.",
        ]
    return lines


def _arithmetic(plan: Plan) -> list[str]:
    useful = flops.total(plan.model_flops)
    rows = [(k, f"{v:.4g} FLOP  {v / useful:6.1%}") for k, v in plan.model_flops.items()]
    rows.append(("useful, model", f"{useful:.4g} FLOP"))
    extra = {k: v for k, v in plan.executed_flops.items() if k not in plan.model_flops}
    rows += [(k, f"{v:.4g} FLOP  {v / useful:+6.1%}") for k, v in extra.items()]
    for name, e in plan.encoders.items():
        rows.append(
            (f"{name} (frozen)", f"{e['executed']:.4g} FLOP  {e['executed'] / useful:+6.1%}, "
                                 f"{e['useful'] / max(e['executed'], 1):.0%} of it useful")
        )  # fmt: skip
    w, parts = plan.work, plan.model_flops
    gen = w.clean + w.noised
    per = [
        ("und token", (parts["und branch"] / max(w.und, 1))),
        ("  trained text, more", parts["language head"] / max(w.trained_text, 1)),
        ("gen token", parts["gen branch"] / max(gen, 1)),
        ("token: attention", parts["attention"] / max(w.tokens, 1)),
    ]
    rows += [(f"per {k}" if k[0] != " " else k, f"{v:.4g} FLOP") for k, v in per]
    return table(rows)


def _communication(plan: Plan) -> list[str]:
    if not plan.sent:
        return ["none"]
    if not plan.compiled:
        by_axes = [f"{axes:<10} {_gib(sent):>10}  {what}" for what, axes, _, _, sent in plan.sent]
        return ["by formulas:", *by_axes]
    lines = [f"{'collective':<24} {'axes':<16} {'runs':>7} {'results':>10} {'sent':>10}"]
    for what, axes, runs, size, sent in plan.sent:
        if sent >= 2**20:
            lines.append(f"{what:<24} {axes:<16} {runs:>7.0f} {_gib(size):>10} {_gib(sent):>10}")
    small = sum(sent for *_, sent in plan.sent if sent < 2**20)
    return [
        *lines,
        f"(and kinds under 1 MiB, {small / 2**20:.1f} MiB together; loops over data count once)",
    ]


def _estimate(plan: Plan, tokens: float) -> list[str]:
    r, t = plan.roofline, plan.topology
    rows = [
        ("arithmetic", f"{r.compute:.3g} s"),
        ("links inside", f"{r.links:.3g} s"),
        ("network between", f"{r.network:.3g} s"),
        ("weights read", f"{r.memory:.3g} s"),
        ("optimizer", f"{r.optimizer:.3g} s"),
        ("step", f"{r.step:.3g} s  ({r.serial:.3g} s if nothing overlapped)"),
        ("limited by", r.limit),
        ("tokens/s", f"{plan.tokens_per_second:,.0f}  real ones, all chips"),
        ("MFU", f"{plan.mfu:.1%}"),
        (f"{tokens:.3g} tokens", f"{plan.days(tokens):,.1f} days, "
                                 f"{plan.chip_hours(tokens):,.0f} chip-hours"),
    ]  # fmt: skip
    assumed = ", ".join(f"{k} {v:.0%}" for k, v in EFFICIENCY.items())
    network = t.chip.network_bandwidth / 1e9
    return [
        *table(rows),
        f"Assumed shares of the published peaks: {assumed};",
        f"links {t.chip.link_bandwidth / 1e9:.0f} GB/s and network {network:.1f} GB/s per chip, "
        "one way. Arithmetic and communication overlap.",
        "MFU: 6 x weights of its branch per real token, 12 x layers x heads x head_dim per pair "
        "that may attend,",
        "the head on trained text, AdaLN once per image; not padding, recomputation or encoders.",
    ]


def table(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Lines of names and values, the values aligned."""
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}".rstrip() for name, value in rows]


def _gib(count: float) -> str:
    return f"{count / _GIB:6.2f} GiB" if count >= _GIB / 10 else f"{count / 2**20:6.1f} MiB"
