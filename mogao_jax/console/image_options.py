"""How images are to be generated, and seeds: flags that several commands share."""

from __future__ import annotations

import argparse
from typing import Any

from mogao_jax.errors import RequestError
from mogao_jax.sampling import options as options_lib

_NUM_SEEDS = 2**32


def sampling_options(arguments: argparse.Namespace, config: Any) -> options_lib.SamplingOptions:
    """What the flags ask for; the others are as the model's config recommends."""
    given = {
        "num_steps": arguments.steps,
        "solver": getattr(arguments, "solver", None),
        "guidance_scale": arguments.guidance,
        "image_guidance_scale": arguments.image_guidance,
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


def check_seed(seed: Any, num: int = 1, flag: str = "--seed") -> None:
    """Raises RequestError, naming the flag, unless `num` seeds can be counted from this one."""
    if not options_lib.is_whole(seed) or seed < 0 or seed + num > _NUM_SEEDS:
        raise RequestError(
            f"{flag} is {options_lib.shown(seed)}; seeds are whole numbers from 0 to 2^32 - 1."
        )
