"""Model FLOPs: against the matmuls that JAX traces in the model, and by hand."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_system as tiny

from mogao_jax.models.mogao import example_inputs
from mogao_jax.models.vit import VisionTower
from mogao_jax.sequence.masking import can_attend
from mogao_jax.tools import flops
from mogao_jax.training.step import without_gradients


def dot_flops(jaxpr) -> float:
    """2 m n k of every dot_general, those of inner functions too (no loops in here)."""
    total = 0.0
    for equation in jaxpr.eqns:
        assert equation.primitive.name not in ("while", "scan")
        if equation.primitive.name == "dot_general":
            (contract, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            out = equation.outvars[0].aval.shape
            total += 2.0 * math.prod(out) * math.prod(left[i] for i in contract)
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    total += dot_flops(getattr(inner, "jaxpr", inner))
    return total


@pytest.mark.parametrize("fusion", ["deep", "shared"])
def test_model_flops_are_three_times_the_matmuls_of_a_forward_pass(fusion):
    attention = tiny.AttentionConfig(implementation="dense")
    config = tiny.config(model={"attention": attention, "fusion": fusion, "tie_embeddings": False})
    modules = tiny.load_modules(config)
    rows, und, clean, noised, images, patches = 2, 24, 8, 12, 3, 16
    inputs = example_inputs(modules.model, (rows, und, clean, noised, images), patches)
    # As if every place held a real token, and everything attended everywhere (as dense does).
    work = flops.TokenCounts(
        und=rows * und,
        clean=rows * clean,
        noised=rows * noised,
        trained_text=rows * und,
        vit_tokens=rows * patches / 4,
        images=rows * (images + 1),
        pairs=rows * (und + clean + noised) ** 2,
        pairs_executed=0,
        fill_und=1,
        fill_gen=1,
    )
    counted = flops.model_flops(config, tiny.TOKENIZER.vocab_size, work)
    params = jax.eval_shape(lambda: modules.model.init(jax.random.key(0), inputs))
    jaxpr = jax.make_jaxpr(modules.model.apply)(params, inputs)
    head = counted.pop("language head")
    assert head == 6 * tiny.TOKENIZER.vocab_size * 32 * rows * und
    assert flops.total(counted) == 3 * dot_flops(jaxpr.jaxpr)


def test_frozen_weights_have_no_gradients_to_pay_for():
    """Against the matmuls that JAX traces in a backward pass, with and without frozen weights."""
    attention = tiny.AttentionConfig(implementation="dense")
    found = {}
    for frozen in ("nothing", "llm"):
        config = tiny.config(
            model={"attention": attention, "tie_embeddings": False}, optimizer={"frozen": frozen}
        )
        modules = tiny.load_modules(config)
        und = 24
        inputs = example_inputs(modules.model, (2, und, 8, 12, 3), 16)

        def loss(params, inputs, modules=modules, config=config):
            params = {"params": without_gradients(params["params"], config.optimizer)}
            out = modules.model.apply(params, inputs)
            logits = out.und_hidden @ params["params"]["lm_head"].T
            return out.velocity.sum() + logits.sum()

        params = nn.unbox(jax.eval_shape(modules.model.init, jax.random.key(0), inputs))
        traced = jax.make_jaxpr(jax.grad(loss))(params, inputs)
        work = flops.TokenCounts(
            2 * und, 2 * 8, 2 * 12, 2 * und, 8, 8, 2 * (und + 20) ** 2, 0, 1, 1
        )
        counted = flops.model_flops(config, tiny.TOKENIZER.vocab_size, work)
        found[frozen] = flops.total(counted), dot_flops(traced.jaxpr)
    useful, run = (found["nothing"][i] - found["llm"][i] for i in (0, 1))
    assert useful == run > 0.1 * found["nothing"][0]


def test_work_of_a_batch_counts_real_tokens_and_pairs():
    documents = [
        [tiny.interleaved_document(1), tiny.text_document("abc")],
        [tiny.interleaved_document(2, 1)],
    ]
    batch = tiny.rows(documents)
    stacked = jax.tree.map(lambda x: np.stack([x, x]), batch)  # two micro-steps
    work = flops.count_work(stacked, tiny.CONFIG)
    once = flops.count_work(batch, tiny.CONFIG)
    assert work.tokens == 2 * once.tokens and work.pairs == 2 * once.pairs
    assert work.fill_und == once.fill_und

    laid = [tiny.lay(d) for row in documents for d in row]
    assert once.und == sum(len(d.und.tokens) for d in laid)
    assert once.noised == sum(len(d.noised.image) for d in laid)
    assert once.clean == sum(len(d.clean.image) for d in laid)
    assert once.images == 3 + 2  # generated images, and t = 1 in each of two rows
    assert once.trained_text == sum((d.und.loss_weights > 0).sum() for d in laid)
    pairs = 0
    for d in laid:
        parts = (d.und.meta, d.clean.meta, d.noised.meta)
        every = jax.tree.map(lambda *x: np.concatenate(x), *parts)
        one = type(every)(np.ones_like(every.segment), every.order, every.kind)
        pairs += can_attend(one.take((slice(None), None)), one.take((None, slice(None)))).sum()
    assert once.pairs == pairs
    assert flops.mean_work([once, work]).und == 1.5 * once.und


def test_flops_by_hand():
    model = tiny.config(model={"num_layers": 3}).model
    assert flops.branch_weights(model) == 3 * (32 * 64 + 2 * 32 * 32 + 64 * 32 + 3 * 32 * 48)


def test_vit_flops_are_the_matmuls_of_the_tower():
    vit = tiny.CONFIG.vit
    assert flops.vit_flops(vit, np.zeros((2, 8), np.int32)) == 0
    # Dense layers alone: 8 patches of one image, less the pairs.
    segment = np.asarray([[1] * 8, [0] * 8])
    flops_of_dense = flops.vit_flops(vit, segment) - 4 * vit.depth * vit.embed_dim * 64
    arguments = (jnp.zeros((1, 8, 588), jnp.uint8), jnp.zeros((1, 8, 2), jnp.int32))
    tower = VisionTower(vit)
    shapes = jax.eval_shape(tower.init, jax.random.key(0), *arguments, jnp.ones((1, 8), jnp.int32))
    kernels = [x for x in jax.tree.leaves(shapes) if len(x.shape) == 2]
    assert flops_of_dense == 2 * 8 * sum(x.size for x in kernels)
    # Attention stays within an image.
    halves = np.asarray([[1] * 4 + [2] * 4])
    pairs = 4 * vit.depth * vit.embed_dim * 2 * 16
    assert flops.vit_flops(vit, halves) == flops_of_dense + pairs


def test_convolutions_are_counted_by_their_shapes():
    def f(x, kernel):
        return jax.jit(lambda x: jax.lax.conv_general_dilated(
            x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))(x)  # fmt: skip

    jaxpr = jax.make_jaxpr(f)(jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 5)))
    assert flops.convolution_flops(jaxpr.jaxpr) == 2 * (2 * 4 * 4 * 5) * (3 * 3 * 3)


def test_vae_flops_follow_real_pixels():
    modules, one = tiny.load_modules(), np.asarray([[48, 48]])
    pixels = jnp.zeros((1, 48, 48, 3))
    params = jax.eval_shape(modules.vae.init, jax.random.key(0), pixels, jnp.asarray(one))["params"]

    def count(size):
        return flops.vae_flops(modules.vae, params, tiny.CONFIG.vae, size, (48, 48, 3))

    # The first convolution alone: 3x3, 3 to 4 channels, at every pixel.
    assert count(one) > 2 * 48 * 48 * 27 * 4
    assert count(np.concatenate([one, one, 0 * one])) == pytest.approx(2 * count(one), rel=1e-12)
    assert 0 < count(np.asarray([[16, 16]])) < count(one) / 9 + 1
