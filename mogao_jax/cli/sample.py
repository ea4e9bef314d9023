"""`mogao sample "a red circle left of a blue square"`: generates text and images."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from mogao_jax.cli import sample_prompts as prompts_lib
from mogao_jax.cli.sample_prompts import TASKS, ReadyPrompt, Refused
from mogao_jax.console.flags import Parser, add_model_flags
from mogao_jax.console.output import configure_logging
from mogao_jax.console.sample_progress import Progress
from mogao_jax.errors import EnvironmentProblem, RequestError
from mogao_jax.gallery.folder import PAGE, Conversation, Folder, default_folder, render_page
from mogao_jax.sampling.requests import Event, Finished, Result
from mogao_jax.sequence.document import Image, Text

if TYPE_CHECKING:
    from mogao_jax.sampling.pipeline import Pipeline

_EXAMPLES = """examples:
  mogao sample "a red circle left of a blue square"
  mogao sample --image room.png "how many squares are there?"
  mogao sample --task edit --image room.png "make the square green"
  mogao sample --document samples/room/001.json "and now an image of both"
  mogao sample --batch prompts.jsonl --num 4 --out samples/batch
"""


def main(argv: list[str]) -> int:
    """Parses, checks everything that can be checked, then samples."""
    arguments = _parser().parse_args(argv)
    configure_logging()
    found, refused = prompts_lib.read_prompts(arguments)

    # These import JAX, which --help and mistyped flags do not need.
    from mogao_jax.compile_cache import keep_compiled_programs
    from mogao_jax.sampling.loading import open_checkpoint

    keep_compiled_programs()
    opened = open_checkpoint(
        arguments.checkpoint,
        weights=arguments.weights,
        tokenizer=arguments.tokenizer,
        vae=arguments.vae,
        vit=arguments.vit,
    )
    if opened.config.about:
        print(f"{arguments.checkpoint} knows {opened.config.about}.", file=sys.stderr)
    prompts, more, notes = prompts_lib.prepare_all(
        found, arguments, opened.config, opened.tokenizer
    )
    refused = sorted(refused + more)
    prompts_lib.say_refused(refused, len(prompts), arguments)
    for note in notes:
        print(note, file=sys.stderr)
    folder = Folder(
        arguments.out or default_folder(prompts[0].title), overwrite=arguments.overwrite
    )
    for path in filter(folder.holds, prompts_lib.sources(found, arguments)):
        raise RequestError(
            f"{str(path)!r} is what to go on with, and lies in the folder of --out, whose "
            "files --overwrite removes; give another folder with --out."
        )
    model = opened.load()

    from mogao_jax.sampling.pipeline import Pipeline

    pipeline = Pipeline(model, batch_size=arguments.batch_size, max_length=arguments.max_length)
    folder.clear()  # as --overwrite allows; not before all that can be checked is checked
    _Run(pipeline, folder, refused).sample_all(prompts, arguments.num, arguments.batch_size)
    if refused:
        print(f"mogao: {prompts_lib.summary(refused, len(prompts))}", file=sys.stderr)
    return 2 if refused else 0


class _Kept(NamedTuple):
    """What is said about a document that is done, in run.json and on the page."""

    record: dict[str, Any]
    options: dict[str, Any]
    conversation: Conversation


class _Run:
    """Samples everything, batch by batch; what is done is on disk whatever happens later."""

    def __init__(self, pipeline: Pipeline, folder: Folder, refused: Sequence[Refused]):
        self._pipeline, self._folder, self._refused = pipeline, folder, refused
        self._kept: dict[int, _Kept] = {}  # by the document's number, from 1
        self._num_images = self._num_tokens = 0  # generated, in all

    def sample_all(self, prompts: Sequence[ReadyPrompt], num: int, batch_size: int) -> None:
        """`num` documents of each prompt, with seeds counted on."""
        samples = [
            prompt._replace(request=dataclasses.replace(prompt.request, seed=seed))
            for prompt in prompts
            for seed in range(prompt.request.seed, prompt.request.seed + num)
        ]
        numbered = list(enumerate(samples, start=1))
        began = time.monotonic()
        try:
            for start in range(0, len(samples), batch_size):
                self._sample(numbered[start : start + batch_size], len(samples))
        finally:
            seconds = time.monotonic() - began
            if self._kept:
                self._write_summary(seconds)
        print(
            f"{seconds:.1f} s, {_count(self._num_images, 'image')}, "
            f"{_count(self._num_tokens, 'token')} of text, "
            f"{_count(self._pipeline.num_compilations, 'compilation')}; {self._folder.path}",
            file=sys.stderr,
        )

    def _sample(self, samples: Sequence[tuple[int, ReadyPrompt]], total: int) -> None:
        numbers, requests = [n for n, _ in samples], [s.request for _, s in samples]
        names = [f"{n:03d}" if total > 1 else "" for n in numbers]
        given = [sum(isinstance(i, Image) for i in r.document.items) for r in requests]
        with Progress(self._folder, numbers, names, given) as progress:

            def on_event(index: int, event: Event) -> None:
                progress.show(index, event)
                if isinstance(event, Finished):
                    self._keep(*samples[index], event.result)

            self._pipeline.sample(requests, on_event)

    def _keep(self, number: int, sample: ReadyPrompt, result: Result) -> None:
        """Writes the document of one request that has come to its end."""
        path = self._folder.write_document(number, result.document)
        request, num_given = sample.request, len(sample.request.document.items)
        record = {
            "file": path.name,
            "id": request.document.id,
            "seed": request.seed,
            "given": num_given,
            "stop": result.stop,
        }
        caption = f"{path.name}, seed {request.seed}, ended by {_STOPS[result.stop]}"
        title = sample.title if len(sample.title) <= 120 else sample.title[:119] + "\u2026"
        conversation = Conversation(result.document, num_given, title, caption)
        self._kept[number] = _Kept(record, dataclasses.asdict(request.options), conversation)
        texts = [i.text for i in result.items if isinstance(i, Text)]
        self._num_images += len(result.items) - len(texts)
        self._num_tokens += sum(len(self._pipeline.tokenizer.encode(t)) for t in texts)

    def _write_summary(self, seconds: float) -> None:
        model = self._pipeline.model
        kept = [self._kept[number] for number in sorted(self._kept)]
        options = kept[0].options.items()
        shared = {n: v for n, v in options if all(k.options[n] == v for k in kept)}
        records = [k.record | {n: v for n, v in k.options.items() if n not in shared} for k in kept]
        facts = {
            "checkpoint": model.name,
            "config": model.config.name,
            "step": model.step,
            "weights": model.weights,
            **shared,
            "seconds": round(seconds, 2),
            "images": self._num_images,
            "text tokens": self._num_tokens,
            "compilations": self._pipeline.num_compilations,
        }
        refused = [r._asdict() for r in self._refused]
        self._folder.write_run({**facts, "documents": records, "refused": refused})
        conversations = [k.conversation for k in kept]
        name = conversations[0].title if len(conversations) == 1 else "Samples"
        try:
            text = render_page(name, conversations, facts)
        except EnvironmentProblem as e:
            print(f"No page was written: {e}", file=sys.stderr)
        else:
            self._folder.write_text(PAGE, text)


_STOPS = {
    "end": "the model",
    "max_images": "the number of images asked for",
    "max_tokens": "the limit of text",
    "cache_full": "a full context",
}


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="mogao sample",
        description="Continues a prompt: the model writes text, and generates an image where it "
        "decides to. Texts and the names of images go to stdout as they come; the folder of --out "
        "gets the images, a JSON document each (to be fed back in) and a page.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group("what to go on with").add_argument
    add("prompt", nargs="?", help="what the user says")
    add("--image", action="append", default=[], metavar="FILE",
        help="an image shown before the text; may be repeated")  # fmt: skip
    add("--document", metavar="FILE.json", help="a document so far; PROMPT is added to it")
    add("--batch", metavar="FILE.jsonl",
        help='a prompt per line: a text in quotes ("..."), or an object: a JSON document, or '
        '{"prompt": ..., "image": ...}; it may have a "task", "size", "seed", ...')  # fmt: skip
    add("--strict", action="store_true",
        help="refuse a batch with broken lines; by default the others are served, and the exit "
        "status is 2")  # fmt: skip
    add("--task", choices=tuple(TASKS),
        help="t2i, edit: one image, at once; qa: text alone; clip: frames of a motion, "
        "plain text; chat: as the model likes (default)")  # fmt: skip

    add = add_model_flags(parser, "demo")
    for part in ("tokenizer", "vae", "vit"):
        add(f"--{part}", metavar="PATH", help=f"where the {part}'s file is, if it was moved")

    add("--max-length", "--max-context", type=int, metavar="N",
        help="tokens that a document may have (default: a row of the training data)")  # fmt: skip

    add = parser.add_argument_group("images").add_argument
    add("--size", metavar="HxW", help="height x width, or one number for a square")
    add("--aspect", metavar="W:H", help="shape, such as 4:3; the largest the model can generate")
    add("--max-images", "--frames", type=int, metavar="N", help="images per document, at most")
    add("--steps", type=int, metavar="N", help="steps of the solver (default: the model's own)")
    add("--solver", choices=("euler", "heun"))
    add("--guidance", type=float, metavar="X",
        help="how strongly the text is followed (the model's own)")  # fmt: skip
    add(
        "--image-guidance", type=float, metavar="X", help="... earlier images are (the model's own)"
    )
    add("--guidance-interval", type=float, nargs=2, metavar=("LO", "HI"),
        help="the times (0 noise, 1 image) in which guidance applies (0 1)")  # fmt: skip

    add = parser.add_argument_group("text").add_argument
    add("--temperature", type=float, metavar="X",
        help="0: the likeliest token (the model's own; with qa and clip 0)")  # fmt: skip
    add("--top-p", type=float, metavar="X", help="(the model's own)")
    add("--top-k", type=int, metavar="N")
    add("--max-tokens", type=int, metavar="N", help="tokens of text per document (512)")

    add = parser.add_argument_group("the run").add_argument
    add("--num", type=int, default=1, metavar="N", help="documents per prompt, seeds counted on")
    add("--seed", type=int, default=0)
    add("--batch-size", type=int, default=8, metavar="N", help="documents at a time (8)")
    add("--out", type=pathlib.Path, metavar="DIR",
        help="a folder without samples (default: samples/<prompt>)")  # fmt: skip
    add("--overwrite", action="store_true", help="remove what was sampled into --out before")
    return parser
