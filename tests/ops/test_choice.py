from __future__ import annotations

import pytest

from mogao_jax.config.schema import AttentionConfig
from mogao_jax.errors import ConfigError
from mogao_jax.ops.attention.api import choose, resolve


@pytest.mark.parametrize(
    ("platform", "chosen"),
    [("tpu", "pallas_tpu"), ("gpu", "pallas_gpu"), ("CUDA", "pallas_gpu"), ("cpu", "xla"),
     ("something", "xla")],
)  # fmt: skip
def test_auto_goes_by_the_platform(platform, chosen):
    assert choose("auto", platform) == chosen
    assert choose("dense", platform) == "dense"


def test_what_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="pallas_gpu"):
        choose("flash", "gpu")


def test_blocks():
    default = resolve(AttentionConfig("pallas_tpu", 0, 512), "tpu")
    assert (default.block_q, default.block_kv) == (256, 512)
    small = AttentionConfig(block_q=32, block_kv=384)
    resolved = resolve(small, "tpu")  # a recipe made on a CPU
    assert (resolved.implementation, resolved.block_q, resolved.block_kv) == (
        "pallas_tpu",
        128,
        384,
    )
    assert resolve(small, "cpu") == AttentionConfig("xla", 32, 384)
    with pytest.raises(ConfigError, match="block_q is 32.*multiple of 128.*use 128"):
        resolve(AttentionConfig("pallas_tpu", 32), "tpu")
    with pytest.raises(ConfigError, match="block_kv is 48.*power of two.*use 32"):
        resolve(AttentionConfig("pallas_gpu", 64, 48), "gpu")
