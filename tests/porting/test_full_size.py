"""The 7B through `mogao port`, at its real size.

MOGAO_FULL_SIZE=1 pytest -s tests/porting/test_full_size.py

Random files of exactly Qwen2.5-3B's, the vision tower's and FLUX's VAE's shapes. 40 GB of disk for
pytest's folder (--basetemp), some ten minutes of two cores.
"""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Mapping

import ml_dtypes
import numpy as np
import pytest
import tiny_files as files

from mogao_jax.config.schema import ModelConfig, VaeConfig, VitConfig

ROOT = pathlib.Path(__file__).parents[2]
QWEN_3B = ModelConfig(num_layers=36, embed_dim=2048, mlp_dim=11008, num_heads=16, num_kv_heads=2,
                      head_dim=128, vocab_size=151_936)  # fmt: skip
LIMIT = 6e9  # bytes of memory

pytestmark = pytest.mark.skipif(
    not os.environ.get("MOGAO_FULL_SIZE"), reason="full size: MOGAO_FULL_SIZE=1"
)


class RandomBits(Mapping):
    """Tensors of given shapes, made when asked for: finite, of either sign, 2^-8 to 2^-7."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], dtype: str):
        self._shapes, self._dtype, self._rng = shapes, dtype, np.random.default_rng(0)

    def __getitem__(self, key: str) -> np.ndarray:
        shape = self._shapes[key]
        if self._dtype == "float32":
            bits = self._rng.integers(0, 2**32, shape, np.uint32) & 0x807FFFFF | 0x3B800000
            return bits.view(np.float32)
        bits = self._rng.integers(0, 2**16, shape, np.uint16) & 0x807F | 0x3B80
        return bits.view(ml_dtypes.bfloat16)

    def __iter__(self):
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


@pytest.fixture(scope="module")
def place(tmp_path_factory, shared_dir):
    """llm/, vit/, vae/ with random values, and mogao/: the checkpoint that from-hf made of them."""
    folder = tmp_path_factory.mktemp("full")
    vocab = QWEN_3B.vocab_size
    llm = RandomBits(files.qwen2_shapes(QWEN_3B, vocab), "bfloat16")
    files.write(folder / "llm", llm, files.qwen2_config(QWEN_3B, vocab), shards=2)
    vit = RandomBits(files.vision_shapes(VitConfig(), 1536), "bfloat16")
    files.write(folder / "vit", vit, files.vision_config(VitConfig(), 1536))
    files.write(folder / "vae", RandomBits(files.vae_shapes("bfl", VaeConfig()), "float32"))
    arguments = ["--config=configs/mogao_7b.py", "--out", folder / "mogao"]
    for part in ("llm", "vit", "vae"):
        arguments += [f"--{part}", folder / part]
    arguments += ["--tokenizer", shared_dir / "tokenizers" / "qwen2.5"]
    said = port("from-hf", *arguments)
    assert peak(said) < LIMIT
    return folder


def port(*arguments) -> str:
    command = [sys.executable, "-m", "mogao_jax", "port", *map(str, arguments)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(ended.stdout)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def peak(said: str) -> float:
    """Bytes of memory, as the command prints them at its end."""
    found = re.search(r"peak memory ([\d.]+) GB", said)
    assert found, said
    return float(found[1]) * 1e9


def test_the_und_branch_is_the_llm(place):
    tensors = 36 * 12 + 2
    assert f"{tensors} tensors have equal values" in port("diff", place / "mogao", place / "llm")


def test_the_llm_comes_back_bit_by_bit(place):
    said = port("to-hf", place / "mogao", "--part", "llm", "--out", place / "back")
    assert peak(said) < LIMIT
    assert "tensors have equal values" in (said := port("diff", place / "back", place / "llm"))
    assert "in A, " not in said  # the dtypes, too
