"""A whole Mogao in miniature, with random encoders, for tests of the core."""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mogao_jax.config.schema import (
    AttentionConfig,
    DataConfig,
    ImageConfig,
    LayoutConfig,
    ModelConfig,
    MogaoConfig,
    PackingConfig,
    SourceConfig,
    VaeConfig,
    VitConfig,
)
from mogao_jax.models.modules import EncoderParams, Modules
from mogao_jax.models.mogao import Mogao, example_inputs
from mogao_jax.models.vae import FluxVae
from mogao_jax.models.vit import VisionTower
from mogao_jax.sequence.batch import PackedBatch, Sizes
from mogao_jax.sequence.document import Document, Image, Text
from mogao_jax.sequence.layout import lay_out
from mogao_jax.sequence.packing import pack_row, stack_rows
from mogao_jax.tokenizer import ByteTokenizer
from mogao_jax.training.step import draw_noise, model_inputs

TOKENIZER = ByteTokenizer()
BUDGETS = Sizes(und=112, clean=24, noised=32, images=8, vit_patches=96)
SIDE = 48

CONFIG = MogaoConfig(
    name="tiny",
    images=ImageConfig(max_pixels=32 * 48, max_side=SIDE, vit_resize="match_vae_grid"),
    layout=LayoutConfig(p_image_only=0.0, p_empty=0.0, end_after_image="never"),
    packing=PackingConfig(und_tokens=112, clean_tokens=24, noised_tokens=32, images=8,
                          vit_patches=96, pool=8),
    data=DataConfig(sources={"a": SourceConfig(), "b": SourceConfig()}),
    model=ModelConfig(num_layers=2, embed_dim=32, mlp_dim=48, num_heads=4, num_kv_heads=2,
                      head_dim=16, timestep_embed_dim=16, cross_entropy_chunk=40,
                      attention=AttentionConfig(block_q=16, block_kv=16)),
    vae=VaeConfig(block_channels=(4, 4, 8, 8), layers_per_block=1, norm_groups=2,
                  scaling_factor=1.0, shift_factor=0.0),
    vit=VitConfig(depth=1, embed_dim=16, num_heads=2, mlp_dim=32),
)  # fmt: skip


def config(**sections) -> MogaoConfig:
    """CONFIG with fields of its sections replaced: config(model={"num_layers": 1})."""
    changed = {
        name: dataclasses.replace(getattr(CONFIG, name), **fields)
        for name, fields in sections.items()
    }
    return dataclasses.replace(CONFIG, **changed)


@functools.cache
def _encoders() -> EncoderParams:
    pixels, size = jnp.zeros((1, SIDE, SIDE, 3)), jnp.full((1, 2), SIDE)
    vae = FluxVae(CONFIG.vae)
    vae_params = nn.unbox(jax.jit(vae.init)(jax.random.key(1), pixels, size)["params"])
    batch = jax.tree.map(jnp.asarray, rows([[text_document("a")]]))
    vit_params = nn.unbox(
        jax.jit(VisionTower(CONFIG.vit).init)(jax.random.key(2), *batch.vit[:3])["params"]
    )
    return EncoderParams(vae_params, vit_params)


def load_modules(cfg: MogaoConfig = CONFIG) -> Modules:
    uses_vit = cfg.layout.understanding_encoder == "vit"
    model = Mogao(cfg.model, cfg.vae, cfg.vit, TOKENIZER.vocab_size, not uses_vit)
    return Modules(
        cfg, model, FluxVae(cfg.vae), VisionTower(cfg.vit) if uses_vit else None, ("a", "b")
    )


def initial_params(modules: Modules):
    inputs = example_inputs(modules.model, (1, 8, 4, 4, 1))
    return nn.unbox(jax.jit(modules.model.init)(jax.random.key(0), inputs)["params"])


def make_params(modules: Modules, *, perturb: float = 0.05):
    """Parameters with everything moved off its initial value, so that no path is zero."""
    rng = np.random.default_rng(7)  # numpy's: jax would compile a program for every shape
    return jax.tree.map(
        lambda x: x + perturb * rng.standard_normal(x.shape, np.float32), initial_params(modules)
    )


def encoders() -> EncoderParams:
    return _encoders()


def image(rng: np.random.Generator, height: int = 32, width: int = 32) -> Image:
    return Image(pixels=rng.integers(0, 256, (height, width, 3), np.uint8))


def text_document(text: str, id: str = "text") -> Document:
    return Document([Text(text)], id=id)


def interleaved_document(seed: int, num_images: int = 2, id: str | None = None) -> Document:
    """Text, image, text, image, ..., text; images of different sizes."""
    rng = np.random.default_rng(seed)
    items: list = [Text("go" + "abcdefgh"[: 1 + seed % 5])]
    for i in range(num_images):
        items.append(image(rng, 16 * (1 + (seed + i) % 2), 16 * (1 + (seed + 2 * i) % 3)))
        items.append(Text("xyz"[: 1 + i % 3]))
    return Document(items, id=id or f"interleaved-{seed}")


def lay(document: Document, cfg: MogaoConfig = CONFIG, seed: int = 0, **kwargs) -> PackedBatch:
    return lay_out(document, tokenizer=TOKENIZER, config=cfg,
                   rng=np.random.default_rng(seed), **kwargs)  # fmt: skip


def rows(documents: list[list[Document]], cfg: MogaoConfig = CONFIG, **kwargs) -> PackedBatch:
    """A batch whose rows hold the given documents, in order."""
    return stack_rows(
        [pack_row([lay(d, cfg, **kwargs) for d in row], BUDGETS, cfg.images.max_side)
         for row in documents]
    )  # fmt: skip


@functools.cache
def _encode():
    """`model_inputs` of CONFIG's encoders, jitted once for all variants of the transformer."""
    all_modules = {vit: load_modules(config(layout={"understanding_encoder": vit}))
               for vit in ("vit", "vae")}  # fmt: skip
    params = encoders()

    def encode(which, batch, key):
        modules = all_modules[which]
        noise = draw_noise(key, batch.images, modules.config)
        return model_inputs(modules, params, batch, noise)

    return jax.jit(encode, static_argnums=0)


def inputs(batch: PackedBatch, modules: Modules, seed: int = 5):
    """(MogaoInputs, velocities to predict) of a batch under a fixed key."""
    which = modules.config.layout.understanding_encoder
    return _encode()(which, batch, jax.random.key(seed))


def relative_error(a, b) -> float:
    """||a - b|| / ||b|| over all leaves of two trees."""
    a, b = jax.tree.leaves(a), jax.tree.leaves(b)
    assert len(a) == len(b)
    difference = sum(
        float(np.sum((np.float64(x) - np.float64(y)) ** 2)) for x, y in zip(a, b, strict=True)
    )
    size = sum(float(np.sum(np.float64(y) ** 2)) for y in b)
    return float(np.sqrt(difference / size))
