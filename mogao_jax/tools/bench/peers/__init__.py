"""A training step of ours beside those of other open implementations, on the same documents.

Their code is not part of this package: the caller names the folders that hold it.
"""

from __future__ import annotations

import os
import pathlib

from mogao_jax.sharding.mesh import split_cpu
from mogao_jax.tools.bench import packed_documents
from mogao_jax.tools.bench.instrumentation import alternate
from mogao_jax.tools.bench.peers import bagel, transfusion

BARS = {"bagel": 0.9, "transfusion": 0.5}  # our time over the peer's, at most


def compare(
    bagel_folder: pathlib.Path | None, with_transfusion: bool, num_rounds: int
) -> tuple[dict[str, dict[str, float]], bool]:
    """Times and prints a step of each; returns the figures by name, and whether all bars are met.

    Raises:
      EnvironmentProblem: a peer is not installed.
    """
    setting = packed_documents.Setting()
    split_cpu(min(setting.rows, os.cpu_count() or 1))
    batch = packed_documents.make_batch(setting)
    sequences = packed_documents.sequences(batch)
    peers = {}  # before ours, which takes time to compile: a missing peer fails at once
    if bagel_folder is not None:
        peers["bagel"] = bagel.make_step(setting, sequences, bagel_folder)
    if with_transfusion:
        peers["transfusion"] = transfusion.make_step(setting, sequences)
    print(
        f"{setting.layers} layers of width {setting.width}, {setting.rows} rows of "
        f"{setting.documents} documents with {setting.images} images each, "
        f"{packed_documents.num_tokens(batch)} tokens; medians of {num_rounds} rounds"
    )
    ours = packed_documents.make_step(setting, batch)
    measured = alternate({"ours": ours, **peers}, num_rounds)
    record, all_met = {"ours": {"seconds": measured.median("ours")}}, True
    print(f"  {'ours':12} {measured.median('ours'):6.2f} s")
    for name in peers:
        ratio, (low, high) = measured.ratio("ours", name), measured.spread("ours", name)
        is_met = ratio <= BARS[name]
        all_met &= is_met
        record[name] = {"seconds": measured.median(name), "ratio": ratio, "bar": BARS[name]}
        print(
            f"  {name:12} {measured.median(name):6.2f} s   ours over it {ratio:.2f} "
            f"[{low:.2f}, {high:.2f}]   bar {BARS[name]}: {'met' if is_met else 'MISSED'}",
            flush=True,
        )
    return record, all_met
