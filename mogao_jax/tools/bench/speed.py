"""What sampling costs, as ratios: a picture, a batch, text, and compilations.

Everything that a ratio compares is run in turn in the same minutes (rounds.py).
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mogao_jax.sampling.lengths import context_limits
from mogao_jax.sampling.loading import Model
from mogao_jax.sampling.requests import Request
from mogao_jax.sampling.sampler import Sampler
from mogao_jax.tools.bench import baselines, fixtures, lower_bounds
from mogao_jax.tools.bench.instrumentation import Watch, watching
from mogao_jax.tools.bench.mixed import longest, mixed_requests
from mogao_jax.tools.bench.rounds import Rounds, alternate

BATCH = 8
BAR = 1.1  # of a picture, over what its networks take
MIXED = 32  # requests whose programs are counted
GROUPS = ("picture", "batch", "text", "compilations")
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
      what: is compared with what.
      value: the median over rounds.
      unit: "x" of a ratio.
      bar: the most that it should be; None where there is none.
      note: what it is made of; spread over rounds.
    """

    what: str
    value: float
    unit: str = "x"
    bar: float | None = None
    note: str = ""

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
    setting: Setting = Setting(),
    groups: Sequence[str] = GROUPS,
    say: Say = lambda message: None,
) -> Measured:
    """Measures the named groups of figures, on one sampler."""
    measures = {"picture": picture, "batch": batch, "text": text, "compilations": compilations}
    figures: list[Figure] = []
    seconds: dict[str, tuple[float, ...]] = {}
    for group in GROUPS:
        if group in groups:
            say(f"{group}: compiling, then {setting.rounds} rounds")
            found = measures[group](model, setting)
            figures += found.figures
            seconds |= {f"{group}: {name}": times for name, times in found.seconds.items()}
    return Measured(figures, seconds)


def _sampler(model: Model, max_context: int | None = None) -> Sampler:
    return Sampler(
        model.modules,
        model.params,
        model.encoders,
        model.tokenizer,
        max_context=max_context,
        batch_size=BATCH,
    )


def _ratio(rounds: Rounds, over: str, under: str, what: str, **fields: Any) -> Figure:
    low, high = rounds.spread(over, under)
    note = f"quartiles {low:.3g} to {high:.3g}"
    if "note" in fields:
        note = f"{fields.pop('note')}; {note}"
    return Figure(what, rounds.ratio(over, under), note=note, **fields)


# ------------------------------------------------------------------------------------ a picture


def picture(model: Model, setting: Setting) -> Measured:
    """One picture with three contexts: its bare passes, and other ways to the same picture."""
    sampler = _sampler(model)
    (request,) = fixtures.picture_requests(model.config, 1, setting.num_steps)
    networks = lower_bounds.Networks(model, sampler, request)
    recompute = baselines.recomputing(model, sampler)
    branches = baselines.one_after_another(model, sampler)
    rounds = alternate(
        {
            "picture": lambda: _watched(sampler, request),
            "networks": networks,
            "recomputing": lambda: _nothing(recompute(request)),
            "one after another": lambda: _nothing(branches(request)),
        },
        setting.rounds,
    )
    shares = ", ".join(
        f"{part} {rounds.ratio(part, 'picture'):.0%}" for part in ("encode", "prefill", "decode")
    )
    steps = f"{setting.num_steps} steps"
    figures = [
        _ratio(
            rounds,
            "flow",
            "bare steps",
            f"{steps} in three contexts / their bare forward passes",
            bar=BAR,
        ),
        _ratio(
            rounds,
            "picture",
            "networks",
            "the whole picture, prompt to pixels / bare passes of all its networks",
            bar=BAR,
        ),
        _ratio(
            rounds,
            "picture",
            "bare steps",
            f"the whole picture / the bare forward passes of its {steps} alone",
            note=shares,
        ),
        _ratio(
            rounds,
            "recomputing",
            "picture",
            "the same picture, histories computed again in every step / with the cache",
        ),
        _ratio(
            rounds,
            "one after another",
            "picture",
            "the same picture by the structure of BAGEL's sampler / by ours",
        ),
    ]
    return Measured(figures, rounds.seconds)


