"""`mogao eval pictures`: are drawn pictures recognised among those of the data?"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import sys
from typing import Any

from mogao_jax.atomic import atomic_file, require_writable, write_file
from mogao_jax.console.image_options import add_picture_flags, picture_options
from mogao_jax.console.logs import configure_logging
from mogao_jax.console.parser import Parser
from mogao_jax.console.sample_options import check_seed
from mogao_jax.errors import DataError, DocumentError

_NAMED = 20  # of what is left out, before the rest is only counted
_EXAMPLES = """examples:
  mogao eval pictures --checkpoint runs/emoji --documents data/emoji/captions.jsonl
  mogao eval pictures --checkpoint runs/emoji --documents data/emoji/edits.jsonl \\
      --split validation --guidance 2 --out runs/emoji/edits
"""


def main(argv: list[str]) -> int:
    """Parses and runs; returns the exit status."""
    arguments = _parser().parse_args(argv)
    for name in ("num", "batch_size"):
        if getattr(arguments, name) < 1:
            flag = "--" + name.replace("_", "-")
            raise DataError(f"{flag} must be 1 or more, got {getattr(arguments, name)}.")
    check_seed(arguments.seed)
    configure_logging()
    if arguments.out:
        arguments.out = require_writable(arguments.out)
    return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    from mogao_jax.console.compile_cache import keep_compiled_programs
    from mogao_jax.data.sources import DocumentsSource
    from mogao_jax.evals import retrieval
    from mogao_jax.sampling import lengths
    from mogao_jax.sampling.loading import load_model
    from mogao_jax.sampling.pipeline import make_sampler

    asked = DocumentsSource(arguments.documents, arguments.split)
    keep_compiled_programs()
    model = load_model(arguments.checkpoint, weights=arguments.weights)
    options = picture_options(arguments, model.config)
    images = model.config.images
    # Evenly over the file: neighbours are often about the same picture.
    step = max(1, len(asked) // arguments.num)
    left_out = _LeftOut("document", "documents", "what is asked for")
    limits = lengths.context_limits(model.config)
    tasks = retrieval.tasks_of(
        _readable(asked, range(0, len(asked), step), left_out),
        images,
        arguments.num,
        check=lambda prompt: lengths.check_length(prompt, model.config, model.tokenizer, limits),
        leave_out=left_out,
    )
    left_out.say()
    everything = [DocumentsSource(arguments.documents, s) for s in ("train", "validation")]
    missing = _LeftOut("entry", "entries", "the pictures that are compared with")
    gallery = retrieval.gallery_of(
        (d for source in everything for d in _readable(source, range(len(source)), missing)),
        images,
        leave_out=missing,
    )
    missing.say()
    found = retrieval.run(
        make_sampler(model, arguments.batch_size),
        tasks,
        gallery,
        options=options,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
        say=lambda message: print(f"... {message}", file=sys.stderr, flush=True),
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
        if self.count <= _NAMED:
            print(f"left out: {error}", file=sys.stderr)

    def say(self) -> None:
        if self.count:
            noun = self._one if self.count == 1 else self._several
            print(f"{self.count} {noun} left out of {self._of}.", file=sys.stderr)


def _readable(source: Any, indices: Any, leave_out: _LeftOut) -> Any:
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
        f"{len(found.judged)} pictures of {arguments.documents} ({arguments.split}), "
        f"among {found.size}",
    ]
    for rank in NEAR:
        name = "the nearest picture is the one asked for" if rank == 1 else f"among the {rank}"
        share = _share(found.within(rank))
        lines.append(f"  {name:44} {share}   chance {found.chance(rank):.2%}")
    if found.changed.total:
        lines.append(f"  {'nearer to it than to the given picture':44} {_share(found.changed)}")
    lines.append(f"  {'PSNR to the picture asked for':44} {found.psnr:.1f} dB")
    return "\n".join(lines)


def _share(share: Any) -> str:
    low, high = share.interval
    return f"{share.value:.1%} [{low:.1%}, {high:.1%}] of {share.total}"


def _save(found: Any, folder: pathlib.Path, name: str) -> None:
    from mogao_jax.evals import retrieval
    from mogao_jax.worlds.shapes.evals import grid
    from mogao_jax.worlds.shapes.evals.cards import Section

    record = {
        "gallery": found.size,
        "within": {str(k): dataclasses.asdict(found.within(k)) for k in retrieval.NEAR},
        "changed": dataclasses.asdict(found.changed),
        "psnr": found.psnr,
        "ranks": {j.task.prompt.id: j.rank for j in found.judged},
    }
    cards = tuple(retrieval.card(j) for j in found.judged[:24])
    write_file(folder / "pictures.json", json.dumps(record, indent=1) + "\n")
    image = grid.png(f"Pictures of {name}", [Section("t2i", "the first ones, as they came", cards)])
    with atomic_file(folder / "pictures.png") as partial:
        image.save(partial, "PNG", optimize=True)
    print(f"Written: {folder / 'pictures.json'}, {folder / 'pictures.png'}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="mogao eval pictures",
        description="Draws pictures that documents ask for, and tells how often the nearest of "
        "all the documents' pictures is the one that was asked for.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--documents", type=pathlib.Path, required=True, metavar="PATH",
        help="documents as for training; the picture with loss true is asked for")  # fmt: skip
    add("--split", choices=("train", "validation"), default="train")
    add("--num", type=int, default=200, metavar="N", help="pictures to draw (200)")
    add("--out", type=pathlib.Path, metavar="DIR", help="writes pictures.json and pictures.png")
    add("--checkpoint", required=True, help="an exported file, a run's folder, or one checkpoint")
    add("--weights", choices=("best", "ema", "raw"), default="best")
    add_picture_flags(add)
    add("--seed", type=int, default=0, help="of sampling")
    add("--batch-size", type=int, default=32, metavar="N", help="requests at a time (32)")
    return parser
