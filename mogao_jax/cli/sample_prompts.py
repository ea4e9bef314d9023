"""From the arguments of `mogao sample` to prepared requests, each judged with its place.

A line of a batch is a text in quotes, or an object: a document, or `prompt` and `image` as on the
command line; and besides that, any of the options that the command has:

    "a red circle"
    {"task": "edit", "image": ["room.png"], "prompt": "make the square green", "seed": 3}
    {"size": "32x64", "items": [{"type": "text", "text": "two stars", "role": "user"}]}

Lines that cannot be used are refused one by one.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mogao_jax.config.schema import MogaoConfig
from mogao_jax.console.flags import check_seed
from mogao_jax.errors import DocumentError, MogaoError, RequestError
from mogao_jax.sampling import options as options_lib
from mogao_jax.sampling.options import SamplingOptions
from mogao_jax.sampling.requests import PreparedRequest, Request, prepare, token_limits
from mogao_jax.sequence.document import Document, Image, Item, Role, Text, from_json

# What a task means in options; what is asked for by a flag wins.
TASKS: dict[str, dict[str, Any]] = {
    "t2i": {"draw_first": True, "max_images": 1},
    "edit": {"draw_first": True, "max_images": 1},
    "qa": {"allow_images": False, "temperature": 0.0},  # the likeliest answer
    "clip": {"draw_first": True, "max_images": 4, "temperature": 0.0},
    "chat": {},
}
_FLAGS = {
    "max_images": "max_images",
    "steps": "num_steps",
    "solver": "solver",
    "guidance": "guidance_scale",
    "image_guidance": "image_guidance_scale",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "max_tokens": "max_tokens",
}
_LINE_FIELDS = ("task", "seed", "size", "aspect", "guidance_interval", *_FLAGS)
_MAX_RATIO = 1000.0
_NEED_IMAGE = ("edit", "qa")
_LISTED = 20  # maximum number of refused lines listed in a message


@dataclasses.dataclass(frozen=True, eq=False)
class Prompt:
    """A document to continue."""

    document: Document
    title: str  # its name on the page
    arguments: argparse.Namespace  # of the command; in a batch, with what its line says
    line: int = 0  # of the batch, from 1; 0 if there is no batch


class ReadyPrompt(NamedTuple):
    """A prompt that can be sampled; the request's seed is the first of its seeds."""

    title: str
    request: PreparedRequest


class Refused(NamedTuple):
    """A line of a batch that cannot be sampled, and why."""

    line: int
    reason: str


# ---------------------------------------------------------------------------------------- reading


def read_prompts(arguments: argparse.Namespace) -> tuple[list[Prompt], list[Refused]]:
    """The prompts, and the lines of a batch that are none.

    Raises:
      RequestError, DocumentError: for arguments, or a prompt that is not of a batch.
    """
    for name in ("num", "batch_size"):
        if getattr(arguments, name) < 1:
            raise RequestError(f"--{name.replace('_', '-')} must be at least 1.")
    check_seed(arguments.seed, arguments.num)
    _option_fields(arguments)  # what can be judged without a model
    if arguments.batch is not None:
        if arguments.prompt is not None or arguments.document or arguments.image:
            raise RequestError(
                "--batch brings its own prompts: leave out PROMPT, --document and --image."
            )
        return _read_batch(pathlib.Path(arguments.batch), arguments)
    return [_read_command_line(arguments)], []


def _read_command_line(arguments: argparse.Namespace) -> Prompt:
    items: list[Item] = []
    title, name = arguments.prompt, "prompt"
    is_plain = arguments.task == "clip"
    if arguments.document:
        document = _read_document(pathlib.Path(arguments.document))
        items += document.items
        name, is_plain = document.id, all(item.role is None for item in document.items)
        title = title or document.id
    if arguments.prompt is not None and not arguments.prompt.strip():
        raise RequestError("the prompt is empty: say what to draw or to answer.")
    if not items and arguments.prompt is None and not arguments.image:
        raise RequestError('give a prompt: mogao sample "a red circle"; see mogao sample --help.')
    role: Role | None = None if is_plain else "user"
    items += [Image(path=pathlib.Path(i), role=role, loss=False) for i in arguments.image]
    items += [Text(arguments.prompt, role=role, loss=False)] if arguments.prompt else []
    document = Document(tuple(items), id=name)
    _check_task(document, arguments.task)
    return Prompt(document, title or pathlib.Path(arguments.image[0]).stem, arguments)


def _check_task(document: Document, task: str | None) -> None:
    has_image = any(isinstance(item, Image) for item in document.items)
    if task in _NEED_IMAGE and not has_image:
        raise RequestError(f"--task {task} is about an image: give one with --image FILE.")