def _watched(sampler: Sampler, request: Request) -> Mapping[str, float]:
    """Serves a request; seconds of its phases."""
    with watching(sampler.engine) as watch:
        sampler.sample([request])
    return _phases(watch)


def _phases(watch: Watch) -> dict[str, float]:
    return {
        "encode": watch.total("picture encode"),
        "prefill": watch.total("extend"),
        "flow": watch.span("draw"),
        "decode": watch.total("picture decode"),
    }


def _nothing(result: Any) -> None:
    """A call that tells of no parts."""


# --------------------------------------------------------------------------------------- batches


def batch(model: Model, setting: Setting) -> Measured:
    """Pictures in a batch, against one after another."""
    sampler = _sampler(model)
    requests = fixtures.picture_requests(model.config, BATCH, setting.num_steps)
    rounds = alternate(
        {
            "batch": lambda: _nothing(sampler.sample(requests)),
            "one": lambda: _nothing(sampler.sample(requests[:1])),
        },
        setting.rounds,
    )
    name = f"a batch of {BATCH} pictures / {BATCH} times a batch of one"
    ones = tuple(BATCH * seconds for seconds in rounds.seconds["one"])
    both = Rounds(rounds.seconds | {"ones": ones})
    return Measured([_ratio(both, "batch", "ones", name)], rounds.seconds)


# ------------------------------------------------------------------------------------------ text


def text(model: Model, setting: Setting) -> Measured:
    """Tokens per second, against the matmuls of the same weights."""
    sampler = _sampler(model)
    tokenizer, config = model.tokenizer, model.config.model
    sampler.allowed[[tokenizer.im_end, tokenizer.endoftext]] = False  # so that none ends early
    count = setting.num_tokens
    calls = {}
    for size in (1, BATCH):
        requests = fixtures.text_requests(size, count)
        matmuls = lower_bounds.token_matmuls(model.params, config, size)
        calls[f"text, batch {size}"] = _runner(sampler.sample, requests)
        calls[f"matmuls, batch {size}"] = _runner(matmuls, count)
    rounds = alternate(calls, setting.rounds)
    figures = []
    for size in (1, BATCH):
        rate = size * count / rounds.median(f"text, batch {size}")
        bare_rate = size * count / rounds.median(f"matmuls, batch {size}")
        figures.append(
            _ratio(
                rounds,
                f"text, batch {size}",
                f"matmuls, batch {size}",
                f"writing {count} tokens at batch {size} / the matmuls of their weights alone",
                note=f"{rate:,.0f} tokens/s, matmuls {bare_rate:,.0f}",
            )
        )
    return Measured(figures, rounds.seconds)


def _runner(function: Callable[[Any], Any], argument: Any) -> Callable[[], None]:
    return lambda: _nothing(function(argument))


# ---------------------------------------------------------------------------------- compilations


def compilations(model: Model, setting: Setting) -> Measured:
    """Programs that mixed requests take on a new sampler; and others of their kind afterwards."""
    sets = [
        mixed_requests(model.config, MIXED, seed=seed, num_steps=4, max_tokens=32)
        for seed in (1, 2)
    ]
    usual, needed = context_limits(model.config).und, longest(model, [*sets[0], *sets[1]]) + 32
    sampler = _sampler(model, max(usual, needed))
    if model.weights == fixtures.RANDOM:
        fixtures.write_few_tokens(sampler, model.tokenizer)
    counts: list[collections.Counter] = []
    for requests in sets:
        sampler.sample(requests)
        counts.append(sampler.engine.programs.counts.copy())
    first, second = counts
    note = ", ".join(f"{name} {n}" for name, n in sorted(first.items()))
    return Measured(
        [
            Figure(f"programs compiled for {MIXED} mixed requests", first.total(), "", note=note),
            Figure(f"programs compiled for {MIXED} others after them",
                   second.total() - first.total(), ""),
        ],
        {},
    )  # fmt: skip
