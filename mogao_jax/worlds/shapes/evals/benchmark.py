"""The benchmark of the embedded world: held-out prompts, sampled, and judged exactly.

Five tasks, the same number of cases of every category, always the same ones for a seed:

- t2i: a caption of one of GenEval's six categories; the image must show it, no less, no more;
- qa: an image and a question; the answer must be exact;
- edit: an image and an instruction; done, and everything else kept;
- story: planned (the request names every step) or free; the number of images, their order, and
  what each shows, a free one by the model's own sentence before it;
- clip: the next frame of an object's motion.

Prompts are documents of the validation split, cut before what is to be generated. Images are asked
for in the size of the document's own.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

from mogao_jax.errors import ConfigError
from mogao_jax.evals.proportion import Proportion, count
from mogao_jax.evals.retrieval import Samples
from mogao_jax.sampling.options import SamplingOptions
from mogao_jax.sampling.requests import Request
from mogao_jax.worlds.shapes.evals.baselines import Rates, baselines
from mogao_jax.worlds.shapes.evals.cases import TASKS, Case, cases
from mogao_jax.worlds.shapes.evals.judging import Judged, judge
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
    "edit": ("done", "kept", "right", "objects", "repeated"),
    "story": ("count", "order", "whole", "steps", "repeated"),
    "clip": ("done", "kept", "right", "objects"),
}
# What a task may take: enough for any right output, and an end for wrong ones. Text is the
# likeliest, but for stories, which are sampled as the model's config has it.
_LIMITS: dict[str, dict[str, Any]] = {
    "t2i": {"max_images": 1, "max_tokens": 64, "temperature": 0.0},
    "qa": {"allow_images": False, "max_tokens": 32, "temperature": 0.0},
    "edit": {"max_images": 1, "max_tokens": 64, "temperature": 0.0},
    "story": {"max_images": 6, "max_tokens": 320},
    "clip": {"max_images": 1, "max_tokens": 64, "temperature": 0.0},
}
_DRAWS_FIRST = {True: "at once (t2i, edit, clip)", False: "as the model decides"}
INCOMPLETE = "incomplete"


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """What is sampled and scored.

    Attributes:
      tasks: of TASKS.
      per_category: cases of every category; stories have two categories, clips four.
      options: steps, guidance and so on; each task sets its own limits.
      draw_first: draw at once in t2i, edit and clip; otherwise the model decides whether to draw,
        and fails where it does not.
      seed: of sampling: case number n of a task has the seed `seed` * 2**20 + n.
      data_seed: of the held-out documents.
      batch_size: requests given to the sampler at a time.
      world: whose images the model knows (`DEFAULT_WORLD.fitting(...)` of its config).
      own_sizes: ask for images in the sizes of the documents' own; False: in the sampler's
        default size (for a model that can draw none of the world's canvases).
      with_chance: whether to simulate chance levels too.

    Raises:
      ConfigError: an unknown task, or numbers below 1.
    """

    tasks: Sequence[str] = TASKS
    per_category: int = 100
    options: SamplingOptions = SamplingOptions()
    draw_first: bool = False
    seed: int = 0
    data_seed: int = 0
    batch_size: int = 32
    world: World = DEFAULT_WORLD
    own_sizes: bool = True
    with_chance: bool = True

    def __post_init__(self):
        unknown = [t for t in self.tasks if t not in TASKS]
        if unknown:
            raise ConfigError(f"there is no task {unknown[0]!r}; the tasks are {', '.join(TASKS)}.")
        if self.per_category < 1 or self.batch_size < 1:
            raise ConfigError(
                "the number of cases per category and the batch size must be 1 or more, got "
                f"{self.per_category} and {self.batch_size}."
            )

    @property
    def settings(self) -> dict[str, Any]:
        """How the model was sampled, and on what, as the tables name it."""
        return {
            "world": self.world.summary,
            "cases per category": self.per_category,
            "steps": self.options.num_steps,
            "solver": self.options.solver,
            "guidance": self.options.guidance_scale,
            "image guidance": self.options.image_guidance_scale,
            "temperature of stories": self.options.temperature,
            "top p of stories": self.options.top_p,
            "draws first": _DRAWS_FIRST[self.draw_first],
            "seed": self.seed,
            "data seed": self.data_seed,
        }

    def requests(self, task: str, chosen: Sequence[Case]) -> list[Request]:
        """What the sampler is asked for the cases of a task."""
        first = self.draw_first and task in ("t2i", "edit", "clip")
        options = dataclasses.replace(self.options, draw_first=first, **_LIMITS[task])
        return [
            Request(
                case.prompt,
                self.seed * 2**20 + n,
                dataclasses.replace(options, size=case.canvas if self.own_sizes else None),
            )
            for n, case in enumerate(chosen)
        ]


DEFAULT_BENCHMARK = Benchmark()


def run(
    sampler: Samples,
    benchmark: Benchmark = DEFAULT_BENCHMARK,
    *,
    name: str = "a model",
    role: str = "own",
    say: Callable[[str], None] = lambda message: None,
    keep: Callable[[Scores], object] = lambda scores: None,
) -> Scores:
    """Samples and scores a model.

    Args:
      sampler: what is scored.
      name, role: of the model, for the tables.
      say: is told about progress.
      keep: is given the scores so far after each task but the last; their settings name the
        tasks that are missing, under INCOMPLETE.
    """
    began = time.monotonic()
    rows: list[Row] = []
    outcomes: dict[str, list[Judged]] = {}
    settings = benchmark.settings
    found = Scores(name, role, (), settings)
    for number, task in enumerate(benchmark.tasks, start=1):
        chosen = cases(
            task,
            GROUPS[task],
            benchmark.per_category,
            seed=benchmark.data_seed,
            world=benchmark.world,
        )
        outcomes[task] = _sample(sampler, benchmark, task, chosen, say)
        luck: Rates = {}
        if benchmark.with_chance:
            luck = baselines(task, chosen, benchmark.world, benchmark.data_seed)
        rows += task_rows(task, outcomes[task], luck)
        settings["seconds"] = round(time.monotonic() - began, 1)
        found = Scores(name, role, tuple(rows), settings, dict(outcomes))
        if missing := benchmark.tasks[number:]:
            told = {**settings, INCOMPLETE: f"without {', '.join(missing)}"}
            keep(dataclasses.replace(found, settings=told))
    return found


def _sample(
    sampler: Samples,
    benchmark: Benchmark,
    task: str,
    chosen: Sequence[Case],
    say: Callable[[str], None],
) -> list[Judged]:
    judged: list[Judged] = []
    requests = benchmark.requests(task, chosen)
    for start in range(0, len(chosen), benchmark.batch_size):
        part = slice(start, start + benchmark.batch_size)
        results = sampler.sample(requests[part])
        for case, result in zip(chosen[part], results, strict=True):
            judged.append(judge(case, result.items, result.stop, benchmark.world))
        right = count(j.right for j in judged)
        say(f"{task}: {len(judged)} of {len(chosen)} cases, {right.value:.0%} right")
    return judged


def task_rows(task: str, judged: Sequence[Judged], luck: Rates) -> list[Row]:
    """The figures of a task, per category and overall."""
    groups = {g: [j for j in judged if j.case.category == g] for g in GROUPS[task]}
    groups[OVERALL] = list(judged)
    made = [
        Row(task, group, metric, _measure(metric, found), luck.get((group, metric)))
        for metric in _METRICS[task]
        for group, found in groups.items()
    ]
    return [row for row in made if row.proportion.total]


def _measure(metric: str, found: Sequence[Judged]) -> Proportion:
    if metric == "steps":
        return count(v.right for j in found for v in j.images)
    if metric == "objects":
        return sum((Proportion(*j.objects) for j in found), Proportion())
    if metric == "repeated":
        return count(r for j in found for r in j.repeated)
    return count(j.checks[metric] for j in found)
