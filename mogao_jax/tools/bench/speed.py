"""What sampling costs, as ratios: an image, a batch, text, and compilations.

The two sides of a ratio are run in turn, in the same minutes (instrumentation.py).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mogao_jax.sampling.loading import Model
from mogao_jax.sampling.requests import Request, token_limits
from mogao_jax.sampling.sampler import Sampler
from mogao_jax.tools.bench import baselines, fixtures, lower_bounds
from mogao_jax.tools.bench.instrumentation import Rounds, alternate, watching

BATCH = 8
BAR = 1.1  # of an image, over the time of its networks
MIXED = 32  # requests whose programs are counted


@dataclasses.dataclass(frozen=True)
class Figure:
    """One line of the table."""

    what: str  # is compared with what
    value: float  # the median over rounds
    unit: str = "x"  # of a ratio
    bar: float | None = None  # the most that it should be
    note: str = ""  # parts of it; its spread over rounds

    @property
    def passed(self) -> bool | None:
        return None if self.bar is None else self.value <= self.bar


@dataclasses.dataclass(frozen=True)
class Setting:
    """How much is measured."""

    rounds: int = 7
    num_steps: int = 50
    num_tokens: int = 128


@dataclasses.dataclass(frozen=True)
class Measured:
    """Figures, and all seconds behind them by name, a number per round."""

    figures: list[Figure]
    seconds: dict[str, tuple[float, ...]]


def measure(
    model: Model,
    setting: Setting,
    groups: Sequence[str],
    say: Callable[[str], None] = lambda message: None,
) -> Measured:
    """Measures the named groups of figures, in the order of GROUPS."""
    whole = Measured([], {})
    for group in (g for g in GROUPS if g in groups):
        say(f"{group}: compiling, then {setting.rounds} rounds")
        found = GROUPS[group](model, setting)
        whole.figures.extend(found.figures)
        whole.seconds.update({f"{group}: {name}": times for name, times in found.seconds.items()})
    return whole


def _ratio(
    rounds: Rounds, over: str, under: str, what: str, bar: float | None = None, note: str = ""
) -> Figure:
    low, high = rounds.spread(over, under)
    note += f"{'; ' if note else ''}quartiles {low:.3g} to {high:.3g}"
    return Figure(what, rounds.ratio(over, under), bar=bar, note=note)


def image(model: Model, setting: Setting) -> Measured:
    """One image with three contexts: against its bare passes, and against other algorithms."""
    sampler = fixtures.make_sampler(model, None, BATCH)
    (request,) = fixtures.image_requests(model.config, 1, setting.num_steps)
    networks = lower_bounds.Networks(model, sampler, request)
    recompute = baselines.recomputing(model, sampler)
    branches = baselines.one_after_another(model, sampler)
    rounds = alternate(
        {
            "image": lambda: _phases(sampler, request),
            "networks": networks,
            "recomputing": lambda: recompute(request),
            "one after another": lambda: branches(request),
        },
        setting.rounds,
    )
    shares = ", ".join(
        f"{part} {rounds.ratio(part, 'image'):.0%}" for part in ("encode", "prefill", "decode")
    )
    steps = f"{setting.num_steps} steps"
    ratio = functools.partial(_ratio, rounds)
    figures = [
        ratio("flow", "bare steps", f"{steps} in three contexts / their bare forward passes", BAR),
        ratio("image", "networks",
              "the whole image, prompt to pixels / bare passes of all its networks", BAR),
        ratio("image", "bare steps",
              f"the whole image / the bare forward passes of its {steps} alone", note=shares),
        ratio("recomputing", "image",
              "the same image, histories computed again in every step / with the cache"),
        ratio("one after another", "image",
              "the same image by the structure of BAGEL's sampler / by ours"),
    ]  # fmt: skip
    return Measured(figures, rounds.seconds)


def _phases(sampler: Sampler, request: Request) -> dict[str, float]:
    """Serves a request; seconds of its phases."""
    with watching(sampler.engine) as watch:
        sampler.sample([request])
    return {
        "encode": watch.total("image encode"),
        "prefill": watch.total("prefill"),
        "flow": watch.span("integrate_flow"),
        "decode": watch.total("image decode"),
    }


def batch(model: Model, setting: Setting) -> Measured:
    """Images in a batch, against one after another."""
    sampler = fixtures.make_sampler(model, None, BATCH)
    requests = fixtures.image_requests(model.config, BATCH, setting.num_steps)
    rounds = alternate(
        {"batch": lambda: sampler.sample(requests), "one": lambda: sampler.sample(requests[:1])},
        setting.rounds,
    )
    ones = tuple(BATCH * seconds for seconds in rounds.seconds["one"])
    both = Rounds(rounds.seconds | {"ones": ones})
    what = f"a batch of {BATCH} images / {BATCH} times a batch of one"
    return Measured([_ratio(both, "batch", "ones", what)], rounds.seconds)


def text(model: Model, setting: Setting) -> Measured:
    """Tokens per second, against the matmuls of the same weights."""
    sampler = fixtures.make_sampler(model, None, BATCH)
    tokenizer, config = model.tokenizer, model.config.model
    sampler.allowed[[tokenizer.im_end, tokenizer.endoftext]] = False  # so that none ends early
    count, sizes = setting.num_tokens, (1, BATCH)
    calls: dict[str, Callable[[], Any]] = {}
    for size in sizes:
        requests = fixtures.text_requests(size, count)
        matmuls = lower_bounds.token_matmuls(model.params, config, size)
        calls[f"text, batch {size}"] = functools.partial(sampler.sample, requests)
        calls[f"matmuls, batch {size}"] = functools.partial(matmuls, count)
    rounds = alternate(calls, setting.rounds)
    figures = []
    for size in sizes:
        names = f"text, batch {size}", f"matmuls, batch {size}"
        rate, bare_rate = (size * count / rounds.median(name) for name in names)
        what = f"writing {count} tokens at batch {size} / the matmuls of their weights alone"
        note = f"{rate:,.0f} tokens/s, matmuls {bare_rate:,.0f}"
        figures.append(_ratio(rounds, *names, what, note=note))
    return Measured(figures, rounds.seconds)


def compilations(model: Model, setting: Setting) -> Measured:
    """Programs that mixed requests take on a new sampler; and others of their kind afterwards."""
    sets = [
        fixtures.mixed_requests(model.config, MIXED, seed=seed, num_steps=4, max_tokens=32)
        for seed in (1, 2)
    ]
    needed = fixtures.longest(model, [*sets[0], *sets[1]]) + 32
    max_length = max(token_limits(model.config).und, needed)
    sampler = fixtures.make_sampler(model, max_length, BATCH, few_tokens=True)
    counts = []
    for requests in sets:
        sampler.sample(requests)
        counts.append(sampler.engine.programs.counts.copy())
    first, second = counts
    note = ", ".join(f"{name} {n}" for name, n in sorted(first.items()))
    more = second.total() - first.total()
    figures = [
        Figure(f"programs compiled for {MIXED} mixed requests", first.total(), "", note=note),
        Figure(f"programs compiled for {MIXED} others after them", more, ""),
    ]
    return Measured(figures, {})


GROUPS = {"image": image, "batch": batch, "text": text, "compilations": compilations}


def as_text(name: str, setting: Setting, measured: Measured, machine: Mapping[str, str]) -> str:
    """The table of figures, each with its bar."""
    title = f"Sampling of {name}: medians of {setting.rounds} rounds, what is compared run in turn"
    lines = [title, "; ".join(f"{key} {value}" for key, value in machine.items()), ""]
    width = max(len(f.what) for f in measured.figures)
    for f in measured.figures:
        value = f"{f.value:.3g} {f.unit}" if f.unit else f"{f.value:.0f}"
        bar = "" if f.bar is None else f"bar {f.bar:g}: {'held' if f.passed else 'MISSED'}"
        lines.append(f"{f.what:<{width}}  {value:>8}  {bar:<16}  {f.note}".rstrip())
    return "\n".join(lines)


def as_json(
    name: str, setting: Setting, measured: Measured, machine: Mapping[str, str]
) -> dict[str, Any]:
    """The same, and the seconds behind it."""
    return {
        "model": name,
        "setting": dataclasses.asdict(setting),
        "machine": dict(machine),
        "figures": [{**dataclasses.asdict(f), "passed": f.passed} for f in measured.figures],
        "median_seconds": {k: float(np.median(v)) for k, v in measured.seconds.items()},
        "seconds": {k: list(v) for k, v in measured.seconds.items()},
    }
