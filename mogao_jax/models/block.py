"""One deep-fused decoder layer: joint attention, separate weights per branch (paper, section 3.1).

Axes: B batch, U und tokens, G gen tokens (C clean, then N noised), D embed, F mlp, N query heads,
K key/value heads, H head_dim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mogao_jax.models.cache import LayerCache, Places, write
from mogao_jax.models.gen_stream import join_gen, split_gen
from mogao_jax.models.layers import Linear, constrain, zeros
from mogao_jax.models.remat import projection
from mogao_jax.ops.attention.parts import Parts
from mogao_jax.ops.modulation import modulate, per_token
from mogao_jax.ops.norms import RMSNorm
from mogao_jax.ops.rope import apply_rope


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


_TOKENS = ("act_batch", "act_len")  # logical names of the axes that all activations have

# (queries, keys, values, metadata of the queries, metadata of the keys) -> outputs, in parts.
# Without a cache keys are the queries' own tokens, and their metadata is None.
Attend = Callable[[Parts, Parts, Parts, Parts, Parts | None], Parts]


class Branch(nn.Module):
    """The weights that one branch's tokens meet in a layer: projections, FFN and norms.

    The same shapes and equations as a Qwen2 layer; AdaLN, where there is any, comes from outside.
    """

    embed_dim: int
    mlp_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    eps: float
    dtype: Any
    param_dtype: Any

    def setup(self):
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        d, f, h = self.embed_dim, self.mlp_dim, self.head_dim
        query = (d, self.num_heads, h), ("embed", "q_heads", "head_dim")
        key_value = (d, self.num_kv_heads, h), ("embed", "kv_heads", "head_dim")
        self.attention_norm = RMSNorm(eps=self.eps, param_dtype=self.param_dtype)
        self.query = Linear(*query, num_out=2, use_bias=True, **dtypes)
        self.key = Linear(*key_value, num_out=2, use_bias=True, **dtypes)
        self.value = Linear(*key_value, num_out=2, use_bias=True, **dtypes)
        self.output = Linear((self.num_heads, h, d), ("q_heads", "head_dim", "embed"), **dtypes)
        self.mlp_norm = RMSNorm(eps=self.eps, param_dtype=self.param_dtype)
        self.gate = Linear((d, f), ("embed", "mlp"), **dtypes)
        self.up = Linear((d, f), ("embed", "mlp"), **dtypes)
        self.down = Linear((f, d), ("mlp", "embed"), **dtypes)

    def qkv(
        self, x: jax.Array, rotation: tuple[jax.Array, jax.Array], modulation: Modulation | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """x[B, L, D] -> q[B, L, N, H], k[B, L, K, H], v[B, L, K, H], q and k rotated."""
        h = self.attention_norm(x)
        if modulation is not None:
            h = modulate(h, modulation.attention_shift, modulation.attention_scale)
        q, k = apply_rope(self.query(h), *rotation), apply_rope(self.key(h), *rotation)
        q = constrain(q, *_TOKENS, "act_heads", None)
        k, v = (constrain(y, *_TOKENS, "act_kv_heads", None) for y in (k, self.value(h)))
        return projection(q), projection(k), projection(v)

    def finish(self, x: jax.Array, attended: jax.Array, modulation: Modulation | None) -> jax.Array:
        """Adds attention's output [B, L, N, H] and the FFN to the residual stream [B, L, D]."""
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

    attend: Attend
    fusion: str
    embed_dim: int
    mlp_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    eps: float
    dtype: Any
    param_dtype: Any

    def setup(self):
        sizes: dict[str, Any] = {
            "embed_dim": self.embed_dim,
            "mlp_dim": self.mlp_dim,
            "num_heads": self.num_heads,
            "num_kv_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "eps": self.eps,
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
        }
        self.und = Branch(**sizes)
        self.gen = self.und if self.fusion == "shared" else Branch(**sizes)
        self.adaln = Linear(
            (self.embed_dim, 6 * self.embed_dim),
            ("embed", None),
            use_bias=True,
            kernel_init=zeros,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )

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
          streams: residual streams.
          conditioning: [B, 1 + I, D] after SiLU; line 0 is t=1 (clean), then one per image.
          conditioning_index: int32[B, G] line of `conditioning` for each gen token.
          rotations: rotary cos and sin per stream.
          meta: TokenMeta of the parts; the gen stream is its clean part, then its noised one.
          cache: this layer's keys and values of what came before. Keys are then those of the
            cache, the new und and clean tokens written into it, and of the new noised tokens.
          places: with a cache, where new tokens go, and the metadata of all that is in it.
        Returns:
          the streams, and the cache with the new tokens (None if none were to be written).
        """
        num_clean = meta.clean.segment.shape[1]
        und, gen = streams
        modulation = None
        und_qkv: tuple = (None, None, None)
        gen_qkv: tuple = (None, None, None)
        if gen.shape[1]:
            table = projection(self.adaln(conditioning))
            modulation = Modulation(*jnp.split(per_token(table, conditioning_index), 6, -1))
        if und.shape[1]:
            und_qkv = self.und.qkv(und, rotations.und, None)
        if gen.shape[1]:
            gen_qkv = self.gen.qkv(gen, rotations.gen, modulation)
        queries, keys, values = (
            _in_parts(u, g, num_clean) for u, g in zip(und_qkv, gen_qkv, strict=True)
        )
        query_meta = Parts(*(None if q is None else m for q, m in zip(queries, meta, strict=True)))
        key_meta = None
        if cache is not None and places is not None:
            cache = _remember(cache, keys, values, places.destination)
            keys = cache.keys._replace(noised=keys.noised)
            values = cache.values._replace(noised=values.noised)
            key_meta = places.meta._replace(noised=query_meta.noised)
            if places.destination == Parts():
                cache = None
        out = self.attend(queries, keys, values, query_meta, key_meta)
        attended = None if out.clean is None and out.noised is None else join_gen(*out[1:])
        if und.shape[1]:
            und = self.und.finish(und, out.und, None)
        if attended is not None:
            gen = self.gen.finish(gen, attended, modulation)
        und, gen = (constrain(x, *_TOKENS, "act_embed") for x in (und, gen))
        return Streams(und, gen), cache


def _in_parts(und: jax.Array | None, gen: jax.Array | None, num_clean: int) -> Parts:
    """Cuts gen[B, C + N, ...] after its clean tokens; parts of length zero are absent."""
    if gen is None:
        return Parts(und=und)
    clean, noised = split_gen(gen, num_clean)
    return Parts(und, clean if clean.shape[1] else None, noised if noised.shape[1] else None)


def _remember(cache: LayerCache, keys: Parts, values: Parts, destination: Parts) -> LayerCache:
    """The cache with new und and clean keys and values written into it."""

    def put(kept: Parts, new: Parts) -> Parts:
        pairs = ((getattr(x, name) for x in (kept, new, destination)) for name in ("und", "clean"))
        return Parts(*(a if place is None else write(a, b, place) for a, b, place in pairs))

    return LayerCache(put(cache.keys, keys), put(cache.values, values))
