"""Decode: the next token from logits, and a loop that writes tokens until it must stop.

Axes: r rows, V vocabulary, c tokens of a chunk.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mogao_jax.models import cache as kv_cache
from mogao_jax.models.modules import Modules
from mogao_jax.models.mogao import MogaoInputs, example_inputs, head_table
from mogao_jax.ops.attention.parts import Parts
from mogao_jax.sampling.prefill import OUT_OF_RANGE
from mogao_jax.sampling.programs import Probe, tell
from mogao_jax.sequence.cursor import Cursor, text_positions
from mogao_jax.sequence.masking import TEXT, TokenMeta
from mogao_jax.tokenizer import Tokenizer


class SamplingParams(NamedTuple):
    """How each row's tokens are chosen from its logits."""

    key: Any  # uint32[r, 2] the request's, from its seed alone
    temperature: Any  # float32[r], 0 is greedy
    top_p: Any  # float32[r]
    top_k: Any  # int32[r], 0 is off
    may_draw: Any  # bool[r] whether <|vision_start|> may be chosen


class DecodeState(NamedTuple):
    """Where each row stands: `token` is chosen, but not yet in the cache."""

    row: Any  # int32[r] of the cache
    token: Any  # int32[r]
    cursor: Cursor  # of int32[r]: where it stands
    length: Any  # int32[r] und tokens in the cache
    limit: Any  # int32[r] tokens that may still be chosen; 0: a row that does nothing


def seed_key(seed: int) -> np.ndarray:
    """A request's random key, uint32[2]."""
    return np.random.SeedSequence(seed).generate_state(2, np.uint32)


def allowed_tokens(tokenizer: Tokenizer, num_rows: int) -> np.ndarray:
    """Which ids may be written, bool[num_rows]: text, the end tokens and <|vision_start|>.

    The embedding table has `num_rows`, which may be more than the vocabulary.
    """
    allowed = np.arange(num_rows) < tokenizer.vocab_size
    wanted = {tokenizer.vision_start, tokenizer.im_end, tokenizer.endoftext}
    allowed[list(tokenizer.control_ids - wanted)] = False
    return allowed


def choose(logits: jax.Array, index: jax.Array, choice: SamplingParams) -> jax.Array:
    """The next token of every row, int32[r].

    Temperature first, then the `top_k` likeliest tokens, then the fewest of these that hold
    `top_p` of their probability. The randomness of a row is that of (its key, index) alone.

    Args:
      logits: float32[r, V], -inf for what may not be chosen.
      index: int32[r] the token's place in its document (T id).
    """
    greedy = jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def draw(logits, key, index, temperature, top_p, top_k):
        # Of the likeliest: a low temperature then makes nothing infinite but what is unlikely.
        scaled = (logits - jnp.max(logits)) / jnp.where(temperature > 0, temperature, 1.0)
        order = jnp.argsort(-scaled, stable=True)
        ranked = scaled[order]
        among = jnp.arange(ranked.shape[0]) < jnp.where(top_k > 0, top_k, ranked.shape[0])
        probabilities = jax.nn.softmax(jnp.where(among, ranked, -jnp.inf))
        before = jnp.cumsum(probabilities) - probabilities  # of likelier tokens
        kept = among & ((before < top_p) | (top_p >= 1)) & (logits[order] > -jnp.inf)
        stream = jax.random.wrap_key_data(key, impl="threefry2x32")
        noise = jax.random.gumbel(jax.random.fold_in(stream, index), ranked.shape)
        return order[jnp.argmax(jnp.where(kept, ranked + noise[order], -jnp.inf))]

    def some_drawn():
        drawn = jax.vmap(draw)(
            logits, choice.key, index, choice.temperature, choice.top_p, choice.top_k
        )
        return jnp.where(choice.temperature > 0, drawn.astype(jnp.int32), greedy)

    return lax.cond(jnp.any(choice.temperature > 0), some_drawn, lambda: greedy)


def decode(
    modules: Modules,
    params: Any,
    cache: Parts,
    start: DecodeState,
    choice: SamplingParams,
    allowed: jax.Array,
    *,
    tokenizer: Tokenizer,
    chunk: int,
    probe: Probe | None = None,
) -> tuple[Parts, jax.Array]:
    """Writes up to `chunk` tokens in each row. A program: to be jitted, the cache donated.

    A row stops at an end token, at <|vision_start|>, or at its limit of tokens. Every token but
    the last one chosen is in the cache afterwards. `allowed` is bool[V].

    Returns:
      the cache, and the tokens chosen, int32[r, chunk], -1 where none was.
    """
    model, rows = modules.model, start.row
    table, vision_start = head_table(params), tokenizer.vision_start
    work = Parts(
        und=kv_cache.take(cache.und, rows),
        clean=kv_cache.take(cache.clean, rows) if model.text_reads_vae else None,
    )
    ends = jnp.asarray((tokenizer.im_end, tokenizer.endoftext, vision_start), jnp.int32)
    may_choose = allowed & (choice.may_draw[:, None] | (jnp.arange(len(allowed)) != vision_start))

    def predict(und: Any, now: DecodeState, active: jax.Array) -> tuple[Any, jax.Array]:
        inputs = _one_token(now, active, modules)
        destination = Parts(und=jnp.where(active, now.length, OUT_OF_RANGE)[:, None])
        cache = work._replace(und=und)
        out = model.apply({"params": params}, inputs, cache, destination)
        hidden = out.und_hidden[:, 0]
        over_width = ((1,), (1,)), ((), ())
        logits = lax.dot_general(
            hidden, table.astype(hidden.dtype), over_width, preferred_element_type=jnp.float32
        )
        return out.cache.und, logits

    def body(carry):
        step, und, now, active, chosen = carry
        und, logits = predict(und, now, active)
        seen = {"row": rows, "t": now.cursor.t, "active": active, "logits": logits}
        tell(probe, "logits", seen)
        index = now.cursor.after_text().t
        token = choose(jnp.where(may_choose, logits, -jnp.inf), index, choice)
        token = jnp.where(active, token, now.token)
        chosen = chosen.at[:, step].set(jnp.where(active, token, -1))
        one = active.astype(jnp.int32)
        now = DecodeState(
            now.row, token, now.cursor.after_text(one), now.length + one, now.limit - one
        )
        is_end = jnp.any(token[:, None] == ends, axis=1)
        return step + 1, und, now, active & ~is_end & (now.limit > 0), chosen

    none_chosen = jnp.full((rows.shape[0], chunk), -1, jnp.int32)
    begin = (jnp.int32(0), work.und, start, start.limit > 0, none_chosen)
    _, und, _, _, chosen = lax.while_loop(
        lambda carry: (carry[0] < chunk) & jnp.any(carry[3]), body, begin
    )
    return cache._replace(und=kv_cache.put(cache.und, rows, und)), chosen


def _one_token(now: DecodeState, active: jax.Array, modules: Modules) -> MogaoInputs:
    """Inputs of one text token per row."""
    zero = jnp.zeros((now.token.shape[0], 1), jnp.int32)
    none = example_inputs(modules.model, (len(zero), 0, 0, 0, 0), num_patches=0)
    meta = TokenMeta(active.astype(jnp.int32)[:, None], now.cursor.order[:, None], zero + TEXT)
    mode = modules.config.layout.text_positions
    positions = text_positions(now.cursor.t[:, None], mode, jnp)
    return none._replace(
        tokens=now.token[:, None],
        vit_index=zero - 1,
        meta=none.meta._replace(und=meta),
        positions=none.positions._replace(und=positions),
    )
