"""`mogao eval shapes`: exact scores of a model on the embedded world, or a check of the scorer."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import pathlib
import re
import sys
from typing import Any

from mogao_jax.atomic import require_writable, write_file
from mogao_jax.config.schema import MogaoConfig
from mogao_jax.console import flags
from mogao_jax.console.flags import Parser, sampling_options
from mogao_jax.console.output import configure_logging, progress
from mogao_jax.errors import DataError
from mogao_jax.worlds.shapes.evals.cases import TASKS
from mogao_jax.worlds.shapes.scene import WORLDS

_EXAMPLES = """examples:
  mogao eval shapes
  mogao eval shapes --checkpoint runs/quickstart --per-category 50 --out runs/quickstart
  mogao eval shapes --checkpoint runs/mine --untrained --out runs/mine --suffix _untrained
  mogao eval shapes --beside runs/mine/scores_untrained.json --out scores/demo
  mogao eval shapes --guidance-table --per-category 20
  mogao eval shapes --validate
"""
_BAR = 0.99  # that the scorer must reach both ways

# Flags that mean nothing to a table of guidance scales, or to a check of the scorer.
_USELESS = {
    "guidance_table": ("validate", "tasks", "guidance", "image_guidance", "beside"),
    "validate": ("tasks", "beside", "checkpoint", "weights", "untrained", "steps", "solver",
                 "guidance", "image_guidance", "temperature", "top_p", "draw_first", "seed",
                 "batch_size", "world"),
}  # fmt: skip


def main(argv: list[str]) -> int:
    """Parses and runs; returns the exit status (1: the scorer did not pass its validation)."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    _check(arguments, parser)
    configure_logging()
    if arguments.out:
        arguments.out = require_writable(arguments.out)  # before time is spent
    if arguments.validate:
        return _validate(arguments)
    return _guidance_table(arguments) if arguments.guidance_table else _score(arguments)


