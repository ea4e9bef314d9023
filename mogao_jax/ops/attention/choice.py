"""Which implementation of attention runs, and with which blocks: decided once, before tracing."""

from __future__ import annotations

import dataclasses
from typing import Any

from mogao_jax.config.schema import AttentionConfig
from mogao_jax.errors import ConfigError

IMPLEMENTATIONS = ("xla", "dense", "pallas_tpu", "pallas_gpu")
_OF_PLATFORM = {
    "tpu": "pallas_tpu",
    "gpu": "pallas_gpu",
    "cuda": "pallas_gpu",
    "rocm": "pallas_gpu",
    "cpu": "xla",
}
# Tokens per block (queries, keys) where the config names none. On a CPU small ones follow the
# mask; a TPU's matrix unit wants large ones (multiples of 128), a GPU's fast memory holds middling
# ones.
_BLOCKS = {"xla": (64, 64), "dense": (64, 64), "pallas_tpu": (256, 256), "pallas_gpu": (64, 64)}
_TPU_LANES = 128


def choose(implementation: str, platform: str) -> str:
    """The implementation that "auto" stands for on a platform; others stand for themselves.

    Args:
      implementation: "auto" or one of IMPLEMENTATIONS.
      platform: of the devices that the program is compiled for: "cpu", "gpu", "tpu", ... What is
        not known gets plain XLA, which runs everywhere.
    Raises:
      ValueError: for an unknown implementation.
    """
    if implementation == "auto":
        return _OF_PLATFORM.get(platform.lower(), "xla")
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"unknown attention implementation {implementation!r}: auto, "
            f"{', '.join(IMPLEMENTATIONS)}"
        )
    return implementation


def block_sizes(implementation: str, block_q: int = 0, block_kv: int = 0) -> tuple[int, int]:
    """Tokens per block of queries and of keys; 0 is what suits the implementation."""
    default_q, default_kv = _BLOCKS[implementation]
    return block_q or default_q, block_kv or default_kv


def resolve(config: AttentionConfig, platform: str) -> AttentionConfig:
    """The section with nothing left to choose.

    Blocks that the implementation cannot have are refused where it was asked for by name; with
    "auto" the nearest ones are taken, so that one recipe runs anywhere.

    Raises:
      ConfigError: for such blocks, with ones that work.
    """
    implementation = choose(config.implementation, platform)
    sizes = block_sizes(implementation, config.block_q, config.block_kv)
    chosen: dict[str, Any] = {"implementation": implementation}
    for name, size in zip(("block_q", "block_kv"), sizes, strict=True):
        chosen[name], needs = _nearest_block(implementation, size)
        if chosen[name] != size and config.implementation != "auto":
            raise ConfigError(
                f"config.model.attention.{name} is {size}, but the kernel {implementation!r} "
                f"needs {needs}; use {chosen[name]}, or 0 for what suits it."
            )
    return dataclasses.replace(config, **chosen)


def _nearest_block(implementation: str, size: int) -> tuple[int, str]:
    """The block nearest to `size` that the implementation can have, and what it asks for."""
    if implementation == "pallas_tpu":
        near = max(1, round(size / _TPU_LANES)) * _TPU_LANES
        return near, f"a multiple of {_TPU_LANES}, the lanes of a TPU's registers"
    if implementation == "pallas_gpu":
        return max(16, 1 << (size.bit_length() - 1)), "a power of two, at least 16"
    return size, "any"
