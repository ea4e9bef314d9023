"""`mogao eval`: how good a model is, on the embedded world or on images of one's own."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from mogao_jax import registry
from mogao_jax.atomic import atomic_file, require_writable, write_file
from mogao_jax.console import flags
from mogao_jax.console.flags import Parser, sampling_options
from mogao_jax.console.output import configure_logging, progress
from mogao_jax.errors import DataError, DocumentError
from mogao_jax.registry import Command

BENCHMARKS = {
    **{name: registry.EVALS.get(name) for name in registry.EVALS.names()},  # of worlds
    "retrieval": Command(
        "--documents PATH: how often the nearest of all the images of your documents is the one "
        "that was asked for",
        "mogao_jax.cli.eval:retrieval",
    ),
}
_MAX_LISTED = 20  # maximum number listed in messages
_CARDS = 24  # in the image grid
_EXAMPLES = """examples:
  mogao eval retrieval --checkpoint runs/emoji --documents data/emoji/captions.jsonl
  mogao eval retrieval --checkpoint runs/emoji --documents data/emoji/edits.jsonl \\
      --split validation --guidance 2 --out runs/emoji/edits
"""


def main(argv: list[str]) -> int:
    """Dispatches on the benchmark; returns its exit status."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0 if argv else 2
    name = argv[0]
    if name == "pictures":
        raise DataError("'mogao eval pictures' is called 'mogao eval retrieval' now.")
    if name not in BENCHMARKS:
        raise DataError(f"there is no benchmark {name!r} of 'mogao eval'.\n{_usage()}")
    return BENCHMARKS[name].run(argv[1:])


def _usage() -> str:
    lines = [f"  {name:10} {command.help}" for name, command in BENCHMARKS.items()]
    head, tail = "usage: mogao eval BENCHMARK ...", "'mogao eval BENCHMARK --help' tells more."
    return "\n".join([head, "", *lines, "", tail])


def retrieval(argv: list[str]) -> int:
    """`mogao eval retrieval`: are drawn images recognised among those of the data?"""
    arguments = _parser().parse_args(argv)
    flags.check_numbers(arguments, ("num", "batch_size"))
    configure_logging()
    if arguments.out:
        arguments.out = require_writable(arguments.out)
    from mogao_jax.data.sources import DocumentsSource
    from mogao_jax.evals.retrieval import gallery_of, run, tasks_of
    from mogao_jax.sampling.requests import Request, prepare, token_limits

    asked = DocumentsSource(arguments.documents, arguments.split)
    model = flags.load(arguments)
    options = sampling_options(arguments, model.config)
    images = model.config.images
    # Evenly over the file: neighbours are often about the same image.
    step = max(1, len(asked) // arguments.num)
    left_out = _LeftOut("document", "documents", "what is asked for")
    limits = token_limits(model.config)
    tasks = tasks_of(
        _readable(asked, range(0, len(asked), step), left_out),
        images,
        arguments.num,
        check=lambda prompt: prepare(Request(prompt), model.config, model.tokenizer, limits),
        leave_out=left_out,
    )
    left_out.say()
    everything = [DocumentsSource(arguments.documents, s) for s in ("train", "validation")]
    missing = _LeftOut("entry", "entries", "the images that are compared with")
    gallery = gallery_of(
        (d for source in everything for d in _readable(source, range(len(source)), missing)),
        images,
        leave_out=missing,
    )
    missing.say()
    found = run(
        flags.make_sampler(model, arguments),
        tasks,
        gallery,
        options=options,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
        say=progress,
    )
    print(_as_text(found, model, arguments))
    if arguments.out:
        _save(found, arguments.out, model.name)
    return 0


class _LeftOut:
    """Names what is left out of something, and counts it."""

    def __init__(self, one: str, several: str, of: str) -> None:
        self.count = 0
        self._one, self._several, self._of = one, several, of

    def __call__(self, error: DocumentError) -> None:
        self.count += 1
        if self.count <= _MAX_LISTED:
            print(f"left out: {error}", file=sys.stderr)

    def say(self) -> None:
        if self.count:
            noun = self._one if self.count == 1 else self._several
            print(f"{self.count} {noun} left out of {self._of}.", file=sys.stderr)


def _readable(source: Any, indices: Iterable[int], leave_out: _LeftOut) -> Iterator[Any]:
    """Documents at these places; broken ones are left out, as in training."""
    for index in indices:
        try:
            yield source[index]
        except DocumentError as e:
            leave_out(e)


def _as_text(found: Any, model: Any, arguments: argparse.Namespace) -> str:
    from mogao_jax.evals.retrieval import NEAR

    lines = [
        f"{model.name}, {model.weights} parameters after {model.step} steps: "
        f"{len(found.judged)} images of {arguments.documents} ({arguments.split}), "
        f"among {found.size}"
    ]
    for rank in NEAR:
        name = "the nearest image is the one asked for" if rank == 1 else f"among the {rank}"
        lines.append(f"  {name:44} {found.within(rank)}   chance {found.chance(rank):.2%}")
    if found.changed.total:
        lines.append(f"  {'nearer to it than to the given image':44} {found.changed}")
    lines.append(f"  {'PSNR to the image asked for':44} {found.psnr:.1f} dB")
    return "\n".join(lines)


def _save(found: Any, folder: pathlib.Path, name: str) -> None:
    from mogao_jax.evals import cards
    from mogao_jax.evals.retrieval import NEAR, card

    record = {
        "gallery": found.size,
        "within": {str(k): dataclasses.asdict(found.within(k)) for k in NEAR},
        "changed": dataclasses.asdict(found.changed),
        "psnr": found.psnr,
        "ranks": {j.task.prompt.id: j.rank for j in found.judged},
    }
    write_file(folder / "retrieval.json", json.dumps(record, indent=1) + "\n")
    shown = tuple(card(j) for j in found.judged[:_CARDS])
    grid = cards.png(f"Images of {name}", [cards.Section("the first ones, as they came", shown)])
    with atomic_file(folder / "retrieval.png") as partial:
        grid.save(partial, "PNG", optimize=True)
    print(f"Written: {folder / 'retrieval.json'}, {folder / 'retrieval.png'}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="mogao eval retrieval",
        description="Draws images that documents ask for, and tells how often the nearest of all "
        "the documents' images is the one that was asked for (retrieval top-1 and top-5).",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--documents", type=pathlib.Path, required=True, metavar="PATH",
        help="documents as for training; the image with loss true is asked for")  # fmt: skip
    add("--split", choices=("train", "validation"), default="train")
    add("--num", type=int, default=200, metavar="N", help="images to draw (200)")
    add("--out", type=pathlib.Path, metavar="DIR", help="writes retrieval.json and retrieval.png")
    flags.add_model_flags(parser)
    flags.add_sampling_flags(parser)
    return parser
