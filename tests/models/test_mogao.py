"""The transformer: AdaLN-Zero, the 7B's parameter count, separate streams, text = a plain LLM."""

from __future__ import annotations

import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_system as tiny

from mogao_jax.config.files import load_config
from mogao_jax.config.schema import ModelConfig
from mogao_jax.models.block import Block, Rotations, Streams
from mogao_jax.models.modules import count_parameters, init_params, make_model
from mogao_jax.ops.attention.parts import Parts

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"


def test_gen_blocks_are_identities_at_initialisation():
    """AdaLN-Zero: whatever the gen stream holds passes a fresh block unchanged."""
    config = ModelConfig(embed_dim=16, mlp_dim=24, num_heads=2, num_kv_heads=1, head_dim=8)
    block = Block(config, attend=lambda q, *_: q)
    rng = np.random.default_rng(0)
    gen = jnp.asarray(rng.normal(size=(1, 5, 16)), jnp.float32)
    und = jnp.asarray(rng.normal(size=(1, 3, 16)), jnp.float32)
    conditioning = jnp.asarray(rng.normal(size=(1, 3, 16)), jnp.float32)
    rotation = (jnp.ones((1, 1, 4)), jnp.zeros((1, 1, 4)))
    meta = Parts(*(_meta(n) for n in (3, 2, 3)))
    index = jnp.array([[0, 0, 1, 1, 2]])
    arguments = (Streams(und, gen), conditioning, index, Rotations(rotation, rotation), meta)
    params = nn.unbox(block.init(jax.random.key(0), *arguments))
    out, _ = block.apply(params, *arguments)
    np.testing.assert_array_equal(out.gen, gen)
    assert np.abs(out.und - und).max() > 0.1
    moved = jax.tree.map(lambda x: x + 0.1, params)
    assert np.abs(block.apply(moved, *arguments)[0].gen - gen).max() > 0.1


def _meta(n: int):
    from mogao_jax.sequence.masking import TokenMeta

    return TokenMeta(*(jnp.ones((1, n), jnp.int32),) * 3)


def test_velocity_is_zero_at_initialisation():
    modules = tiny.load_modules()
    batch = tiny.rows([[tiny.interleaved_document(0)]])
    inputs, _ = tiny.inputs(batch, modules)
    params = tiny.initial_params(modules)
    out = modules.model.apply({"params": params}, inputs)
    assert not np.asarray(out.velocity).any()


def test_7b_has_the_papers_parameters():
    """Qwen2.5-3B doubled, with one AdaLN layer per block: 6,767,120,384."""
    config = load_config(CONFIGS / "mogao_7b.py")
    model = make_model(config, vocab_size=151_665)
    shapes = jax.eval_shape(lambda: init_params(config, model, jax.random.key(0)))
    counts = count_parameters(shapes)
    parts = ("embedding", "und branch", "gen branch", "AdaLN")
    core = sum(counts[part] for part in parts)
    assert core == 6_767_120_384
    # By hand, from Qwen2.5-3B's config: per layer q, k, v with biases, o, three FFN matrices,
    # two norms.
    d, f, heads, kv, h, layers = 2048, 11008, 16, 2, 128, 36
    layer = d * heads * h + heads * h + 2 * (d * kv * h + kv * h) + heads * h * d
    layer += 3 * d * f + 2 * d
    assert counts["und branch"] == counts["gen branch"] == layers * layer
    assert counts["AdaLN"] == layers * (d * 6 * d + 6 * d)
    assert counts["embedding"] == 151_936 * d
    rest = {k: v for k, v in counts.items() if k not in parts}
    assert rest == {
        "vit_merger": 2 * 1280 + 5120 * 5120 + 5120 + 5120 * d + d,
        "latent_in": 64 * d + d,
        "timestep_embedder": 256 * d + d + d * d + d,
        "final_adaln": d * 2 * d + 2 * d,
        "final_norm": d,
        "velocity_head": d + d * 64 + 64,
    }


def test_text_alone_ignores_the_gen_branch():
    """A text-only prompt is computed by the und branch alone: the pretrained LLM, untouched."""
    modules = tiny.load_modules()
    batch = tiny.rows([[tiny.text_document("hello")]])
    inputs, _ = tiny.inputs(batch, modules)
    params = tiny.make_params(modules)
    other = dict(params)
    for name in ("layers_0", "layers_1"):
        other[name] = params[name] | {
            part: jax.tree.map(lambda x: x * 3 + 1, params[name][part]) for part in ("gen", "adaln")
        }
    run = jax.jit(lambda p: modules.model.apply({"params": p}, inputs).und_hidden)
    np.testing.assert_array_equal(run(params), run(other))


@pytest.mark.parametrize("fusion", ["deep", "shared"])
def test_fusion_modes_have_one_or_two_sets_of_weights(fusion):
    cfg = tiny.config(model={"fusion": fusion})
    counts = count_parameters(tiny.initial_params(tiny.load_modules(cfg)))
    assert ("gen branch" in counts) == (fusion == "deep")


def test_scanned_layers_compute_what_unrolled_ones_do():
    plain, scanned = (
        tiny.load_modules(),
        tiny.load_modules(tiny.config(model={"scan_layers": True})),
    )
    params = tiny.make_params(plain)
    layers = [params[f"layers_{i}"] for i in range(2)]
    stacked = {k: v for k, v in params.items() if not k.startswith("layers_")}
    stacked["layers"] = {"block": jax.tree.map(lambda *x: jnp.stack(x), *layers)}
    inputs, _ = tiny.inputs(tiny.rows([[tiny.interleaved_document(1)]]), plain)
    a = jax.jit(lambda: plain.model.apply({"params": params}, inputs))()
    b = jax.jit(lambda: scanned.model.apply({"params": stacked}, inputs))()
    assert tiny.relative_error(b, a) < 1e-5


def test_connector_after_the_towers_own_merger():
    """[choice] The other side: Qwen2-VL's frozen merger, then a trainable linear layer."""
    cfg = tiny.config(model={"connector": "vit_merger"}, vit={"merger_dim": 24})
    model = tiny.load_modules(cfg).model
    inputs, _ = tiny.inputs(tiny.rows([[tiny.interleaved_document(1)]]), tiny.load_modules())
    rows, patches = inputs.vit_features.shape[:2]
    merged = jax.random.normal(jax.random.key(0), (rows, patches // 4, 24))
    inputs = inputs._replace(vit_features=merged)
    params = nn.unbox(jax.jit(model.init)(jax.random.key(1), inputs)["params"])
    assert params["vit_linear"]["kernel"].shape == (24, cfg.model.embed_dim)
    assert "vit_merger" not in params
    run = jax.jit(lambda i: model.apply({"params": params}, i).und_hidden)
    other = inputs._replace(vit_features=-merged)
    assert (np.asarray(run(inputs)) != np.asarray(run(other))).any()
