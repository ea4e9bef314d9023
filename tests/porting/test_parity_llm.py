"""The und branch is Qwen2: logits and gradients against transformers' Qwen2ForCausalLM.

Needs torch and transformers. MOGAO_FULL_SIZE=1 adds the shape of Qwen2.5-0.5B (6 GB of memory).
"""

from __future__ import annotations

import dataclasses
import os

import jax
import jax.numpy as jnp
import llm_reference as reference
import numpy as np
import pytest
import tiny_system as tiny
from flax import traverse_util

from mogao_jax.config.schema import AttentionConfig, ModelConfig
from mogao_jax.models.mogao import head_table
from mogao_jax.porting.from_hf import build_mogao, load_llm

SHAPES = {
    "grouped heads": ModelConfig(num_layers=2, embed_dim=64, mlp_dim=96, num_heads=4,
                                 num_kv_heads=2, head_dim=16, vocab_size=97),
    "one key, 3 layers": ModelConfig(num_layers=3, embed_dim=48, mlp_dim=80, num_heads=2,
                                     num_kv_heads=1, head_dim=24, vocab_size=64, rope_theta=1e4),
    "plain heads": ModelConfig(num_layers=2, embed_dim=24, mlp_dim=40, num_heads=3,
                               num_kv_heads=3, head_dim=8, vocab_size=151, rms_norm_eps=1e-5,
                               scan_layers=True),
}  # fmt: skip
SMALL = {"timestep_embed_dim": 16, "attention": AttentionConfig(block_q=16, block_kv=16)}
AGAINST = "transformers' Qwen2ForCausalLM"


@pytest.fixture(autouse=True, scope="module")
def light_compiler():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def documents(vocab: int):
    rng = np.random.default_rng(0)
    return [rng.integers(0, vocab, n) for n in (21, 9)]


