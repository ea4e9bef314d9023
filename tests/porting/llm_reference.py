"""transformers' Qwen2ForCausalLM with random weights, and our und branch run on the same tokens."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_system as tiny

from mogao_jax.config.schema import ModelConfig, MogaoConfig
from mogao_jax.models.mogao import Mogao, MogaoInputs, head_table
from mogao_jax.ops.attention.parts import Parts
from mogao_jax.porting.tensor_sources import InMemory
from mogao_jax.sequence.masking import TEXT, VAE_CLEAN, VAE_NOISED, TokenMeta


def config_of(model: ModelConfig) -> MogaoConfig:
    """The tiny config around another transformer."""
    return dataclasses.replace(tiny.CONFIG, model=model)


def make_reference(model: ModelConfig, *, seed: int = 0, randomise: bool = True) -> Any:
    """A Qwen2ForCausalLM of a config's shape, float32, nothing in it zero or one."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers import Qwen2Config, Qwen2ForCausalLM

    assert model.embed_dim == model.num_heads * model.head_dim
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=model.vocab_size,
        hidden_size=model.embed_dim,
        intermediate_size=model.mlp_dim,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_heads,
        num_key_value_heads=model.num_kv_heads,
        rms_norm_eps=model.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": model.rope_theta},
        tie_word_embeddings=model.tie_embeddings,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    theirs = Qwen2ForCausalLM._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if not randomise and p.ndim == 2:
                continue  # at full size, the matrices as they are initialised
            spread = 1 / np.sqrt(p.shape[-1]) if p.ndim == 2 and "embed" not in name else 0.3
            p.copy_(torch.randn_like(p) * spread + ("norm" in name))
    return theirs


def tensors(theirs: Any, *, gradients: bool = False) -> InMemory:
    """Its weights, or their gradients, as a file of them would hold them."""
    state = {
        name: np.asarray((p.grad if gradients else p).detach().numpy())
        for name, p in theirs.named_parameters()  # a tied head is named once
    }
    config = theirs.config.to_dict()
    return InMemory(state, config=config, place="Qwen2ForCausalLM")


def text_inputs(documents: list[np.ndarray], model: ModelConfig) -> MogaoInputs:
    """Documents of tokens packed in one row, each counted from zero; nothing but text."""
    tokens = np.concatenate(documents)[None].astype(np.int32)
    counts = np.concatenate([np.arange(len(d)) for d in documents])[None].astype(np.int32)
    segment = np.concatenate([np.full(len(d), i + 1) for i, d in enumerate(documents)])[None]
    none = np.zeros((1, 0), np.int32)
    return MogaoInputs(
        tokens=tokens,
        vit_index=np.full_like(tokens, -1),
        vit_features=np.zeros((1, 0, 16), np.float32),
        clean_latents=np.zeros((1, 0, 64), np.float32),
        noised_latents=np.zeros((1, 0, 64), np.float32),
        timesteps=np.zeros((1, 0), np.float32),
        noised_index=none,
        meta=Parts(
            TokenMeta(segment.astype(np.int32), counts, np.full_like(counts, TEXT)),
            TokenMeta(none, none, none + VAE_CLEAN),
            TokenMeta(none, none, none + VAE_NOISED),
        ),
        positions=Parts(
            np.repeat(counts[..., None], 3, -1).astype(np.float32),
            *(np.zeros((1, 0, 3), np.float32),) * 2,
        ),
    )


def logits_of(config: MogaoConfig, params: Any, inputs: MogaoInputs) -> jax.Array:
    """float32[tokens, vocabulary] of a row."""
    c = config.model
    module = Mogao(c, config.vae, config.vit, c.vocab_size)
    hidden = module.apply({"params": params}, inputs).und_hidden[0]
    return jnp.einsum("ld,vd->lv", hidden, head_table(params).astype(hidden.dtype)).astype(
        jnp.float32
    )


def relative(a: Any, b: Any) -> float:
    """||a - b|| / ||b|| in float64."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
