"""`mogao port`: checkpoints of others in, and back out; what one holds; how two differ."""

from __future__ import annotations

import argparse
import sys

from mogao_jax.config.files import parse_config_args
from mogao_jax.config.schema import MogaoConfig
from mogao_jax.console.flags import CONFIG_HELP, Parser
from mogao_jax.console.output import configure_logging
from mogao_jax.errors import ConfigError, RequestError
from mogao_jax.paths import expanded
from mogao_jax.process_memory import peak_bytes

USAGE = """usage: mogao port ACTION ...

  from-hf  --config=FILE [--llm DIR] [--vit DIR] [--vae FILE] --out CKPT
           a model around pretrained parts, as a checkpoint to train from or to sample
  to-hf    CKPT --out DIR [--part llm|vit|vae|all] [--dtype float32|bfloat16|float16]
           back into the layouts of transformers and diffusers; or the whole model
  inspect  CKPT|DIR|FILE [--json] [--verify]
                                       names, shapes, dtypes, parameters, fingerprint
  diff     A B                         which tensors differ, and by how much

'mogao port ACTION --help' tells more."""


def main(argv: list[str]) -> int:
    """Dispatches on the action; returns the exit status (diff: 1 where values differ)."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    if argv[0] not in ACTIONS:
        raise RequestError(f"there is no action {argv[0]!r} of 'mogao port'.\n{USAGE}")
    configure_logging()
    return ACTIONS[argv[0]](argv[1:])


# The porting modules import JAX, so each action imports what it needs.


def _from_hf(argv: list[str]) -> int:
    parser = Parser(
        prog="mogao port from-hf",
        description="Builds the deep-fused model of a config around a pretrained language model, "
        "and copies the frozen encoders beside it. What no file holds is initialised, as "
        "config.porting says. Every key must fit, or nothing is written.",
    )
    parser.add_argument_group("the config", CONFIG_HELP)
    add = parser.add_argument
    add("--llm", metavar="DIR", help="Qwen2 or Qwen2.5 (safetensors), or a whole Mogao of to-hf")
    add("--vit", metavar="DIR", help="Qwen2-VL's vision tower, alone or in a whole Qwen2-VL")
    add("--vae", metavar="FILE", help="FLUX's ae.safetensors, diffusers' folder, or TAEF1's")
    add("--tokenizer", metavar="FILE", help="tokenizer.json (the LLM's own)")
    add("--out", required=True, metavar="CKPT", help="the checkpoint's folder; must not exist")
    add("--allow-missing", action="append", default=[], metavar="PATTERN",
        help="keys of the LLM that may be absent and are then initialised; recorded")  # fmt: skip
    add("--allow-nan", action="store_true", dest="allow_non_finite",
        help="take NaN and infinity as they are")  # fmt: skip
    config = None
    if any(a in ("-h", "--help") for a in argv):
        argv = ["--help"]
    elif any(a == "--config" or a.startswith("--config=") for a in argv):
        # Unchecked for data: a config may describe a model alone.
        config, argv = parse_config_args(argv, checked=False)
    options = vars(parser.parse_args(argv))
    config = config if config is not None else _config_of(options["llm"])

    from mogao_jax.porting.streaming import stream_checkpoint

    ported = stream_checkpoint(config=config, say=_say, **options)
    for note in ported.notes:
        print(f"note: {note}")
    width = max(map(len, ported.parameters))
    for part, count in ported.parameters.items():
        print(f"{part:<{width}}  {count:>14,}")
    print(
        f"{ported.path}: {sum(ported.parameters.values()):,} parameters, "
        f"{ported.num_bytes / 1e9:.2f} GB in {ported.seconds:.0f} s"
    )
    print(f"peak memory {peak_bytes() / 1e9:.2f} GB")
    return 0


def _to_hf(argv: list[str]) -> int:
    from mogao_jax.porting.to_hf import PARTS, export
    from mogao_jax.safetensors_files import DTYPES

    parser = Parser(
        prog="mogao port to-hf",
        description="Writes a checkpoint as others read it. llm: the und branch for transformers; "
        "vit: for transformers; vae: for diffusers, or as FLUX's ae.safetensors; all: the whole "
        "model in shards, with config.json and model card, and vit/ and vae/ below it.",
    )
    add = parser.add_argument
    add("checkpoint", metavar="CKPT", help="a run's folder, a checkpoint, or an exported file")
    add("--out", required=True, metavar="DIR", help="the folder to make; must not exist")
    add("--part", choices=PARTS, default="all")
    add("--dtype", choices=DTYPES, help="of the tensors (as they came in, else as saved)")
    add("--vae-layout", choices=("bfl", "diffusers", "original"),
        help="FLUX: bfl or diffusers; TAEF1: original or diffusers (as it came in)")  # fmt: skip
    add("--weights", choices=("best", "ema", "raw"), default="best",
        help="ema: the moving average; best: that where there is one")  # fmt: skip
    add("--allow-nan", action="store_true", default=None, dest="allow_non_finite",
        help="write NaN and infinity as they are (as from-hf was told)")  # fmt: skip
    add("--shard-gb", type=_gigabytes, default=5 * 10**9, metavar="GB", dest="shard_bytes",
        help="largest file (5)")  # fmt: skip
    for file in export(**vars(parser.parse_args(argv)), say=_say):
        print(f"{file}  {file.stat().st_size / 1e6:,.1f} MB")
    print(f"peak memory {peak_bytes() / 1e9:.2f} GB")
    return 0


def _inspect(argv: list[str]) -> int:
    parser = Parser(prog="mogao port inspect", description="What a checkpoint or folder holds.")
    parser.add_argument("place", metavar="CKPT|DIR|FILE")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--verify", action="store_true",
        help="read a checkpoint's arrays and compare them with their saved checksums")  # fmt: skip
    arguments = parser.parse_args(argv)

    from mogao_jax.porting.inspecting import inspect

    found = inspect(arguments.place, verify=arguments.verify)
    print(found.as_json() if arguments.json else found.as_text())
    return 0


def _diff(argv: list[str]) -> int:
    parser = Parser(
        prog="mogao port diff",
        description="Compares two checkpoints, folders or files tensor by tensor. A Qwen2 folder "
        "beside a Mogao is compared with its und branch. Exit status 1 where values differ.",
    )
    parser.add_argument("a", metavar="A")
    parser.add_argument("b", metavar="B")
    arguments = parser.parse_args(argv)

    from mogao_jax.porting.inspecting import compare

    found = compare(arguments.a, arguments.b)
    print(found.as_text())
    return 0 if found.equal else 1


ACTIONS = {"from-hf": _from_hf, "to-hf": _to_hf, "inspect": _inspect, "diff": _diff}


def _config_of(llm: str | None) -> MogaoConfig:
    """The config that a whole Mogao of to-hf carries."""
    from mogao_jax.porting.mogao_checkpoint import config_of_folder, is_mogao_folder
    from mogao_jax.porting.safetensors_reader import read_json

    folder = expanded(llm or "")
    if llm is None or not is_mogao_folder(folder):
        raise ConfigError(
            "--config=FILE is required: it says what the model around the LLM looks like, for "
            "example --config=configs/mogao_7b.py"
        )
    return config_of_folder(folder, read_json(folder / "config.json"))


def _gigabytes(text: str) -> int:
    """Bytes."""
    try:
        num_bytes = int(float(text) * 1e9)
    except (ValueError, OverflowError):
        num_bytes = 0
    if num_bytes < 1:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return num_bytes


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
