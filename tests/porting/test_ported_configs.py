"""The recipes around pretrained LLMs have the shapes, and so the parameters, of those LLMs."""

from __future__ import annotations

import dataclasses
import pathlib

import jax
import pytest

from mogao_jax.config import check, load_config
from mogao_jax.models.modules import count_parameters, init_params, make_model

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"

# The LLM's own parameters as published (SmolLM2: 134,515,008 and zero biases), and the sum of
# embedding, both branches and AdaLN.
SIZES = {
    "mogao_7b": (3_085_938_688, 6_767_120_384),
    "mogao_3b": (1_543_714_304, 3_250_671_616),
    "mogao_1b": (494_032_768, 967_663_616),
    "smollm_emoji": (134_515_008 + 30 * (576 + 2 * 192), 300_598_272),
}


@pytest.mark.parametrize("name", SIZES)
def test_parameters(name):
    config = load_config(CONFIGS / f"{name}.py")
    model = make_model(config, vocab_size=config.model.vocab_size)
    counts = count_parameters(jax.eval_shape(lambda: init_params(config, model, jax.random.key(0))))
    of_llm, core = SIZES[name]
    assert "lm_head" not in counts  # tied
    assert counts["embedding"] + counts["und branch"] + counts["final_norm"] == of_llm
    assert sum(counts[p] for p in ("embedding", "und branch", "gen branch", "AdaLN")) == core
    assert counts["gen branch"] == counts["und branch"]
    assert f"{core:,} parameters" in (CONFIGS / f"{name}.py").read_text(encoding="utf-8")


def test_the_family_differs_in_the_transformer_alone():
    """One tokenizer, one VAE, one vision tower: what is encoded once serves every size."""
    family = [load_config(CONFIGS / f"{n}.py") for n in ("mogao_7b", "mogao_3b", "mogao_1b")]
    for config in family:
        model = config.model
        assert model.num_heads * model.head_dim == model.embed_dim and model.num_kv_heads == 2
        assert model.rope_theta == 1e6 and model.rms_norm_eps == 1e-6
        same = dataclasses.replace(family[0], name=config.name, model=model)
        assert same == config


def test_smollm_emoji_can_be_trained_as_it_stands(tmp_path):
    config = load_config(CONFIGS / "smollm_emoji.py")
    check(dataclasses.replace(
        config, tokenizer=dataclasses.replace(config.tokenizer, path=str(tmp_path))
    ))  # fmt: skip
    assert config.model.num_heads * config.model.head_dim == config.model.embed_dim == 576
    assert config.model.rope_theta == 1e5 and config.model.rms_norm_eps == 1e-5
