"""One deep-fused decoder layer: joint attention, separate weights per branch (paper, section 3.1).

Axes: B batch, L length (U und tokens, G gen tokens: C clean, then N noised), D embed, F mlp, N
query heads, K key/value heads, H head_dim, I images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from mogao_jax.config.schema import ModelConfig
from mogao_jax.models.cache import LayerCache, Places, extend
from mogao_jax.models.layers import Linear, dtypes, norm, zeros
from mogao_jax.ops.attention.parts import Parts
from mogao_jax.ops.attention.tiles import ATTENTION_OUT
from mogao_jax.ops.norms import modulate, per_token
from mogao_jax.ops.rope import apply_rope
from mogao_jax.sharding.context import join_gen, split_gen
from mogao_jax.sharding.rules import constrain


class Modulation(NamedTuple):
    """AdaLN's six vectors for each token: [B, L, D] each."""

    attention_shift: jax.Array
    attention_scale: jax.Array
    attention_gate: jax.Array
    mlp_shift: jax.Array
    mlp_scale: jax.Array
    mlp_gate: jax.Array


class Streams(NamedTuple):
    """The two residual streams, und[B, U, D] and gen[B, C + N, D]."""

    und: jax.Array
    gen: jax.Array


class Rotations(NamedTuple):
    """cos and sin of the rotary angles, float32[B, L, H/2] each, per stream."""

    und: tuple[jax.Array, jax.Array]
    gen: tuple[jax.Array, jax.Array]


# (queries, keys, values, metadata of the queries, metadata of the keys) -> outputs, in parts.
# Without a cache keys are the queries' own tokens, and their metadata is None.
Attend = Callable[[Parts, Parts, Parts, Parts, Parts | None], Parts]
QKV = tuple[jax.Array | None, jax.Array | None, jax.Array | None]

_TOKENS = ("act_batch", "act_len")  # logical names of the axes that all activations have


class Branch(nn.Module):
    """The weights that one branch's tokens meet in a layer: projections, FFN and norms.

    The same shapes and equations as a Qwen2 layer; AdaLN, where there is any, comes from outside.
    """

    config: ModelConfig

    def setup(self):
        c = self.config
        d, f, h, kwargs = c.embed_dim, c.mlp_dim, c.head_dim, dtypes(c)
        query = (d, c.num_heads, h), ("embed", "q_heads", "head_dim")
        key_value = (d, c.num_kv_heads, h), ("embed", "kv_heads", "head_dim")
        self.attention_norm = norm(c)
        self.query = Linear(*query, num_out=2, use_bias=True, **kwargs)
        self.key = Linear(*key_value, num_out=2, use_bias=True, **kwargs)
        self.value = Linear(*key_value, num_out=2, use_bias=True, **kwargs)
        self.output = Linear((c.num_heads, h, d), ("q_heads", "head_dim", "embed"), **kwargs)
        self.mlp_norm = norm(c)
        self.gate = Linear((d, f), ("embed", "mlp"), **kwargs)
        self.up = Linear((d, f), ("embed", "mlp"), **kwargs)
        self.down = Linear((f, d), ("mlp", "embed"), **kwargs)

    def qkv(
        self, x: jax.Array, rotation: tuple[jax.Array, jax.Array], modulation: Modulation | None
    ) -> QKV:
        """x[B, L, D] -> q[B, L, N, H], k[B, L, K, H], v[B, L, K, H], q and k rotated."""
        if not x.shape[1]:
            return None, None, None
        h = self.attention_norm(x)
        if modulation is not None:
            h = modulate(h, modulation.attention_shift, modulation.attention_scale)
        q, k = apply_rope(self.query(h), *rotation), apply_rope(self.key(h), *rotation)
        q = constrain(q, *_TOKENS, "act_heads", None)
        k, v = (constrain(y, *_TOKENS, "act_kv_heads", None) for y in (k, self.value(h)))
        return projection(q), projection(k), projection(v)

    def finish(
        self, x: jax.Array, attended: jax.Array | None, modulation: Modulation | None
    ) -> jax.Array:
        """Adds attention's output [B, L, N, H] and the FFN to the residual stream [B, L, D]."""
        if attended is None:
            return x
        h = projection(constrain(self.output(attended), *_TOKENS, "act_embed"))
        x = x + (h if modulation is None else modulation.attention_gate * h)
        h = self.mlp_norm(x)
        if modulation is not None:
            h = modulate(h, modulation.mlp_shift, modulation.mlp_scale)
        gate, up = (constrain(y, *_TOKENS, "act_mlp") for y in (self.gate(h), self.up(h)))
        h = self.down(nn.silu(projection(gate)) * projection(up))
        h = constrain(h, *_TOKENS, "act_embed")
        h = projection(h) if modulation is not None else h  # its gate's gradient reads it
        return x + (h if modulation is None else modulation.mlp_gate * h)


