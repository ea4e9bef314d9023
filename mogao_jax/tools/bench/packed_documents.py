"""What training steps are compared on: packed interleaved documents, and a small transformer.

Encoders, the language head and the losses are left out: every implementation has its own. What
differs is how two streams are computed, and a mask that is neither causal nor full. A "step" is
the transformer's forward and backward pass, in float32.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mogao_jax.config.geometry import LATENT_PATCH
from mogao_jax.config.schema import (
    AttentionConfig,
    ImageConfig,
    LayoutConfig,
    MeshConfig,
    ModelConfig,
    MogaoConfig,
    VaeConfig,
    VitConfig,
)
from mogao_jax.models.modules import init_params, make_model
from mogao_jax.models.mogao import make_inputs, vit_feature_shape
from mogao_jax.sequence.batch import PackedBatch, Sizes, sizes
from mogao_jax.sequence.document import Document, Image, Item, Text
from mogao_jax.sequence.layout import lay_out
from mogao_jax.sequence.masking import TokenMeta, dense_mask
from mogao_jax.sequence.packing import pack_row, stack_rows
from mogao_jax.sharding import rules
from mogao_jax.sharding.mesh import batch_sharding, make_mesh, replicated
from mogao_jax.tokenizer import ByteTokenizer

SIDE = 128  # pixels of an image's side: 64 VAE tokens, and as many ViT tokens


@dataclasses.dataclass(frozen=True)
class Setting:
    """Sizes of a model that trains on a CPU."""

    layers: int = 6
    width: int = 256
    mlp: int = 768
    heads: int = 4
    kv_heads: int = 2
    documents: int = 6  # per row
    images: int = 2  # per document
    rows: int = 2

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    def config(self) -> MogaoConfig:
        return MogaoConfig(
            name="peers",
            images=ImageConfig(max_pixels=SIDE**2, max_side=SIDE, vit_resize="match_vae_grid"),
            layout=LayoutConfig(p_image_only=0.0, p_empty=0.0, end_after_image="never"),
            model=ModelConfig(
                num_layers=self.layers,
                embed_dim=self.width,
                mlp_dim=self.mlp,
                num_heads=self.heads,
                num_kv_heads=self.kv_heads,
                head_dim=self.head_dim,
                dtype="float32",
                attention=AttentionConfig(block_q=64, block_kv=64),
            ),
            vae=VaeConfig(block_channels=(4, 4, 8, 8), layers_per_block=1, norm_groups=2),
            vit=VitConfig(depth=1, embed_dim=32, num_heads=2, mlp_dim=32),
        )


# ---------------------------------------------------------------------------------- the documents


def make_batch(setting: Setting) -> PackedBatch:
    """Rows without padding: [text, image, text, image, ...] with texts of different lengths."""
    rng = np.random.default_rng(0)
    rows = []
    for row in range(setting.rows):
        # The lengths of the texts add up to the same in every row: rows have one shape.
        lengths = [20 + 11 * ((n + row) % setting.documents) for n in range(setting.documents)]
        rows.append([random_document(rng, [length] * setting.images) for length in lengths])
    return packed(setting, rows)


def random_document(rng: np.random.Generator, lengths: Iterable[int]) -> Document:
    """A text of each length (bytes), each followed by an image to be generated."""
    items: list[Item] = []
    for length in lengths:
        items.append(Text("".join(chr(97 + k) for k in rng.integers(0, 26, length))))
        items.append(Image(pixels=rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)))
    return Document(tuple(items), id="random")


def packed(setting: Setting, rows: Iterable[Iterable[Document]]) -> PackedBatch:
    """Rows exactly as large as their documents, whose sizes must add up to the same in each."""
    config, out = setting.config(), []
    for documents in rows:
        # The rng is of the guidance contexts: all are full.
        laid = [
            lay_out(d, tokenizer=ByteTokenizer(), config=config, rng=np.random.default_rng(0))
            for d in documents
        ]
        needed = Sizes(*np.sum([sizes(d) for d in laid], axis=0).tolist())
        out.append(pack_row(laid, needed, config.images.max_side))
    return stack_rows(out)


def num_tokens(batch: PackedBatch) -> int:
    """Tokens of all streams and rows; none is padding."""
    return sum(p.meta.segment.size for p in (batch.und, batch.clean, batch.noised))


class Sequence(NamedTuple):
    """One document of a row for packages that keep all tokens in one sequence."""

    is_gen: np.ndarray  # bool[L] VAE tokens, clean and noised
    mask: np.ndarray  # bool[L, L] who may attend to whom
    order: np.ndarray  # int[L] the place in the document, as a one-dimensional position


def sequences(batch: PackedBatch) -> list[list[Sequence]]:
    """Per row, every document's tokens in one sequence: und, clean, noised."""
    out = []
    for row in range(len(batch.und.tokens)):
        streams = batch.und, batch.clean, batch.noised
        parts = [TokenMeta(*(np.asarray(x)[row] for x in part.meta)) for part in streams]
        is_gen = np.concatenate([np.full(len(p.segment), i > 0) for i, p in enumerate(parts)])
        whole = TokenMeta(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
        documents = []
        for segment in np.unique(whole.segment[whole.segment > 0]):
            here = np.flatnonzero(whole.segment == segment)
            meta = whole.take(here)
            documents.append(Sequence(is_gen[here], dense_mask(meta, meta), meta.order))
        out.append(documents)
    return out


# --------------------------------------------------------------------------------------- our step


def make_step(setting: Setting, batch: PackedBatch) -> Callable[[], None]:
    """A call that computes the gradients of all parameters, a row per device, and waits for them.

    The transformer is as `mogao train` runs it on this machine.
    """
    config = setting.config()
    model = make_model(config, ByteTokenizer().vocab_size)
    mesh = make_mesh(MeshConfig(), jax.devices()[: min(setting.rows, len(jax.devices()))])
    rng = np.random.default_rng(1)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal((setting.rows, *shape), np.float32))

    channels = config.vae.latent_channels * LATENT_PATCH**2
    patches, copies = batch.vit.pixels.shape[1], batch.images.size.shape[1]
    inputs = make_inputs(
        batch,
        vit_features=normal(*vit_feature_shape(config.vit, config.model.connector, patches)),
        clean_latents=normal(batch.clean.image.shape[1], channels),
        noised_latents=normal(batch.noised.image.shape[1], channels),
        timesteps=jnp.asarray(rng.random((setting.rows, copies), np.float32)),
        noised_index=batch.noised.image,
    )
    inputs = jax.device_put(inputs, batch_sharding(mesh))
    init = jax.jit(functools.partial(init_params, config, model))
    params = jax.device_put(rules.unbox(init(jax.random.key(0))), replicated(mesh))

    def loss(params, inputs):
        out = model.apply({"params": params}, inputs)
        return jnp.mean(out.und_hidden**2) + jnp.mean(out.velocity**2)

    with rules.on_mesh(mesh):
        gradients = jax.jit(jax.grad(loss)).lower(params, inputs).compile()
    return lambda: jax.block_until_ready(gradients(params, inputs))
