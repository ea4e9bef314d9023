"""`mogao encoders`: train the tiny frozen encoders, or print what the embedded ones reach.

    mogao encoders train --part vae --minutes 20 --out DIR [--start WEIGHTS]
    mogao encoders check [--vae WEIGHTS] [--vit WEIGHTS]

Training writes DIR/tiny_vae.safetensors or DIR/tiny_vit.safetensors (the best so far, at any
time); copied into mogao_jax/worlds/shapes/assets, they are the embedded ones.
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
import sys


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit status."""
    args = _parser().parse_args(argv)
    return {"train": _train, "check": _check}[args.action](args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("mogao encoders", description=__doc__.split("\n")[0])
    actions = parser.add_subparsers(dest="action", required=True)
    train = actions.add_parser("train", help="train one of the two on the embedded world")
    train.add_argument("--part", choices=("vae", "vit"), required=True)
    train.add_argument("--minutes", type=float, default=20.0)
    train.add_argument("--out", type=pathlib.Path, required=True, help="folder for the weights")
    train.add_argument("--start", default="", help="weights to go on from")
    check = actions.add_parser("check", help="PSNR, probe accuracies, sizes and speed")
    check.add_argument("--vae", default="", help="weights instead of the embedded ones")
    check.add_argument("--vit", default="", help="weights instead of the embedded ones")
    return parser


def _train(args: argparse.Namespace) -> int:
    from mogao_jax.errors import EnvironmentProblem
    from mogao_jax.worlds.shapes.tiny_encoders import train_vae, train_vit

    if args.minutes <= 0:
        _parser().error(f"--minutes must be positive, got {args.minutes}")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise EnvironmentProblem(f"--out: cannot make {args.out} ({e.strerror}).") from None
    part = {"vae": train_vae.train, "vit": train_vit.train}[args.part]
    path = part(args.minutes, args.out, args.start, log=functools.partial(print, flush=True))
    print(f"weights: {path}")
    return 0


def _check(args: argparse.Namespace) -> int:
    from mogao_jax.worlds.shapes.tiny_encoders.check import figures

    print(json.dumps(figures(args.vae, args.vit), indent=2))
    sys.stdout.flush()
    return 0
