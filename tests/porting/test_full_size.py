"""The 7B through `mogao port`, at its real size.

MOGAO_FULL_SIZE=1 pytest -s tests/porting/test_full_size.py

Random files of exactly Qwen2.5-3B's, the vision tower's and FLUX's VAE's shapes. 40 GB of disk for
pytest's folder (--basetemp), some ten minutes of two cores.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import tiny_files as files

from mogao_jax.config.schema import ModelConfig, VaeConfig, VitConfig

ROOT = pathlib.Path(__file__).parents[2]
QWEN_3B = ModelConfig(num_layers=36, embed_dim=2048, mlp_dim=11008, num_heads=16, num_kv_heads=2,
                      head_dim=128, vocab_size=151_936)  # fmt: skip
LIMIT = 6e9  # bytes of memory

pytestmark = pytest.mark.skipif(
    not os.environ.get("MOGAO_FULL_SIZE"), reason="full size: MOGAO_FULL_SIZE=1"
)


def random_bits(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Finite values of either sign between 2^-8 and 2^-7."""
    if dtype == "float32":
        bits = rng.integers(0, 2**32, shape, np.uint32) & 0x807FFFFF | 0x3B800000
        return bits.view(np.float32)
    bits = rng.integers(0, 2**16, shape, np.uint16) & 0x807F | 0x3B80
    return bits.view(ml_dtypes.bfloat16)


def write(folder: pathlib.Path, shapes: dict, config: dict | None, dtype: str, shards: int) -> None:
    """A folder as Hugging Face's, a shard in memory at a time."""
    folder.mkdir()
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    rng, keys, weight_map = np.random.default_rng(0), list(shapes), {}
    for n in range(shards):
        name = f"model-{n + 1:05}-of-{shards:05}.safetensors"
        part = {key: random_bits(rng, shapes[key], dtype) for key in keys[n::shards]}
        safetensors.numpy.save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.fixture(scope="module")
def place(tmp_path_factory, shared_dir):
    """llm/, vit/, vae/ with random values, and mogao/: the checkpoint that from-hf made of them."""
    folder = tmp_path_factory.mktemp("full")
    vocab = QWEN_3B.vocab_size
    llm = files.qwen2_shapes(QWEN_3B, vocab), files.qwen2_config(QWEN_3B, vocab)
    write(folder / "llm", *llm, "bfloat16", shards=2)
    write(folder / "vit", files.vision_shapes(VitConfig(), 1536),
          files.vision_config(VitConfig(), 1536), "bfloat16", shards=1)  # fmt: skip
    write(folder / "vae", files.vae_shapes("bfl", VaeConfig()), None, "float32", shards=1)
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
    port("to-hf", place / "mogao", "--part", "llm", "--out", place / "back")
    assert "tensors have equal values" in (said := port("diff", place / "back", place / "llm"))
    assert "in A, " not in said  # the dtypes, too
