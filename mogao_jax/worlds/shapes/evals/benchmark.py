"""The benchmark of the embedded world: held-out prompts, sampled, and judged exactly.

Five tasks, the same number of cases of every category, always the same ones for a seed:

- t2i: a caption of one of GenEval's six categories; the picture must show it, no less, no more;
- qa: a picture and a question; the answer must be exact;
- edit: a picture and an instruction; done, and everything else kept;
- story: planned (the request names every step) or free; the number of pictures, their order, and
  what each shows, a free one by the model's own sentence before it;
- clip: the next frame of an object's motion.

Prompts are documents of the validation split, cut before what is to be generated. Pictures are
asked for in the size of the document's own.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from mogao_jax.errors import ConfigError
from mogao_jax.evals.proportion import Proportion, count
from mogao_jax.sampling.options import SamplingOptions
from mogao_jax.sampling.requests import Request, Result
from mogao_jax.worlds.shapes.evals.baselines import Rates, chance
from mogao_jax.worlds.shapes.evals.cases import TASKS, Case, Judged, cases
from mogao_jax.worlds.shapes.evals.judging import judge
from mogao_jax.worlds.shapes.evals.scores import OVERALL, Row, Scores
from mogao_jax.worlds.shapes.scene import DEFAULT_WORLD, World
from mogao_jax.worlds.shapes.stories import DIRECTIONS
from mogao_jax.worlds.shapes.truth import CATEGORIES, EDITS, QUESTIONS

GROUPS: dict[str, tuple[str, ...]] = {
    "t2i": CATEGORIES,
    "qa": QUESTIONS,
    "edit": EDITS,
    "story": ("planned", "free"),
    "clip": tuple(DIRECTIONS),
}
_METRICS = {
    "t2i": ("right",),
    "qa": ("right",),
    "edit": ("done", "kept", "right"),
    "clip": ("done", "kept", "right"),
    "story": ("count", "order", "whole"),
}
# What a task may take: enough for any right output, and an end for wrong ones.
_LIMITS: dict[str, dict[str, Any]] = {
    "t2i": {"max_images": 1, "max_tokens": 64},
    "qa": {"allow_images": False, "max_tokens": 32},
    "edit": {"max_images": 1, "max_tokens": 64},
    "story": {"max_images": 6, "max_tokens": 320},
    "clip": {"max_images": 1, "max_tokens": 64},
}

DEFAULTS = SamplingOptions()
INCOMPLETE = "incomplete"


class Samples(Protocol):
    """A sampler, or a loaded model."""

    def sample(self, requests: Sequence[Request], /) -> list[Result]: ...


def options_for(task: str, options: SamplingOptions, draw_first: bool = False) -> SamplingOptions:
    """A task's options: those given, and its limits.

    Args:
      draw_first: draw at once in t2i, edit and clip; otherwise the model decides whether to draw,
        and fails where it does not.
    """
    first = draw_first and task in ("t2i", "edit", "clip")
    return dataclasses.replace(options, draw_first=first, **_LIMITS[task])


def run(
    sampler: Samples,
    *,
    tasks: Sequence[str] = TASKS,
    per_category: int = 100,
    options: SamplingOptions = DEFAULTS,
    draw_first: bool = False,
    seed: int = 0,
    data_seed: int = 0,
    batch_size: int = 32,
    world: World = DEFAULT_WORLD,
    own_sizes: bool = True,
    name: str = "a model",
    role: str = "own",
    with_chance: bool = True,
    say: Callable[[str], None] | None = None,
    keep: Callable[[Scores], object] | None = None,
) -> Scores:
    """Samples and scores a model.

    Args:
      sampler: what is scored.
      tasks: of TASKS.
      per_category: cases of every category; stories have two categories, clips four.
      options: steps, guidance and so on; each task sets its own limits.
      draw_first: see `options_for`.
      seed: of sampling: case number n of a task has the seed `seed` * 2**20 + n.
      data_seed: of the held-out documents.
      batch_size: requests given to the sampler at a time.
      world: whose pictures the model knows (`DEFAULT_WORLD.fitting(...)` of its config).
      own_sizes: ask for pictures in the sizes of the documents' own; False: in the sampler's
        default size (for a model that can draw none of the world's canvases).
      name, role: of the model, for the tables.
      with_chance: whether to simulate chance levels too.
      say: is told about progress.
      keep: is given the scores so far after each task but the last; their settings name the
        tasks that are missing, under INCOMPLETE.
    Raises:
      ConfigError: an unknown task, or numbers below 1.
    """
    unknown = [t for t in tasks if t not in TASKS]
    if unknown:
        raise ConfigError(f"there is no task {unknown[0]!r}; the tasks are {', '.join(TASKS)}.")
    if per_category < 1 or batch_size < 1:
        raise ConfigError(
            "the number of cases per category and the batch size must be 1 or more, got "
            f"{per_category} and {batch_size}."
        )
    tell = say or (lambda message: None)
    began = time.monotonic()
    rows: list[Row] = []
    outcomes: dict[str, list[Judged]] = {}
    settings = {
        "world": world.summary,
        "cases per category": per_category,
        "steps": options.num_steps,
        "solver": options.solver,
        "guidance": options.guidance_scale,
        "image guidance": options.image_guidance_scale,
        "draws first": "at once (t2i, edit, clip)" if draw_first else "as the model decides",
        "seed": seed,
        "data seed": data_seed,
    }

    def so_far(missing: Sequence[str]) -> Scores:
        more: dict[str, Any] = {"seconds": round(time.monotonic() - began, 1)}
        if missing:
            more[INCOMPLETE] = f"without {', '.join(missing)}"
        return Scores(name, role, tuple(rows), {**settings, **more}, dict(outcomes))

    for number, task in enumerate(tasks, start=1):
        chosen = cases(task, GROUPS[task], per_category, seed=data_seed, world=world)
        sizes = [c.canvas if own_sizes else None for c in chosen]
        task_options = options_for(task, options, draw_first)
        outcomes[task] = _sample(
            sampler, chosen, sizes, task_options, seed, batch_size, world, tell
        )
        luck = chance(task, chosen, world, data_seed) if with_chance else {}
        rows += task_rows(task, outcomes[task], luck)
        if keep and number < len(tasks):
            keep(so_far(tasks[number:]))
    return so_far(())


def _sample(
    sampler: Samples,
    chosen: Sequence[Case],
    sizes: Sequence[tuple[int, int] | None],
    options: SamplingOptions,
    seed: int,
    batch_size: int,
    world: World,
    tell: Callable[[str], None],
) -> list[Judged]:
    judged: list[Judged] = []
    requests = [
        Request(case.prompt, seed * 2**20 + n, dataclasses.replace(options, size=size))
        for n, (case, size) in enumerate(zip(chosen, sizes, strict=True))
    ]
    for start in range(0, len(chosen), batch_size):
        part = chosen[start : start + batch_size]
        results = sampler.sample(requests[start : start + batch_size])
        for case, result in zip(part, results, strict=True):
            judged.append(judge(case, result.items, result.stop, world))
        right = count(j.right for j in judged)
        tell(f"{part[0].task}: {len(judged)} of {len(chosen)} cases, {right.value:.0%} right")
    return judged


def task_rows(task: str, judged: Sequence[Judged], luck: Rates) -> list[Row]:
    """The figures of a task, per category and overall."""
    groups = {g: [j for j in judged if j.case.category == g] for g in GROUPS[task]}
    groups = {g: found for g, found in groups.items() if found}
    groups[OVERALL] = list(judged)
    rows = []

    def add(group: str, metric: str, share: Proportion) -> None:
        if share.total:
            rows.append(Row(task, group, metric, share, luck.get((group, metric))))

    for metric in _METRICS[task]:
        for group, found in groups.items():
            add(group, metric, count(j.checks[metric] for j in found))
    for group, found in groups.items():
        if task == "story":
            add(group, "steps", count(v.right for j in found for v in j.pictures))
    for group, found in groups.items():
        if task in ("edit", "clip"):
            add(group, "objects", Proportion(*(sum(j.objects[i] for j in found) for i in (0, 1))))
    for group, found in groups.items():
        if task in ("edit", "story"):
            add(group, "repeated", count(r for j in found for r in j.repeated))
    return rows
