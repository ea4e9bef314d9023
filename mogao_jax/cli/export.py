"""`mogao export WORKDIR --out FILE.safetensors`: a trained model as one file, with its config."""

from __future__ import annotations

import argparse
import dataclasses

from mogao_jax.config.convert import from_dict
from mogao_jax.console.flags import Parser, add_image_flags, sampling_options
from mogao_jax.tokenizer import load_tokenizer

_NAMES = {"ema": "moving average", "raw": "raw parameters"}


def main(argv: list[str]) -> int:
    """Writes the file and says what is in it."""
    parser = Parser(
        prog="mogao export",
        description="Writes a checkpoint's parameters and its config into one file, which `mogao "
        "sample --checkpoint FILE` and mogao_jax.load(FILE) read. The optimizer is left out; the "
        "frozen encoders are named, not copied.",
    )
    parser.add_argument("checkpoint", help="a run's folder (its newest checkpoint), or one of them")
    parser.add_argument("--out", required=True, help="the file to write: NAME.safetensors")
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float16")
    parser.add_argument(
        "--weights",
        choices=("best", "ema", "raw"),
        default="best",
        help="ema: the moving average; raw: the last parameters; best: ema where there is one",
    )
    add = parser.add_argument_group("what the model is best sampled with").add_argument
    add_image_flags(add, solver=False)
    return _export(parser.parse_args(argv))


def _export(arguments: argparse.Namespace) -> int:
    import jax  # only now: --help does without

    from mogao_jax.checkpoints import exported, files
    from mogao_jax.checkpoints.sidecar_files import origin
    from mogao_jax.models.modules import make_model, param_shapes

    config = from_dict(files.read_meta(arguments.checkpoint)["config"])
    options = sampling_options(arguments, config)
    names = [f.name for f in dataclasses.fields(config.sampling)]
    recommended = type(config.sampling)(**{name: getattr(options, name) for name in names})
    config = dataclasses.replace(config, sampling=recommended)
    tokenizer = load_tokenizer(config.tokenizer)
    # In float32, whatever the run computes in: rounded once.
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, "float32"),
        param_shapes(config, make_model(config, tokenizer.vocab_size)),
    )
    params, meta = files.load_params(
        arguments.checkpoint, weights=arguments.weights, abstract=shapes
    )
    weights = files.best_weights(meta, arguments.weights)
    path = exported.write_exported(
        arguments.out,
        params,
        config=config,
        step=meta["step"],
        weights=weights,
        tokenizer=tokenizer,
        encoders=meta.get("encoders"),
        porting=origin(meta, files.find_checkpoints(arguments.checkpoint)[0]),
        dtype=arguments.dtype,
    )
    count = sum(x.size for x in jax.tree.leaves(params))
    print(
        f"{path}: {count:,} parameters ({_NAMES[weights]} of step {meta['step']}) in "
        f"{arguments.dtype}, {path.stat().st_size / 1e6:.1f} MB"
    )
    return 0
