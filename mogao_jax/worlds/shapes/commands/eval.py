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
from mogao_jax.console.image_options import add_picture_flags, picture_options
from mogao_jax.console.logs import configure_logging
from mogao_jax.console.parser import Parser
from mogao_jax.console.sample_options import check_seed
from mogao_jax.errors import DataError
from mogao_jax.worlds.shapes.evals.cases import TASKS

_EXAMPLES = """examples:
  mogao eval shapes
  mogao eval shapes --checkpoint runs/quickstart --per-category 50 --out runs/quickstart
  mogao eval shapes --checkpoint runs/mine --untrained --out runs/mine --suffix _untrained
  mogao eval shapes --beside runs/mine/scores_untrained.json --out scores/demo
  mogao eval shapes --guidance-table --per-category 20
  mogao eval shapes --validate
"""


# Of what a table of guidance scales, or a check of the scorer, has no use for.
_USELESS = {
    "guidance_table": ("validate", "tasks", "guidance", "image_guidance", "beside"),
    "validate": ("tasks", "beside", "checkpoint", "weights", "untrained", "steps", "solver",
                 "guidance", "image_guidance", "draw_first", "seed", "batch_size"),
}  # fmt: skip


def main(argv: list[str]) -> int:
    """Parses and runs; returns the exit status (1: the scorer did not pass its validation)."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    tasks = _check(arguments, parser)
    configure_logging()
    if arguments.out:
        arguments.out = require_writable(arguments.out)  # before time is spent
    if arguments.validate:
        return _validate(arguments)
    if arguments.guidance_table:
        return _guidance_table(arguments)
    return _score(arguments, tasks)


def _check(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> tuple[str, ...]:
    """The tasks; raises DataError or RequestError for what cannot be."""
    tasks = tuple(t.strip() for t in arguments.tasks.split(",") if t.strip())
    unknown = [t for t in tasks if t not in TASKS]
    if unknown or not tasks:
        name = unknown[0] if unknown else arguments.tasks
        raise DataError(f"--tasks: there is no task {name!r}; the tasks are {', '.join(TASKS)}.")
    for what, useless in _USELESS.items():
        given = [n for n in useless if getattr(arguments, n) != parser.get_default(n)]
        if getattr(arguments, what) and given:
            raise DataError(
                f"{_flag(what)} has no use for {', '.join(map(_flag, given))}: drop it."
            )
    for name in ("per_category", "batch_size"):
        if getattr(arguments, name) < 1:
            raise DataError(f"{_flag(name)} must be 1 or more, got {getattr(arguments, name)}.")
    for name in ("seed", "data_seed"):
        check_seed(getattr(arguments, name), flag=_flag(name))
    if not re.fullmatch(r"\w{0,40}", arguments.suffix):
        raise DataError(f"--suffix is {arguments.suffix!r}; use letters, digits and _.")
    _check_options(arguments)
    return tasks


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _score(arguments: argparse.Namespace, tasks: tuple[str, ...]) -> int:
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

    try:
        found = benchmark.run(
            model.sampler,
            tasks=tasks,
            options=picture_options(arguments, model.config),
            name=model.name,
            role=model.role,
            keep=keep,
            **_common(arguments, model),
        )
    except KeyboardInterrupt:
        if latest:
            print(scores.as_text(latest[0], beside))
        raise
    files = keep(found)
    print(scores.as_text(latest[0], beside))
    for path in files:
        print(f"Written: {path}", file=sys.stderr)
    return 0


def _guidance_table(arguments: argparse.Namespace) -> int:
    from mogao_jax.worlds.shapes.evals import guidance

    model = _model(arguments)
    options = picture_options(arguments, model.config)
    path = arguments.out and arguments.out / f"guidance{arguments.suffix}.json"
    made: list[guidance.Setting] = []

    def keep(settings: list[guidance.Setting]) -> None:
        made[:] = settings
        if path:
            _write(path, _guidance_record(arguments, model, options, guidance.as_json(settings)))

    try:
        guidance.guidance_table(
            model.sampler, options=options, keep=keep, **_common(arguments, model)
        )
    finally:  # also of an interrupted one
        if made:
            print(f"Guidance of {model.name}, {model.facts}\n\n{guidance.as_text(made)}")
    if path:
        print(f"Written: {path}", file=sys.stderr)
    return 0


def _guidance_record(
    arguments: argparse.Namespace, model: _Scored, options: Any, table: list[dict[str, Any]]
) -> dict[str, Any]:
    """The table with what it was made with."""
    return {
        "name": model.name,
        "role": model.role,
        "parameters": model.facts,
        "cases per category": arguments.per_category,
        "steps": options.num_steps,
        "solver": options.solver,
        "draws first": arguments.draw_first,
        "seed": arguments.seed,
        "data seed": arguments.data_seed,
        "table": table,
    }


def _validate(arguments: argparse.Namespace) -> int:
    """Every trial under every distortion; fails under the bar of 0.99 both ways."""
    from mogao_jax.worlds.shapes.evals import validation
    from mogao_jax.worlds.shapes.scene import WORLDS

    bar, passed, records = 0.99, True, []
    distortions = validation.distortions()
    print(f"{'':27} {'right judged right':>28}   {'wrong judged wrong':>28}")
    for (which, world), task in itertools.product(WORLDS.items(), ("t2i", "edit", "story")):
        trials = validation.trials(task, arguments.per_category, arguments.data_seed, world)
        for name, distort in distortions.items():
            found = validation.validate(task, trials, name, distort, world)
            passed &= found.accepted.value >= bar and found.refused.value >= bar
            cells = [_share(s) for s in (found.accepted, found.refused)]
            print(f"{which} {task:6} {name:15} {cells[0]:>28}   {cells[1]:>28}", flush=True)
            records.append({"world": which, **dataclasses.asdict(found)})
    print("passed" if passed else f"FAILED: below {bar}")
    if arguments.out:
        path = arguments.out / f"validation{arguments.suffix}.json"
        _write(path, records)
        print(f"Written: {path}", file=sys.stderr)
    return 0 if passed else 1


def _share(share: Any) -> str:
    low, high = share.interval
    return f"{share.value:.4f} [{low:.3f}, {high:.3f}] of {share.total}"


# ------------------------------------------------------------------------------------ the model


@dataclasses.dataclass(frozen=True)
class _Scored:
    """A sampler with what is said about it."""

    sampler: Any
    config: Any
    world: Any
    own_sizes: bool  # whether the model can draw the world's canvases
    name: str
    role: str
    facts: str


def _model(arguments: argparse.Namespace) -> _Scored:
    from mogao_jax.console.compile_cache import keep_compiled_programs
    from mogao_jax.sampling.loading import DEMO, load_model
    from mogao_jax.sampling.pipeline import make_sampler
    from mogao_jax.worlds.shapes.scene import fitting_world

    keep_compiled_programs()
    model = load_model(arguments.checkpoint, weights=arguments.weights)
    role = "demo" if model.name == DEMO else "own"
    facts = f"{model.weights} parameters after {model.step} steps"
    if arguments.untrained:
        model = dataclasses.replace(model, params=_initial(model, arguments.seed))
        role, facts = "untrained", "initial parameters"
    images = model.config.images
    world = fitting_world(model.config.data.world, images.max_pixels, images.max_side)
    return _Scored(
        make_sampler(model, arguments.batch_size),
        model.config,
        world,
        world.max_pixels <= images.max_pixels,
        model.name,
        role,
        facts,
    )


def _initial(model: Any, seed: int) -> Any:
    """The parameters that training of this config starts from, for some seed."""
    import jax

    from mogao_jax.models.modules import init_params
    from mogao_jax.sharding import rules

    def initial(key: Any) -> Any:
        return rules.unbox(init_params(model.config, model.modules.model, key))

    return jax.jit(initial)(jax.random.key(seed))


def _common(arguments: argparse.Namespace, model: _Scored) -> dict[str, Any]:
    return {
        "per_category": arguments.per_category,
        "seed": arguments.seed,
        "data_seed": arguments.data_seed,
        "batch_size": arguments.batch_size,
        "draw_first": arguments.draw_first,
        "world": model.world,
        "own_sizes": model.own_sizes,
        "say": lambda message: print(f"... {message}", file=sys.stderr, flush=True),
    }


def _check_options(arguments: argparse.Namespace) -> None:
    """Before a model is loaded: without a size, options are the same for every config."""
    from mogao_jax.config.schema import MogaoConfig

    picture_options(arguments, MogaoConfig())


# ------------------------------------------------------------------------------------- the files


def _write(path: pathlib.Path, record: Any) -> None:
    write_file(path, json.dumps(record, indent=1) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="mogao eval shapes",
        description="Scores a model on held-out prompts of the embedded world, exactly: pictures "
        "by what they show, answers by string, edits by what changed and what stayed, stories by "
        "every step. Prints the table; --out keeps it, with a picture grid.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    add = parser.add_argument_group("what to do").add_argument
    add("--tasks", default=",".join(TASKS), help=f"of {','.join(TASKS)} (all)")
    add("--guidance-table", action="store_true",
        help="t2i, edit and story at nine pairs of guidance scales")  # fmt: skip
    add("--validate", action="store_true",
        help="check the scorer itself on true and wrong pictures; needs no model")  # fmt: skip
    add("--per-category", type=int, default=100, metavar="N",
        help="cases of every category (100); of a validation, documents")  # fmt: skip
    add("--out", type=pathlib.Path, metavar="DIR",
        help="writes scores.json, grid.png and grid.html")  # fmt: skip
    add("--suffix", default="", metavar="TEXT",
        help="of these files' names, for several models in one folder: _demo")  # fmt: skip
    add("--beside", type=pathlib.Path, metavar="FILE",
        help="a scores.json of another model, shown beside this one")  # fmt: skip

    add = parser.add_argument_group("the model").add_argument
    add("--checkpoint", default="demo",
        help="demo (default), an exported file, a run's folder, or one checkpoint")  # fmt: skip
    add("--weights", choices=("best", "ema", "raw"), default="best")
    add("--untrained", action="store_true", help="initial parameters of the same model instead")

    add = parser.add_argument_group("sampling").add_argument
    add_picture_flags(add)
    add("--draw-first", action="store_true",
        help="draw at once where a picture is asked for; by default the model decides")  # fmt: skip
    add("--seed", type=int, default=0, help="of sampling")
    add("--data-seed", type=int, default=0, help="of the held-out documents")
    add("--batch-size", type=int, default=32, metavar="N", help="requests at a time (32)")
    return parser
