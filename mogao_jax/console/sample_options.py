"""From the arguments of `mogao sample`, or of one line of its batch, to SamplingOptions."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from typing import Any

from mogao_jax.config.schema import MogaoConfig
from mogao_jax.errors import RequestError
from mogao_jax.sampling import prompts
from mogao_jax.sampling.options import SamplingOptions

# What a task means in options; what is asked for by a flag wins.
TASKS: dict[str, dict[str, Any]] = {
    "t2i": {"draw_first": True, "max_images": 1},
    "edit": {"draw_first": True, "max_images": 1},
    "qa": {"allow_images": False},
    "clip": {"draw_first": True, "max_images": 4},
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
LINE_FIELDS = ("task", "seed", "size", "aspect", "guidance_interval", *_FLAGS)
_MAX_RATIO = 1000.0
_NUM_SEEDS = 2**32


def option_fields(arguments: argparse.Namespace) -> dict[str, Any]:
    """Fields of SamplingOptions that the arguments set, but for what --aspect means."""
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


def make_options(arguments: argparse.Namespace, config: MogaoConfig) -> SamplingOptions:
    """The options, judged, with the size that --aspect means for this model."""
    fields = option_fields(arguments)
    if arguments.aspect is not None:
        width, height = _aspect(arguments.aspect)
        fields["size"] = prompts.fitting_size(height, width, config.images)
    options = prompts.make_options(fields, config)
    prompts.check_options(options, config)
    return options


def check_seed(seed: Any, num: int = 1, flag: str = "--seed") -> None:
    """Raises RequestError, naming the flag, unless `num` seeds can be counted from this one."""
    whole = isinstance(seed, int) and not isinstance(seed, bool)
    if not whole or seed < 0 or seed + num > _NUM_SEEDS:
        raise RequestError(
            f"{flag} is {prompts.shown(seed)}; seeds are whole numbers from 0 to 2^32 - 1."
        )


def of_line(arguments: argparse.Namespace, given: Mapping[str, Any]) -> argparse.Namespace:
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