def _read_document(path: pathlib.Path) -> Document:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as e:
        raise DocumentError(f"--document {str(path)!r} cannot be read ({e.strerror}).") from None
    except UnicodeDecodeError:
        raise DocumentError(f"--document {str(path)!r} is not a JSON document in UTF-8.") from None
    return from_json(text, base_dir=path.parent, place=path.name)


def _read_batch(
    path: pathlib.Path, arguments: argparse.Namespace
) -> tuple[list[Prompt], list[Refused]]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as e:
        raise DocumentError(f"--batch {str(path)!r} cannot be read ({e.strerror}).") from None
    found, refused = [], []
    for number, line in ((n, x) for n, x in enumerate(lines, start=1) if x.strip()):
        try:
            found.append(_read_line(line, path, number, arguments))
        except MogaoError as e:
            refused.append(_refused(path, number, e))
    if not found and not refused:
        raise RequestError(f"--batch {str(path)!r} is empty: it needs a prompt per line.")
    return found, refused


def _refused(path: pathlib.Path, number: int, error: MogaoError) -> Refused:
    """Its reason without the place, which is named for all refused lines alike."""
    place = f"{path.name}:{number}"
    reason = str(error).removeprefix(f"document {place!r}").removeprefix(place)
    return Refused(number, reason.lstrip(":, "))


def _read_line(
    line: bytes, path: pathlib.Path, number: int, arguments: argparse.Namespace
) -> Prompt:
    place = f"{path.name}:{number}"
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as e:  # also bytes that are not UTF-8
        raise DocumentError(f"not valid JSON ({e}).") from None
    if isinstance(record, str):
        record = {"prompt": record}
    if not isinstance(record, dict):
        raise DocumentError('a line is a text in quotes ("...") or an object ({...}).')
    given = {name: record.pop(name) for name in _LINE_FIELDS if name in record}
    arguments = _of_line(arguments, given)
    document = _said_in_line(record, path.parent, place, arguments.task)
    _check_task(document, arguments.task)
    texts = [i.text for i in document.items if isinstance(i, Text) and i.text.strip()]
    return Prompt(document, texts[-1] if texts else document.id, arguments, number)


def _said_in_line(
    record: dict[str, Any], folder: pathlib.Path, place: str, task: str | None
) -> Document:
    """The document of a line, whose options have been taken out."""
    if "items" in record:
        return from_json(record, base_dir=folder, place=place)
    unknown = sorted(set(record) - {"prompt", "image", "id"})
    if unknown or not record:
        what = f"unknown field {unknown[0]!r}" if unknown else "no prompt"
        known = ("prompt", "image", "id", "items", *_LINE_FIELDS)
        raise DocumentError(f"{what}; a line may have {', '.join(known)}.")
    images = record.get("image", [])
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list):
        raise DocumentError(f"image is {images!r}; give a file's name, or a list of names.")
    text = record.get("prompt")
    if not (images and text is None) and not (isinstance(text, str) and text.strip()):
        raise RequestError("the prompt is empty: say what to draw or to answer.")
    role = None if task == "clip" else "user"
    items = [{"type": "image", "path": i, "role": role, "loss": False} for i in images]
    if text:
        items.append({"type": "text", "text": text, "role": role, "loss": False})
    document = {"id": record.get("id", place), "items": items}
    return from_json(document, base_dir=folder, place=place)


def sources(found: Sequence[Prompt], arguments: argparse.Namespace) -> list[pathlib.Path]:
    """The files that prompts are read from, their images' included."""
    named = [pathlib.Path(name) for name in (arguments.document, arguments.batch) if name]
    items = [item for prompt in found for item in prompt.document.items]
    return named + [i.path for i in items if isinstance(i, Image) and i.path is not None]


# --------------------------------------------------------------------------------------- options


def _option_fields(arguments: argparse.Namespace) -> dict[str, Any]:
    """Fields of SamplingOptions that the arguments set, but for what --aspect means."""
    given = {name: getattr(arguments, flag) for flag, name in _FLAGS.items()}
    fields = TASKS[arguments.task or "chat"] | {k: v for k, v in given.items() if v is not None}
    if arguments.guidance_interval is not None:
        fields["guidance_interval"] = tuple(arguments.guidance_interval)
    if arguments.size is not None and arguments.aspect is not None:
        raise RequestError("--size says the shape too: leave out --aspect.")
    if arguments.size is not None:
        fields["size"] = _size(arguments.size)
    if arguments.aspect is not None:
        _aspect(arguments.aspect)
    return fields