def _check(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Raises DataError or RequestError for what cannot be; makes --tasks a tuple."""
    tasks = _tasks(arguments.tasks)
    flag = flags.flag
    for mode in [m for m in _USELESS if getattr(arguments, m)]:
        given = [n for n in _USELESS[mode] if getattr(arguments, n) != parser.get_default(n)]
        if given:
            raise DataError(f"{flag(mode)} has no use for {', '.join(map(flag, given))}: drop it.")
    arguments.tasks = tasks
    flags.check_numbers(arguments, ("per_category", "batch_size"), ("seed", "data_seed"))
    if not re.fullmatch(r"\w{0,40}", arguments.suffix):
        raise DataError(f"--suffix is {arguments.suffix!r}; use letters, digits and _.")
    # Before a model is loaded: without a size, options are the same for every config.
    sampling_options(arguments, MogaoConfig())


def _tasks(text: str) -> tuple[str, ...]:
    tasks = tuple(t.strip() for t in text.split(",") if t.strip())
    unknown = [t for t in tasks or (text,) if t not in TASKS]
    if unknown:
        raise DataError(
            f"--tasks: there is no task {unknown[0]!r}; the tasks are {', '.join(TASKS)}."
        )
    return tasks


def _score(arguments: argparse.Namespace) -> int:
    """Scores task after task; what is done is kept, and shown if the rest is interrupted."""
    from mogao_jax.worlds.shapes.evals import benchmark, saving, scores

    beside = scores.read(arguments.beside) if arguments.beside else None
    model = _model(arguments)
    latest: list[scores.Scores] = []

    def keep(found: scores.Scores) -> list[pathlib.Path]:
        facts = {"parameters": model.facts, "compilations": model.sampler.num_compilations}
        latest[:] = [dataclasses.replace(found, settings={**facts, **found.settings})]
        if not arguments.out:
            return []
        return saving.save(latest[0], arguments.out, arguments.suffix, beside)

    files: list[pathlib.Path] = []
    try:
        found = benchmark.run(
            model.sampler,
            model.benchmark,
            name=model.name,
            role=model.role,
            say=progress,
            keep=keep,
        )
        files = keep(found)
    finally:  # also of an interrupted one
        if latest:
            print(scores.as_text(latest[0], beside))
    for path in files:
        print(f"Written: {path}", file=sys.stderr)
    return 0


def _guidance_table(arguments: argparse.Namespace) -> int:
    from mogao_jax.worlds.shapes.evals import guidance

    model = _model(arguments)
    path = arguments.out and arguments.out / f"guidance{arguments.suffix}.json"
    made: list[guidance.Setting] = []
    record = {
        "name": model.name,
        "role": model.role,
        "parameters": model.facts,
        "cases per category": arguments.per_category,
        "steps": model.benchmark.options.num_steps,
        "solver": model.benchmark.options.solver,
        "draws first": arguments.draw_first,
        "seed": arguments.seed,
        "data seed": arguments.data_seed,
    }

    def keep(settings: list[guidance.Setting]) -> None:
        made[:] = settings
        if path:
            _write(path, {**record, "table": guidance.as_json(settings)})

    try:
        guidance.guidance_table(model.sampler, model.benchmark, say=progress, keep=keep)
    finally:  # also of an interrupted one
        if made:
            print(f"Guidance of {model.name}, {model.facts}\n\n{guidance.as_text(made)}")
    if path:
        print(f"Written: {path}", file=sys.stderr)
    return 0


def _validate(arguments: argparse.Namespace) -> int:
    """Every trial under every distortion; fails under the bar of 0.99 both ways."""
    from mogao_jax.worlds.shapes.evals import validation

    passed, records = True, []
    distortions = validation.distortions()
    print(f"{'':27} {'right judged right':>28}   {'wrong judged wrong':>28}")
    for (which, world), task in itertools.product(WORLDS.items(), ("t2i", "edit", "story")):
        trials = validation.trials(task, arguments.per_category, arguments.data_seed, world)
        for name, distort in distortions.items():
            found = validation.validate(task, trials, name, distort, world)
            passed &= min(found.accepted.value, found.refused.value) >= _BAR
            cells = []
            for share in (found.accepted, found.refused):
                low, high = share.interval
                cells.append(f"{share.value:.4f} [{low:.3f}, {high:.3f}] of {share.total}")
            print(f"{which} {task:6} {name:15} {cells[0]:>28}   {cells[1]:>28}", flush=True)
            records.append({"world": which, **dataclasses.asdict(found)})
    print("passed" if passed else f"FAILED: below {_BAR}")
    if arguments.out:
        path = arguments.out / f"validation{arguments.suffix}.json"
        _write(path, records)
        print(f"Written: {path}", file=sys.stderr)
    return 0 if passed else 1


def _write(path: pathlib.Path, record: Any) -> None:
    write_file(path, json.dumps(record, indent=1) + "\n")


# -------------------------------------------------------------------------------------- the model


@dataclasses.dataclass(frozen=True)
class _Scored:
    """A sampler, what it is scored on, and what is said about it."""

    sampler: Any
    benchmark: Any
    name: str
    role: str
    facts: str


def _model(arguments: argparse.Namespace) -> _Scored:
    from mogao_jax.sampling.loading import DEMO
    from mogao_jax.worlds.shapes.evals.benchmark import Benchmark
    from mogao_jax.worlds.shapes.options import world_name
    from mogao_jax.worlds.shapes.scene import fitting_world

    model = flags.load(arguments)
    role = "demo" if model.name == DEMO else "own"
    facts = f"{model.weights} parameters after {model.step} steps"
    params = model.params
    if arguments.untrained:
        params, role, facts = _initial(model, arguments.seed), "untrained", "initial parameters"
    images = model.config.images
    name = arguments.world or world_name(model.config)
    world = fitting_world(name, images.max_pixels, images.max_side)
    benchmark = Benchmark(
        tasks=arguments.tasks,
        per_category=arguments.per_category,
        options=sampling_options(arguments, model.config),
        draw_first=arguments.draw_first,
        seed=arguments.seed,
        data_seed=arguments.data_seed,
        batch_size=arguments.batch_size,
        world=world,
        own_sizes=world.max_pixels <= images.max_pixels,  # whether it can draw the canvases
    )
    sampler = flags.make_sampler(model, arguments, params=params)
    return _Scored(sampler, benchmark, model.name, role, facts)


def _initial(model: Any, seed: int) -> Any:
    """The parameters that training of this config starts from, for some seed."""
    import jax

    from mogao_jax.models.modules import init_params
    from mogao_jax.sharding import rules

    def initial(key: Any) -> Any:
        return rules.unbox(init_params(model.config, model.modules.model, key))

    return jax.jit(initial)(jax.random.key(seed))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="mogao eval shapes",
        description="Scores a model on held-out prompts of the embedded world, exactly: images "
        "by what they show, answers by string, edits by what changed and what stayed, stories by "
        "every step. Prints the table; --out keeps it, with an image grid.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    add = parser.add_argument_group("what to do").add_argument
    add("--tasks", default=",".join(TASKS), help=f"of {','.join(TASKS)} (all)")
    add("--guidance-table", action="store_true",
        help="t2i, edit and story at nine pairs of guidance scales")  # fmt: skip
    add("--validate", action="store_true",
        help="check the scorer itself on true and wrong images; needs no model")  # fmt: skip
    add("--per-category", type=int, default=100, metavar="N",
        help="cases of every category (100); of a validation, documents")  # fmt: skip
    add("--world", choices=[*WORLDS], help="what is asked for (the model's own)")
    add("--data-seed", type=int, default=0, help="of the held-out documents")
    add("--out", type=pathlib.Path, metavar="DIR",
        help="writes scores.json, grid.png and grid.html")  # fmt: skip
    add("--suffix", default="", metavar="TEXT",
        help="of these files' names, for several models in one folder: _demo")  # fmt: skip
    add("--beside", type=pathlib.Path, metavar="FILE",
        help="a scores.json of another model, shown beside this one")  # fmt: skip

    add = flags.add_model_flags(parser, default="demo")
    add("--untrained", action="store_true", help="initial parameters of the same model instead")
    add = flags.add_sampling_flags(parser)
    add("--draw-first", action="store_true",
        help="draw at once where an image is asked for; by default the model decides")  # fmt: skip
    return parser
