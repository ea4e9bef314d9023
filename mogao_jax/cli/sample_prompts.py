"""From the arguments of `mogao sample` to prompts and options, each judged with its place."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any

from mogao_jax.config.schema import MogaoConfig
from mogao_jax.errors import DocumentError, MogaoError, RequestError
from mogao_jax.sampling import prompts
from mogao_jax.sampling.options import SamplingOptions
from mogao_jax.sequence.document import Document, Image, Item, Text, from_json
from mogao_jax.tokenizer import Tokenizer

# What a task means in options; what is asked for by a flag wins.
TASKS: dict[str, dict[str, Any]] = {
    "t2i": {"draw_first": True, "max_images": 1},
    "edit": {"draw_first": True, "max_images": 1},
    "qa": {"allow_images": False},
    "clip": {"draw_first": True, "max_images": 4},
    "chat": {},
}
_NEED_PICTURE = ("edit", "qa")
_LISTED = 10  # broken lines named in a message before the rest is only counted
_MAX_RATIO = 1000.0


@dataclasses.dataclass(frozen=True, eq=False)
class Prompt:
    """A document to go on with, its name on the page, and where it was read."""

    document: Document
    title: str
    place: str = ""


# ---------------------------------------------------------------------------------------- reading


def read_prompts(arguments: argparse.Namespace) -> tuple[list[Prompt], list[str]]:
    """The prompts, and what is wrong with lines of a batch."""
    for name in ("num", "batch_size"):
        if getattr(arguments, name) < 1:
            raise RequestError(f"--{name.replace('_', '-')} must be at least 1.")
    if arguments.seed < 0 or arguments.seed + arguments.num > 2**32:
        raise RequestError(f"--seed is {arguments.seed}; seeds are from 0 to 2^32 - 1.")
    if arguments.batch is not None:
        if arguments.prompt is not None or arguments.document or arguments.image:
            raise RequestError(
                "--batch brings its own prompts: leave out PROMPT, --document and --image."
            )
        return _read_batch(pathlib.Path(arguments.batch), arguments.task)
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
    items += _said(arguments.prompt, arguments.image, is_plain)
    document = Document(tuple(items), id=name)
    _check_task(document, arguments.task)
    return [Prompt(document, title or pathlib.Path(arguments.image[0]).stem)], []


def _said(text: str | None, images: Sequence[str], is_plain: bool) -> list[Item]:
    role: Any = None if is_plain else "user"
    items: list[Item] = [Image(path=pathlib.Path(i), role=role, loss=False) for i in images]
    return items + ([Text(text, role=role, loss=False)] if text else [])


def _check_task(document: Document, task: str | None) -> None:
    has_picture = any(isinstance(item, Image) for item in document.items)
    if task in _NEED_PICTURE and not has_picture:
        raise RequestError(f"--task {task} is about a picture: give one with --image FILE.")


def _read_document(path: pathlib.Path) -> Document:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as e:
        raise DocumentError(f"--document {str(path)!r} cannot be read ({e.strerror}).") from None
    except UnicodeDecodeError:
        raise DocumentError(f"--document {str(path)!r} is not a JSON document in UTF-8.") from None
    return from_json(text, base_dir=path.parent, place=path.name)


def _read_batch(path: pathlib.Path, task: str | None) -> tuple[list[Prompt], list[str]]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as e:
        raise DocumentError(f"--batch {str(path)!r} cannot be read ({e.strerror}).") from None
    found, problems = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{path.name}:{number}"
        try:
            found.append(_read_line(line, path.parent, place, task))
        except MogaoError as e:
            problems.append(str(e) if place in str(e) else f"{place}: {e}")
    if not found and not problems:
        raise RequestError(f"--batch {str(path)!r} is empty: it needs a prompt per line.")
    return found, problems


def _read_line(line: bytes, folder: pathlib.Path, place: str, task: str | None) -> Prompt:
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as e:  # also bytes that are not UTF-8
        raise DocumentError(f"{place}: not valid JSON ({e}).") from None
    if isinstance(record, str):
        if not record.strip():
            raise DocumentError(f"{place}: the prompt is empty.")
        document = Document(tuple(_said(record, [], task == "clip")), id=place)
        title = record
    else:
        document = from_json(record, base_dir=folder, place=place)
        texts = [i.text for i in document.items if isinstance(i, Text) and i.text.strip()]
        title = texts[-1] if texts else document.id
    _check_task(document, task)
    return Prompt(document, title, place)


def prepare_all(
    found: Sequence[Prompt], config: MogaoConfig, tokenizer: Tokenizer
) -> tuple[list[Prompt], list[str], list[str]]:
    """Loads the pictures: (prompts that can be sampled, problems of a batch's others, remarks).

    Raises:
      DocumentError: for a prompt that is not of a batch.
    """
    good, problems, notes = [], [], []
    for prompt in found:
        try:
            document, remarks = prompts.prepare(prompt.document, config)
            prompts.check_length(document, config, tokenizer)
        except MogaoError as e:
            if not prompt.place:
                raise
            problems.append(f"{prompt.place}: {e}")
            continue
        good.append(dataclasses.replace(prompt, document=document))
        notes += [f"{prompt.place}: {r}" if prompt.place else r for r in remarks]
    return good, problems, notes


def report_problems(problems: Sequence[str], num_good: int, arguments: Any) -> None:
    """Says which lines of a batch are left out, or refuses the batch."""
    if not problems:
        return
    listed = "\n".join(f"  {p}" for p in problems[:_LISTED])
    rest = len(problems) - _LISTED
    listed += f"\n  and {rest} more" if rest > 0 else ""
    lines = "1 line" if len(problems) == 1 else f"{len(problems)} lines"
    if not num_good:
        raise DocumentError(f"no line of --batch {arguments.batch!r} can be used:\n{listed}")
    if not arguments.skip_broken:
        raise DocumentError(
            f"{lines} of --batch {arguments.batch!r} cannot be used:\n{listed}\n"
            f"Mend them, or sample the other {num_good} with --skip-broken."
        )
    print(f"{lines} left out:\n{listed}", file=sys.stderr)


# ---------------------------------------------------------------------------------------- options

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


def option_fields(arguments: argparse.Namespace) -> dict[str, Any]:
    """Fields of SamplingOptions that the arguments set, but for the size."""
    fields = dict(TASKS[arguments.task or "chat"])
    for flag, name in _FLAGS.items():
        value = getattr(arguments, flag)
        if value is not None:
            fields[name] = value
    if arguments.guidance_interval is not None:
        fields["guidance_interval"] = tuple(arguments.guidance_interval)
    if arguments.size is not None and arguments.aspect is not None:
        raise RequestError("--size says the shape too: leave out --aspect.")
    if arguments.size is not None:
        fields["size"] = _size(arguments.size)
    if arguments.aspect is not None:
        _aspect(arguments.aspect)
    return fields


def make_options(
    arguments: argparse.Namespace, fields: dict[str, Any], config: MogaoConfig
) -> SamplingOptions:
    """The options, with the size that --aspect means for this model."""
    if arguments.aspect is not None:
        width, height = _aspect(arguments.aspect)
        fields = {**fields, "size": prompts.fitting_size(height, width, config.images)}
    return prompts.make_options(fields)


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