def _make_options(arguments: argparse.Namespace, config: MogaoConfig) -> SamplingOptions:
    """The options, with the size that --aspect means for this model; not judged yet."""
    fields = _option_fields(arguments)
    if arguments.aspect is not None:
        width, height = _aspect(arguments.aspect)
        fields["size"] = options_lib.fitting_size(height, width, config.images)
    return options_lib.make_options(fields, config)


def _of_line(arguments: argparse.Namespace, given: Mapping[str, Any]) -> argparse.Namespace:
    """The command's arguments, with what one line of a batch says (of LINE_FIELDS) in their place.

    Values may be of any JSON type; numbers are judged with all other options later.
    """
    line = argparse.Namespace(**vars(arguments))
    if given.get("size") is not None or given.get("aspect") is not None:
        line.size = line.aspect = None
    for name, value in given.items():
        if name == "task" and not (isinstance(value, str) and value in TASKS):
            raise RequestError(f"task is {value!r}; choose one of {', '.join(TASKS)}.")
        if name == "guidance_interval" and not isinstance(value, list):
            raise RequestError(f"guidance_interval is {value!r}; give [low, high].")
        if name in ("size", "aspect"):
            value = str(value)
        setattr(line, name, value)
    check_seed(line.seed, line.num)
    return line


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,6})(?:[xX](\d{1,6}))?", text.strip())
    if not found:
        raise RequestError(
            f"--size is {text!r}; give height x width, such as 48x64, or one number for a square."
        )
    height = int(found[1])
    return height, int(found[2]) if found[2] else height


def _aspect(text: str) -> tuple[float, float]:
    """(width, height) of '4:3'."""
    found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?)[:/](\d{1,6}(?:\.\d{1,6})?)", text.strip())
    width, height = (float(found[1]), float(found[2])) if found else (0.0, 0.0)
    if not (width and height) or max(width, height) / min(width, height) > _MAX_RATIO:
        raise RequestError(f"--aspect is {text!r}; give width:height, such as 4:3, 16:9 or 1:2.")
    return width, height


# --------------------------------------------------------------------------------------- judging


def prepare_all(
    found: Sequence[Prompt], arguments: argparse.Namespace, config: MogaoConfig, tokenizer: Any
) -> tuple[list[ReadyPrompt], list[Refused], list[str]]:
    """Prepares all requests: (what can be sampled, a batch's other lines, remarks).

    Raises:
      RequestError, DocumentError: for arguments, or a prompt that is not of a batch.
    """
    # The command's own options are judged even if every line brings others.
    options_lib.check_options(_make_options(arguments, config), config)
    limits = token_limits(config, arguments.max_length)
    ready, refused, notes = [], [], []
    for prompt in found:
        try:
            options = _make_options(prompt.arguments, config)
            request = Request(prompt.document, prompt.arguments.seed, options)
            prepared = prepare(request, config, tokenizer, limits)
        except MogaoError as e:
            if not prompt.line:
                raise
            refused.append(_refused(pathlib.Path(arguments.batch), prompt.line, e))
            continue
        ready.append(ReadyPrompt(prompt.title, prepared))
        notes += [f"line {prompt.line}: {n}" if prompt.line else n for n in prepared.notes]
    return ready, refused, notes


def say_refused(refused: Sequence[Refused], num_good: int, arguments: argparse.Namespace) -> None:
    """Names the lines of a batch that are refused; raises if none is left, or with --strict."""
    if not refused:
        return
    listed = "\n".join(f"  line {r.line}: {r.reason}" for r in refused[:_LISTED])
    rest = len(refused) - _LISTED
    listed += f"\n  and {rest} more" if rest > 0 else ""
    count = "1 line" if len(refused) == 1 else f"{len(refused)} lines"
    if not num_good:
        raise DocumentError(f"no line of --batch {arguments.batch!r} can be used:\n{listed}")
    if arguments.strict:
        raise DocumentError(
            f"{count} of --batch {arguments.batch!r} cannot be used:\n{listed}\n"
            f"Mend them, or leave out --strict and the other {num_good} are served."
        )
    print(f"{count} of --batch {arguments.batch!r} refused:\n{listed}", file=sys.stderr)


def summary(refused: Sequence[Refused], num_good: int) -> str:
    """How many lines of a batch were served and refused, and which: 'lines 2-5, 9'."""
    # Lines that follow each other are as far from their number in the list.
    numbered = itertools.groupby(enumerate(r.line for r in refused), lambda pair: pair[1] - pair[0])
    ranges = [[line for _, line in run] for _, run in numbered]
    which = ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else f"{r[0]}" for r in ranges)
    lines = "line" if len(refused) == 1 else "lines"
    return f"served {num_good} prompts, refused {len(refused)} ({lines} {which}; why stands above)"
