"""Mogao: one deep-fusion transformer over text, ViT tokens and VAE tokens (paper, section 3.1).

A pure function of (params, inputs): noise and timesteps are drawn by the caller.

Axes: B batch, U und tokens, C clean and N noised VAE tokens, I images, V merged ViT tokens,
D embed, L vocab.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mogao_jax.config.geometry import LATENT_PATCH
from mogao_jax.config.schema import AttentionConfig, ModelConfig, VaeConfig, VitConfig
from mogao_jax.flow import linear_velocity
from mogao_jax.models import cache as caches
from mogao_jax.models.block import Attend, Block, Rotations, Streams, rematerialised
from mogao_jax.models.layers import (
    Linear,
    TimestepEmbedder,
    VelocityHead,
    VitMerger,
    dtypes,
    norm,
    zeros,
)
from mogao_jax.ops.attention.api import attention
from mogao_jax.ops.attention.parts import Parts, readable_parts
from mogao_jax.ops.embedding import embed_tokens
from mogao_jax.ops.norms import per_token
from mogao_jax.ops.rope import rope_angles
from mogao_jax.sequence.batch import PackedBatch
from mogao_jax.sequence.masking import TokenMeta
from mogao_jax.sharding.ambient import LENGTH_AXES
from mogao_jax.sharding.context import join_gen, split_gen
from mogao_jax.sharding.rules import all_gather, constrain

# With a cache, scores of up to this many bytes are held whole, since few queries make poor tiles.
DENSE_BYTES = 64 * 2**20


class MogaoInputs(NamedTuple):
    """The transformer's inputs: a PackedBatch whose images have been encoded and noised."""

    tokens: jax.Array  # int32[B, U]
    vit_index: jax.Array  # int32[B, U] row of vit_features' merged tokens, -1 for text
    vit_features: jax.Array  # [B, V * merge^2, C_vit], or [B, V, C] after the tower's own merger
    clean_latents: jax.Array  # [B, C, 64]
    noised_latents: jax.Array  # [B, N, 64] x_t
    timesteps: jax.Array  # float32[B, I] of each noised copy of an image; t=1 is data
    noised_index: jax.Array  # int32[B, N] which of them a noised token belongs to, -1 padding
    meta: Parts  # TokenMeta of und, clean, noised
    positions: Parts  # float32[B, ., 3] of und, clean, noised


class MogaoOutputs(NamedTuple):
    und_hidden: jax.Array  # [B, U, D] after the final norm; `head_table` gives its logits
    velocity: jax.Array  # float32[B, N, 64]
    cache: Parts | None = None  # with new tokens written, where a cache was given and they were


def make_inputs(batch: PackedBatch, **encoded: Any) -> MogaoInputs:
    """Joins a batch's token tables with its encoded images, all other fields of MogaoInputs."""
    parts = (batch.und, batch.clean, batch.noised)
    return MogaoInputs(
        tokens=batch.und.tokens,
        vit_index=batch.und.vit_index,
        meta=Parts(*(p.meta for p in parts)),
        positions=Parts(*(p.positions for p in parts)),
        **encoded,
    )


