"""How images are drawn: flags that several commands share."""

from __future__ import annotations

import argparse
from typing import Any


def sampling_options(arguments: argparse.Namespace, config: Any) -> Any:
    """What the flags ask for; the others are as the model's config recommends."""
    from mogao_jax.sampling import prompts

    given = {
        "num_steps": arguments.steps,
        "solver": getattr(arguments, "solver", None),
        "guidance_scale": arguments.guidance,
        "image_guidance_scale": arguments.image_guidance,
    }
    options = prompts.make_options({k: v for k, v in given.items() if v is not None}, config)
    prompts.check_options(options, config)
    return options


def add_image_flags(add: Any, *, solver: bool = True) -> None:
    """The flags that `sampling_options` reads, with or without --solver."""
    add("--steps", type=int, metavar="N", help="of the solver (default: the model's own)")
    if solver:
        add("--solver", choices=("euler", "heun"))
    add("--guidance", type=float, metavar="X", help="(the model's own)")
    add("--image-guidance", type=float, metavar="X", help="(the model's own)")
