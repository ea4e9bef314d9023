"""Greedy generation: our KV-cached sampler writes what transformers' generate writes.

Needs torch and transformers; for the real weights also SmolLM2 (see conftest.py).
"""

from __future__ import annotations

import dataclasses
import pathlib

import jax
import llm_reference as reference
import numpy as np
import pytest
import tiny_system as tiny

from mogao_jax.config import load_config
from mogao_jax.config.schema import MogaoConfig
from mogao_jax.models.modules import EncoderParams, Modules, make_model
from mogao_jax.models.vae import FluxVae
from mogao_jax.models.vit import VisionTower
from mogao_jax.porting.from_hf import build_mogao
from mogao_jax.sampling.options import SamplingOptions
from mogao_jax.sampling.requests import Request
from mogao_jax.sampling.sampler import Sampler
from mogao_jax.sequence.document import Document, Text
from mogao_jax.tokenizer import BpeTokenizer, Tokenizer

NUM_TOKENS = 64
CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
AGAINST = "transformers' greedy generation"


class Written:
    """Listens to the sampler: the tokens that it chooses, from the logits it chose them by."""

    def __init__(self):
        self.ids: list[int] = []
        self.allowed = np.zeros(0, bool)

    def __call__(self, what: str, seen: dict[str, np.ndarray]) -> None:
        if what == "logits" and seen["active"][0]:
            logits = np.where(self.allowed, np.asarray(seen["logits"][0]), -np.inf)
            self.ids.append(int(logits.argmax()))


def generate(config: MogaoConfig, params, tokenizer: Tokenizer, document: Document, num: int):
    """Ids and text that our sampler writes after a document of text."""
    model = make_model(config, tokenizer.vocab_size)
    modules = Modules(config, model, FluxVae(config.vae), VisionTower(config.vit), ())
    written = Written()
    sampler = Sampler(modules, params, EncoderParams({}, {}), tokenizer, max_length=256,
                      text_chunk=16, probe=written)  # fmt: skip
    written.allowed = sampler.allowed.copy()
    written.allowed[tokenizer.vision_start] = False  # no images
    options = SamplingOptions(max_tokens=num, allow_images=False, temperature=0.0)
    result = sampler.sample([Request(document, 0, options)])[0]
    jax.effects_barrier()
    text = "".join(item.text for item in result.items if isinstance(item, Text))
    return written.ids, text, written.allowed


def their_ids(theirs, prompt: list[int], allowed: np.ndarray, ends: list[int], num: int):
    """What transformers writes, of the same tokens, until one of `ends` or `num` of them."""
    import torch

    out = theirs.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=num,
        suppress_tokens=np.flatnonzero(~allowed).tolist(),
        eos_token_id=ends,
        pad_token_id=ends[0],
    )
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("scanned", [False, True], ids=["layers", "scanned"])
def test_tiny_models(scanned, measured):
    pytest.importorskip("torch")
    vocab = tiny.TOKENIZER.vocab_size
    fields = {
        "num_heads": 4,
        "head_dim": 8,
        "vocab_size": vocab,
        "scan_layers": scanned,
        "tie_embeddings": False,
    }  # tied and random, a model repeats itself
    config = tiny.config(model=fields)
    theirs = reference.make_reference(config.model, seed=4)
    params = build_mogao(reference.tensors(theirs), config, jax.random.key(0))
    text = "Once upon a time"
    ids, _, allowed = generate(config, params, tiny.TOKENIZER, Document([Text(text)]), NUM_TOKENS)
    ends = [tiny.TOKENIZER.im_end, tiny.TOKENIZER.endoftext]
    wanted = their_ids(theirs, tiny.TOKENIZER.encode(text), allowed, ends, NUM_TOKENS)
    assert len(wanted) == NUM_TOKENS and len(set(wanted)) > 10  # of one letter, anything agrees
    measured(AGAINST, f"tiny, {'scanned' if scanned else 'layers'}, {NUM_TOKENS} tokens",
             "tokens that differ", differing(ids, wanted), 0)  # fmt: skip


def differing(a: list[int], b: list[int]) -> int:
    return sum(x != y for x, y in zip(a, b, strict=False)) + abs(len(a) - len(b))


# ---------------------------------------------------------------------------------- real weights

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n",
    "Water boils at a temperature of",
]


@pytest.fixture(scope="module")
def both(smollm):
    """transformers' model; config, parameters and tokenizer of ours."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.Qwen2ForCausalLM.from_pretrained(
        str(smollm), attn_implementation="eager"
    ).eval()
    config = load_config(CONFIGS / "smollm_emoji.py")
    config = dataclasses.replace(config, vae=tiny.CONFIG.vae)  # of no concern to text
    return theirs, config, build_mogao(smollm, config, jax.random.key(0)), BpeTokenizer(smollm)


@pytest.mark.slow
@pytest.mark.parametrize("prompt", PROMPTS)
def test_smollm(prompt, both, measured):
    theirs, config, params, tokenizer = both
    ids, text, allowed = generate(config, params, tokenizer, Document([Text(prompt)]), NUM_TOKENS)
    ends = [tokenizer.im_end, tokenizer.endoftext]
    wanted = their_ids(theirs, tokenizer.encode(prompt), allowed, ends, NUM_TOKENS)
    measured(AGAINST, f"SmolLM2-135M, {NUM_TOKENS} tokens", f"tokens that differ: {prompt!r}",
             differing(ids, wanted), 0)  # fmt: skip
    assert tokenizer.decode(wanted) == text
    if prompt == PROMPTS[0]:
        assert text.strip().startswith("Paris")