class Mogao(nn.Module):
    """The whole trainable model."""

    config: ModelConfig
    vae: VaeConfig
    vit: VitConfig
    vocab_size: int  # rows of the embedding
    text_reads_vae: bool = False  # VAE-only understanding (ablations A, B)

    def setup(self):
        c, kwargs = self.config, {"use_bias": True, **dtypes(self.config)}
        channels = self.vae.latent_channels * LATENT_PATCH**2
        self.token_embedding = self._table("token_embedding", c.embedding_init)
        if c.connector == "merger":
            self.vit_merger = VitMerger(c, self.vit.merge_size)
        else:
            shape = (self.vit.merger_dim, c.embed_dim)
            self.vit_linear = Linear(shape, (None, "embed"), **kwargs)
        self.latent_in = Linear((channels, c.embed_dim), (None, "embed"), **kwargs)
        self.timestep_embedder = TimestepEmbedder(c)
        attend = functools.partial(_attend, config=c.attention, text_reads_vae=self.text_reads_vae)
        block = rematerialised(Block, c.remat, in_scan=c.scan_layers)
        if c.scan_layers:
            self.layers = nn.scan(
                _ScanBlock,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(*(nn.broadcast,) * 4, 0, nn.broadcast),
                length=c.num_layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )(block, c, attend)
        else:
            self.layers = [block(c, attend) for _ in range(c.num_layers)]
        self.final_norm = norm(c)
        if not c.tie_embeddings:
            self.lm_head = self._table("lm_head", 0.02)
        shape = (c.embed_dim, 2 * c.embed_dim)
        self.final_adaln = Linear(shape, ("embed", None), kernel_init=zeros, **kwargs)
        self.velocity_head = VelocityHead(c, channels)

    @nn.nowrap
    def _table(self, name: str, stddev: float) -> jax.Array:
        """A parameter [L, D] with a row per vocabulary entry."""
        init = nn.with_logical_partitioning(nn.initializers.normal(stddev), ("vocab", "embed"))
        shape = (self.vocab_size, self.config.embed_dim)
        return self.param(name, init, shape, jnp.dtype(self.config.param_dtype))

    def __call__(
        self, inputs: MogaoInputs, cache: Parts | None = None, destination: Parts | None = None
    ) -> MogaoOutputs:
        """Runs the model on whole rows, or on tokens that continue what a cache holds.

        Args:
          inputs: the tokens to compute; any part of them may be of length zero.
          cache: `Parts(und=PartCache, clean=PartCache)` (models/cache.py); None for a part that
            is empty or that nothing in `inputs` reads.
          destination: int32[B, U] and int32[B, C], the places of the cache that new und and
            clean tokens are written to (out of range: padding, not written); None for a part
            that has no new tokens.
        """
        c = self.config
        streams = self._embed(inputs)
        conditioning = self._conditioning(inputs.timesteps)
        # Entry 0 of the conditioning is t=1: clean tokens are data. Padding goes there too.
        clean_index = jnp.zeros(inputs.clean_latents.shape[:2], jnp.int32)
        index = join_gen(clean_index, inputs.noised_index + 1)
        angles = functools.partial(
            rope_angles, head_dim=c.head_dim, theta=c.rope_theta, kind=c.rope, tail=c.rope_tail
        )
        positions = inputs.positions
        gen_positions = join_gen(positions.clean, positions.noised)
        rotations = Rotations(und=angles(positions.und), gen=angles(gen_positions))
        places = None
        if cache is not None:
            places = caches.make_places(cache, inputs.meta, destination or Parts())
        arguments = (conditioning, index, rotations, inputs.meta)
        streams, layers = self._run_layers(streams, arguments, cache, places)
        new_cache = None
        if cache is not None and destination is not None and places is not None:
            new_cache = caches.join(cache, layers, places.meta)
        velocity = inputs.noised_latents
        if velocity.shape[1]:
            velocity = self._velocity(inputs, streams.gen, conditioning, index)
        und_hidden = constrain(self.final_norm(streams.und), "act_batch", "act_len", "act_embed")
        return MogaoOutputs(und_hidden, velocity.astype(jnp.float32), new_cache)

    def _run_layers(
        self, streams: Streams, arguments: tuple, cache: Parts | None, places: caches.Places | None
    ) -> tuple[Streams, Any]:
        """The streams after all layers, and the layers' caches (`caches.join`)."""

        def of_layer(index: int | None) -> caches.LayerCache | None:
            return None if cache is None else caches.layer(cache, index)

        if self.config.scan_layers:
            return self.layers(streams, *arguments, of_layer(None), places)
        kept = []
        for i, layer in enumerate(self.layers):
            streams, of_this = layer(streams, *arguments, of_layer(i), places)
            kept.append(of_this)
        return streams, kept

    def _velocity(
        self, inputs: MogaoInputs, gen: jax.Array, conditioning: jax.Array, index: jax.Array
    ) -> jax.Array:
        """float32[B, N, 64] from gen[B, C + N, D] and the conditioning's entry of each token."""
        _, noised_index = split_gen(index, inputs.clean_latents.shape[1])
        modulation = per_token(self.final_adaln(conditioning), noised_index)
        _, noised = split_gen(gen, inputs.clean_latents.shape[1])
        velocity = self.velocity_head(noised, modulation).astype(jnp.float32)
        if self.config.velocity_head == "direct":
            return velocity
        t = jnp.take_along_axis(inputs.timesteps, jnp.maximum(inputs.noised_index, 0), 1)
        guess, spread = linear_velocity(inputs.noised_latents.astype(jnp.float32), t)
        return guess + spread * velocity

    def _embed(self, inputs: MogaoInputs) -> Streams:
        dtype = jnp.dtype(self.config.dtype)
        und = embed_tokens(self.token_embedding, inputs.tokens, dtype)
        features = constrain(inputs.vit_features.astype(dtype), "act_batch", "act_len", None)
        if features.shape[1]:
            is_merger = self.config.connector == "merger"
            vit = self.vit_merger(features) if is_merger else self.vit_linear(features)
            # Where tokens are sharded, a device's tokens may stand for any of the row's patches.
            vit = all_gather(vit, "act_batch", "act_len", None, over=LENGTH_AXES)
            is_vit = inputs.vit_index >= 0
            picked = jnp.take_along_axis(vit, jnp.where(is_vit, inputs.vit_index, 0)[..., None], 1)
            und = jnp.where(is_vit[..., None], picked, und)
        latents = join_gen(inputs.clean_latents, inputs.noised_latents)
        if latents.shape[1]:
            gen = self.latent_in(latents.astype(dtype))
        else:
            gen = jnp.zeros((latents.shape[0], 0, self.config.embed_dim), dtype)
        axes = ("act_batch", "act_len", "act_embed")
        return Streams(constrain(und, *axes), constrain(gen, *axes))

    def _conditioning(self, timesteps: jax.Array) -> jax.Array:
        """[B, 1 + I, D]: SiLU of the timestep embedding; entry 0 is t=1, then one per image."""
        ones = jnp.ones((timesteps.shape[0], 1), timesteps.dtype)
        return nn.silu(self.timestep_embedder(jnp.concatenate([ones, timesteps], 1)))


