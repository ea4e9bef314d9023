"""What the benchmarks of `mogao eval` share: which model, and how it is sampled."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Collection
from typing import Any

from mogao_jax.console.image_options import add_image_flags, check_seed
from mogao_jax.errors import DataError


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
    from mogao_jax.console import compile_cache
    from mogao_jax.sampling import loading

    compile_cache.keep_compiled_programs()
    return loading.load_model(arguments.checkpoint, weights=arguments.weights)


def make_sampler(model: Any, arguments: argparse.Namespace, **replaced: Any) -> Any:
    """A sampler of the model, with fields of it replaced."""
    from mogao_jax.sampling import pipeline

    return pipeline.make_sampler(dataclasses.replace(model, **replaced), arguments.batch_size)
