"""`mogao bench peers`: a training step of ours beside those of other implementations."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys

from mogao_jax.console.parser import Parser
from mogao_jax.console.writing import write_text
from mogao_jax.errors import RequestError

BARS = {"bagel": 0.9, "transfusion": 0.5}  # of the peer's time, at most

_EXAMPLES = """examples (in an environment that has torch beside this package):
  git clone https://github.com/ByteDance-Seed/Bagel
  pip install 'transformers==4.49.0' transfusion-pytorch
  mogao bench peers --bagel Bagel --transfusion
"""


def main(argv: list[str]) -> int:
    """Parses and runs; returns the exit status (1: a bar is not met)."""
    parser = Parser(
        prog="mogao bench peers",
        description="The transformer's forward and backward pass in float32 on the CPU, on the "
        "same packed documents with the same mask, depth and width, in turn.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("benchmark", choices=("peers",))
    add("--bagel", type=pathlib.Path, metavar="FOLDER", help="a clone of BAGEL's repository")
    add("--transfusion", action="store_true", help="transfusion-pytorch, which must be installed")
    add("--rounds", type=int, default=7, metavar="N", help="that medians are taken of (7)")
    add("--json", type=pathlib.Path, metavar="FILE", help="also write the figures")
    arguments = parser.parse_args(argv)
    if arguments.rounds < 1:
        raise RequestError(f"--rounds must be 1 or more, got {arguments.rounds}.")
    if arguments.bagel is None and not arguments.transfusion:
        raise RequestError("name a peer: --bagel FOLDER, --transfusion, or both.")
    if arguments.json is not None:
        write_text(arguments.json, "", mode="a")  # tried before time is spent
    return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    os.environ["JAX_PLATFORMS"] = "cpu"
    from mogao_jax.sharding.mesh import split_cpu
    from mogao_jax.tools.bench import packed_documents, transformer_step
    from mogao_jax.tools.bench.peers import bagel, transfusion
    from mogao_jax.tools.bench.rounds import alternate

    setting = packed_documents.Setting()
    split_cpu(min(setting.rows, os.cpu_count() or 1))
    batch = packed_documents.make_batch(setting)
    sequences = packed_documents.sequences(batch)
    peers = {}  # before ours, which compiles for a while: what is missing is said at once
    if arguments.bagel is not None:
        peers["bagel"] = bagel.make_step(setting, sequences, arguments.bagel)
    if arguments.transfusion:
        peers["transfusion"] = transfusion.make_step(setting, sequences)
    calls = {"ours": transformer_step.make_step(setting, batch), **peers}
    print(
        f"{setting.layers} layers of width {setting.width}, {setting.rows} rows of "
        f"{setting.documents} documents with {setting.images} pictures each, "
        f"{packed_documents.num_tokens(batch)} tokens; medians of {arguments.rounds} rounds"
    )
    measured = alternate(calls, arguments.rounds)
    record, met = {"ours": {"seconds": measured.median("ours")}}, True
    print(f"  {'ours':12} {measured.median('ours'):6.2f} s")
    for name in [n for n in calls if n != "ours"]:
        ratio, (low, high) = measured.ratio("ours", name), measured.spread("ours", name)
        is_met = ratio <= BARS[name]
        met &= is_met
        record[name] = {"seconds": measured.median(name), "ratio": ratio, "bar": BARS[name]}
        print(
            f"  {name:12} {measured.median(name):6.2f} s   ours over it {ratio:.2f} "
            f"[{low:.2f}, {high:.2f}]   bar {BARS[name]}: {'met' if is_met else 'MISSED'}"
        )
        sys.stdout.flush()
    if arguments.json is not None:
        write_text(arguments.json, json.dumps(record, indent=2) + "\n")
    return 0 if met else 1
