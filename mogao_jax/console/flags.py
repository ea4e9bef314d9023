"""Flags that several commands share: which model, how it is sampled, and what cannot be read."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Collection
from typing import Any, NoReturn

from mogao_jax.errors import DataError, RequestError
from mogao_jax.sampling import options as options_lib

_NUM_SEEDS = 2**32
CONFIG_HELP = (
    "--config=FILE: a .py or .json file, or a recipe by its name (`mogao recipes`). "
    "--config.FIELD=VALUE sets one field, such as --config.train.num_steps=100."
)


class Parser(argparse.ArgumentParser):
    """What cannot be read ends as all errors do: a RequestError, without the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise RequestError(f"{message}; see `{self.prog} --help`.")


def sampling_options(arguments: argparse.Namespace, config: Any) -> options_lib.SamplingOptions:
    """What the flags ask for; the others are as the model's config recommends."""
    given = {
        "num_steps": arguments.steps,
        "solver": getattr(arguments, "solver", None),
        "guidance_scale": arguments.guidance,
        "image_guidance_scale": arguments.image_guidance,
        "temperature": arguments.temperature,
        "top_p": arguments.top_p,
    }
    fields = {name: value for name, value in given.items() if value is not None}
    options = options_lib.make_options(fields, config)
    options_lib.check_options(options, config)
    return options


def add_image_flags(add: Any, *, solver: bool = True) -> None:
    """The flags that `sampling_options` reads, with or without --solver."""
    add("--steps", type=int, metavar="N", help="of the solver (default: the model's own)")
    if solver:
        add("--solver", choices=("euler", "heun"))
    add("--guidance", type=float, metavar="X", help="(the model's own)")
    add("--image-guidance", type=float, metavar="X", help="(the model's own)")
    add("--temperature", type=float, metavar="X", help="of text (the model's own)")
    add("--top-p", type=float, metavar="X", help="of text (the model's own)")


def check_seed(seed: Any, num: int = 1, flag: str = "--seed") -> None:
    """Raises RequestError, naming the flag, unless `num` seeds can be counted from this one."""
    if not options_lib.is_whole(seed) or seed < 0 or seed + num > _NUM_SEEDS:
        raise RequestError(
            f"{flag} is {options_lib.shown(seed)}; seeds are whole numbers from 0 to 2^32 - 1."
        )


def flag(name: str) -> str:
    """'batch_size' -> '--batch-size'."""
    return "--" + name.replace("_", "-")


def add_model_flags(parser: argparse.ArgumentParser, default: str | None = None) -> Any:
    """--checkpoint (required without a default) and --weights; returns their group's `add`."""
    add = parser.add_argument_group("the model").add_argument
    kinds = "an exported file, a run's folder, or one checkpoint"
    if default:
        add("--checkpoint", default=default, help=f"{default} (default), {kinds}")
    else:
        add("--checkpoint", required=True, help=kinds)
    add("--weights", choices=("best", "ema", "raw"), default="best")
    return add


def add_sampling_flags(parser: argparse.ArgumentParser) -> Any:
    """Steps, guidance, --seed and --batch-size; returns their group's `add`."""
    add = parser.add_argument_group("sampling").add_argument
    add_image_flags(add)
    add("--seed", type=int, default=0, help="of sampling")
    add("--batch-size", type=int, default=32, metavar="N", help="requests at a time (32)")
    return add


def check_numbers(
    arguments: argparse.Namespace, counts: Collection[str], seeds: Collection[str] = ("seed",)
) -> None:
    """Raises DataError unless all counts are 1 or more, RequestError for what is no seed."""
    for name in counts:
        if getattr(arguments, name) < 1:
            raise DataError(f"{flag(name)} must be 1 or more, got {getattr(arguments, name)}.")
    for name in seeds:
        check_seed(getattr(arguments, name), flag=flag(name))


def load(arguments: argparse.Namespace) -> Any:
    """The model that the flags name, a sampling.loading.Model."""
    from mogao_jax.compile_cache import keep_compiled_programs
    from mogao_jax.sampling import loading

    keep_compiled_programs()
    return loading.load_model(arguments.checkpoint, weights=arguments.weights)


def make_sampler(model: Any, arguments: argparse.Namespace, **replaced: Any) -> Any:
    """A sampler of the model, with fields of it replaced."""
    from mogao_jax.sampling import pipeline

    return pipeline.make_sampler(dataclasses.replace(model, **replaced), arguments.batch_size)