def their_logits(theirs, texts):
    """Each document alone; ours stand packed in one row."""
    import torch

    return torch.cat([theirs(torch.tensor(t)[None]).logits[0].float() for t in texts])


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", SHAPES)
def test_logits_and_gradients(name, tied, measured):
    torch = pytest.importorskip("torch")
    model = dataclasses.replace(SHAPES[name], tie_embeddings=tied, **SMALL)
    config = reference.config_of(model)
    theirs = reference.make_reference(model)
    texts = documents(model.vocab_size)
    targets = np.random.default_rng(1).integers(0, model.vocab_size, 30)
    wanted = their_logits(theirs, texts)
    torch.nn.functional.cross_entropy(wanted, torch.tensor(targets)).backward()
    wanted = wanted.detach().numpy()

    params = build_mogao(reference.tensors(theirs), config, jax.random.key(0))
    inputs = reference.text_inputs(texts, model)

    def loss(params):
        logits = reference.logits_of(config, params, inputs)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[:, None], 1)
        return -chosen.mean(), logits

    (_, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    size = f"tiny, {name}, {'tied' if tied else 'untied'}"
    measured(AGAINST, size, "logits", reference.relative(logits, wanted), 1e-5)

    flat = traverse_util.flatten_dict(gradients, sep=".")
    theirs_flat = traverse_util.flatten_dict(
        load_llm(reference.tensors(theirs, gradients=True), config), sep="."
    )
    assert ("lm_head" in theirs_flat) != tied and len(theirs_flat) > 10
    worst = max(reference.relative(flat[k], theirs_flat[k]) for k in theirs_flat)
    measured(AGAINST, size, "gradients, worst tensor", worst, 1e-4)
    # Text alone: no other parameter has any part in it.
    assert not any(np.asarray(v).any() for k, v in flat.items() if k not in theirs_flat)

    # The comparison can fail: positions that do not begin anew change the second document.
    moved = inputs._replace(positions=inputs.positions._replace(und=inputs.positions.und * 1.5))
    other = reference.logits_of(config, params, moved)
    assert reference.relative(other, wanted) > 1e-3


def test_bfloat16_beside_the_references_own(measured):
    """Both computed in bfloat16, both compared with the reference in float32."""
    torch = pytest.importorskip("torch")
    model = dataclasses.replace(SHAPES["grouped heads"], **SMALL)
    theirs = reference.make_reference(model)
    texts = documents(model.vocab_size)
    with torch.no_grad():
        wanted = their_logits(theirs, texts).numpy()
        config = reference.config_of(dataclasses.replace(model, dtype="bfloat16"))
        params = build_mogao(reference.tensors(theirs), config, jax.random.key(0))
        rough = their_logits(theirs.to(torch.bfloat16), texts).numpy()
    ours = reference.logits_of(config, params, reference.text_inputs(texts, model))
    theirs_error, ours_error = (reference.relative(x, wanted) for x in (rough, ours))
    measured(AGAINST, "tiny, bfloat16", "logits, the reference's own", theirs_error)
    measured(AGAINST, "tiny, bfloat16", "logits, ours", ours_error, 2 * theirs_error)


@pytest.mark.parametrize("order", ["text", "text, image", "text, image, text, image"])
def test_text_through_the_whole_model_at_its_start_is_the_llm(order, measured):
    """Images after a text change nothing for it, and the gen branch is a copy beside it."""
    torch = pytest.importorskip("torch")
    vocab = tiny.TOKENIZER.vocab_size
    sizes = {"num_heads": 4, "head_dim": 8, "vocab_size": vocab}
    config = tiny.config(model=sizes)
    theirs = reference.make_reference(config.model)
    params = build_mogao(reference.tensors(theirs), config, jax.random.key(0))
    jax.tree.map(
        np.testing.assert_array_equal, params["layers_1"]["und"], params["layers_1"]["gen"]
    )
    rng = np.random.default_rng(0)
    items = [tiny.Text("hello, what is this") if part == "text" else tiny.image(rng)
             for part in order.split(", ")]  # fmt: skip
    batch = tiny.rows([[tiny.Document(items)]], config)
    modules = tiny.load_modules(config)
    inputs, _ = tiny.inputs(batch, modules)
    out = jax.jit(modules.model.apply)({"params": params}, inputs)
    before = len("hello, what is this") + ("image" in order)  # and <|vision_start|>
    tokens = np.asarray(batch.und.tokens[0, :before])
    assert (tokens[-1] == tiny.TOKENIZER.vision_start) == ("image" in order)
    assert bool((np.asarray(batch.noised.image) >= 0).any()) == ("image" in order)
    with torch.no_grad():
        wanted = theirs(torch.tensor(tokens.astype(np.int64))[None]).logits[0].numpy()
    logits = np.asarray(out.und_hidden[0, :before] @ head_table(params).T)
    measured(AGAINST, "tiny, the whole model", f"logits of the first text of: {order}",
             reference.relative(logits, wanted), 1e-5)  # fmt: skip
    assert not np.asarray(out.velocity).any()


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("MOGAO_FULL_SIZE"), reason="full size: MOGAO_FULL_SIZE=1")
def test_the_shape_of_half_a_billion(measured):
    """Qwen2.5-0.5B's, with random weights: logits in float32, and both in bfloat16."""
    torch = pytest.importorskip("torch")
    model = ModelConfig(
        num_layers=24, embed_dim=896, mlp_dim=4864, num_heads=14, num_kv_heads=2, head_dim=64,
        vocab_size=151_936, scan_layers=True,
    )  # fmt: skip
    config = reference.config_of(model)
    theirs = reference.make_reference(model, randomise=False)
    texts = [np.random.default_rng(0).integers(0, 151_643, n) for n in (40, 24)]
    inputs = reference.text_inputs(texts, model)
    with torch.no_grad():
        wanted = their_logits(theirs, texts).numpy()
    params = load_llm(reference.tensors(theirs), config)
    d = model.embed_dim  # runs without images too, and has no weight from the LLM
    params["timestep_embedder"] = {
        "in": {"kernel": jnp.zeros((model.timestep_embed_dim, d)), "bias": jnp.zeros(d)},
        "out": {"kernel": jnp.zeros((d, d)), "bias": jnp.zeros(d)},
    }
    logits = jax.jit(lambda p: reference.logits_of(config, p, inputs))(params)
    size = "Qwen2.5-0.5B's shape"
    measured(AGAINST, size, "logits", reference.relative(logits, wanted), 1e-5)

    config = reference.config_of(dataclasses.replace(model, dtype="bfloat16"))
    ours = jax.jit(lambda p: reference.logits_of(config, p, inputs))(params)
    with torch.no_grad():
        rough = their_logits(theirs.to(torch.bfloat16), texts).numpy()
    theirs_error, ours_error = (reference.relative(x, wanted) for x in (rough, ours))
    measured(AGAINST, f"{size}, bfloat16", "logits, the reference's own", theirs_error)
    measured(AGAINST, f"{size}, bfloat16", "logits, ours", ours_error, 2 * theirs_error)
