"""Attention with the whole mask written out: the reference that others are tested against."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mogao_jax.ops.attention.parts import Parts
from mogao_jax.sequence.masking import TokenMeta, dense_mask


def dense_attention(
    queries: Parts,
    keys: Parts,
    values: Parts,
    query_meta: Parts,
    key_meta: Parts,
    *,
    text_reads_vae: bool = False,
) -> Parts:
    """As `api.attention`, with an array of [B, N, T, S] in memory. For tests and short rows."""
    q, k, v = _join(queries), _join(keys), _join(values)
    batch, length, heads, head_dim = q.shape
    groups = heads // k.shape[2]
    mask = dense_mask(_join_meta(query_meta), _join_meta(key_meta), text_reads_vae=text_reads_vae)
    q = q.reshape(batch, length, -1, groups, head_dim)
    scores = jnp.einsum("btkgh,bskh->bkgts", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None, None], scores * head_dim**-0.5, -1e30)
    # A row without a single key to read is all zeros, not the mean of the values.
    weights = jax.nn.softmax(scores, axis=-1) * jnp.any(mask, axis=-1)[:, None, None, :, None]
    out = jnp.einsum("bkgts,bskh->btkgh", weights, v.astype(jnp.float32))
    out = out.reshape(batch, length, heads, head_dim).astype(q.dtype)
    pieces: list[jax.Array | None] = []
    start = 0
    for part in queries:
        if part is None:
            pieces.append(None)
            continue
        pieces.append(out[:, start : start + part.shape[1]])
        start += part.shape[1]
    return Parts(*pieces)


def _join(parts: Parts) -> jax.Array:
    return jnp.concatenate([p for p in parts if p is not None], axis=1)


def _join_meta(parts: Parts) -> TokenMeta:
    columns = zip(*(p for p in parts if p is not None), strict=True)
    return TokenMeta(*(jnp.concatenate(column, axis=-1) for column in columns))