class _ScanBlock(nn.Module):
    """A block in the form that nn.scan wants: (streams, ...) -> (streams, this layer's cache)."""

    block: type[Block]
    config: ModelConfig
    attend: Attend

    @nn.compact
    def __call__(self, streams, *arguments):
        return self.block(self.config, self.attend, name="block")(streams, *arguments)


def _attend(
    queries: Parts,
    keys: Parts,
    values: Parts,
    query_meta: Parts,
    key_meta: Parts | None,
    *,
    config: AttentionConfig,
    text_reads_vae: bool,
) -> Parts:
    """Attention of a layer's new tokens; `key_meta` is None without a cache (`block.Attend`)."""
    if key_meta is None:
        key_meta = query_meta
    else:  # a cache: few queries, many keys, and parts that none of these queries reads
        reads = readable_parts(text_reads_vae)
        needed = {k for i, q in enumerate(queries) if q is not None for k in reads[i]}
        keys, values, key_meta = (
            Parts(*(x if i in needed else None for i, x in enumerate(parts)))
            for parts in (keys, values, key_meta)
        )
        if _score_bytes(queries, keys) <= DENSE_BYTES:
            config = dataclasses.replace(config, implementation="dense")
    return attention(
        queries, keys, values, query_meta, key_meta, config, text_reads_vae=text_reads_vae
    )


def _score_bytes(queries: Parts, keys: Parts) -> int:
    """Bytes of float32 scores between all queries and all keys."""
    present = [q.shape for q in queries if q is not None]
    num_queries = sum(batch * length * heads for batch, length, heads, _ in present)
    return 4 * num_queries * sum(k.shape[1] for k in keys if k is not None)


def head_table(params: dict[str, Any]) -> jax.Array:
    """The output embedding [L, D]: logits are `und_hidden @ table.T`."""
    return params["lm_head"] if "lm_head" in params else params["token_embedding"]


def vit_feature_shape(vit: VitConfig, connector: str, num_patches: int) -> tuple[int, int]:
    """(tokens, channels) of the ViT features that the connector expects for a row of patches."""
    if connector == "vit_merger":
        return num_patches // vit.merge_size**2, vit.merger_dim
    return num_patches, vit.embed_dim


def example_inputs(
    model: Mogao, sizes: tuple[int, int, int, int, int], num_patches: int | None = None
) -> MogaoInputs:
    """Zero inputs of the given sizes, for `init` and `eval_shape`.

    Args:
      sizes: (B, U, C, N, I) rows, und, clean, noised, images.
      num_patches: of the ViT per row; default: those of one merged token.
    """
    b, u, c, n, i = sizes
    channels = model.vae.latent_channels * LATENT_PATCH**2
    if num_patches is None:
        num_patches = model.vit.merge_size**2
    features = vit_feature_shape(model.vit, model.config.connector, num_patches)
    index = {length: jnp.zeros((b, length), jnp.int32) for length in (u, c, n)}
    return MogaoInputs(
        tokens=index[u],
        vit_index=index[u] - 1,
        vit_features=jnp.zeros((b, *features), jnp.float32),
        clean_latents=jnp.zeros((b, c, channels), jnp.float32),
        noised_latents=jnp.zeros((b, n, channels), jnp.float32),
        timesteps=jnp.zeros((b, i), jnp.float32),
        noised_index=index[n] - 1,
        meta=Parts(*(TokenMeta(index[x], index[x], index[x]) for x in (u, c, n))),
        positions=Parts(*(jnp.zeros((b, x, 3), jnp.float32) for x in (u, c, n))),
    )