class Block(nn.Module):
    """Both branches around one attention. `fusion='shared'`: one Branch serves both streams.

    AdaLN-Zero modulates gen tokens only, computed once per image: with its zero initialisation
    the gen stream passes every block unchanged.
    """

    config: ModelConfig
    attend: Attend

    def setup(self):
        c = self.config
        self.und = Branch(c)
        self.gen = self.und if c.fusion == "shared" else Branch(c)
        shape = (c.embed_dim, 6 * c.embed_dim)
        self.adaln = Linear(shape, ("embed", None), use_bias=True, kernel_init=zeros, **dtypes(c))

    def __call__(
        self,
        streams: Streams,
        conditioning: jax.Array,
        conditioning_index: jax.Array,
        rotations: Rotations,
        meta: Parts,
        cache: LayerCache | None = None,
        places: Places | None = None,
    ) -> tuple[Streams, LayerCache | None]:
        """Runs the layer. Streams and parts of length zero cost nothing.

        Args:
          conditioning: [B, 1 + I, D] after SiLU; entry 0 is t=1 (clean), then one per image.
          conditioning_index: int32[B, G] entry of `conditioning` for each gen token.
          meta: TokenMeta of the parts; the gen stream is its clean part, then its noised one.
          cache: this layer's keys and values of earlier tokens. Keys are then those of the cache,
            the new und and clean tokens written into it, and of the new noised tokens.
          places: with a cache, where new tokens go, and the metadata of all cached tokens.
        Returns:
          the streams, and the cache with the new tokens (None if none were to be written).
        """
        num_clean = meta.clean.segment.shape[1]
        und, gen = streams
        modulation = None
        if gen.shape[1]:
            table = projection(self.adaln(conditioning))
            modulation = Modulation(*jnp.split(per_token(table, conditioning_index), 6, -1))
        und_qkv = self.und.qkv(und, rotations.und, None)
        gen_qkv = self.gen.qkv(gen, rotations.gen, modulation)
        queries, keys, values = (
            _in_parts(u, g, num_clean) for u, g in zip(und_qkv, gen_qkv, strict=True)
        )
        query_meta = Parts(*(None if q is None else m for q, m in zip(queries, meta, strict=True)))
        key_meta = None
        if cache is not None and places is not None:
            cache, keys, values = extend(cache, keys, values, places.destination)
            key_meta = places.meta._replace(noised=query_meta.noised)
        out = self.attend(queries, keys, values, query_meta, key_meta)
        attended = join_gen(out.clean, out.noised) if gen.shape[1] else None
        und = self.und.finish(und, out.und, None)
        gen = self.gen.finish(gen, attended, modulation)
        und, gen = (constrain(x, *_TOKENS, "act_embed") for x in (und, gen))
        return Streams(und, gen), cache


def _in_parts(und: jax.Array | None, gen: jax.Array | None, num_clean: int) -> Parts:
    """Cuts gen[B, C + N, ...] after its clean tokens; parts of length zero are absent."""
    if gen is None:
        return Parts(und=und)
    clean, noised = split_gen(gen, num_clean)
    return Parts(und, clean if clean.shape[1] else None, noised if noised.shape[1] else None)


# ------------------------------------------------------------------------------ rematerialisation

# What a layer keeps for its backward pass, by name; the rest is computed again.
# keep_matmuls    the outputs of all projections and of attention: no matmul runs again, only
#                 norms, rotations and activations
# keep_attention  attention's output and log-sum-exp: projections run again, attention's forward
#                 pass (kernel or loop) does not
# full            the layer's input alone: everything runs again
_PROJECTION = "projection"
_KEPT: dict[str, tuple[str, ...]] = {
    "keep_matmuls": (_PROJECTION, ATTENTION_OUT),
    "keep_attention": (ATTENTION_OUT,),
    "full": (),
}


def projection(x: jax.Array) -> jax.Array:
    """Marks the output of a matmul with weights (rotated, for queries and keys)."""
    return checkpoint_name(x, _PROJECTION)


def rematerialised(module: type[nn.Module], policy: str, *, in_scan: bool) -> type[nn.Module]:
    """The module class under a policy: none (keep all that the backward pass reads) or of _KEPT.

    Args:
      in_scan: it is the body of a loop over layers, where XLA cannot undo recomputation.
    Raises:
      ValueError: for an unknown policy.
    """
    if policy == "none":
        return module
    if policy not in _KEPT:
        raise ValueError(f"unknown remat policy {policy!r}: none, {', '.join(_KEPT)}")
    kept = _KEPT[policy]
    save = jax.checkpoint_policies.save_only_these_names(*kept) if kept else None
    return nn.remat(module, policy=save, prevent_cse=not in_scan)
