"""How tokens are chosen, against numpy; and which never are."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from mogao_jax.sampling.decode import SamplingParams, allowed_tokens, choose, seed_key
from mogao_jax.sampling.session import TextStream
from mogao_jax.tokenizer import ByteTokenizer

TOKENIZER = ByteTokenizer()
V, DRAWS = 10, 6000
LOGITS = np.array([0.3, 2.0, -1.0, 1.9, 0.0, -np.inf, 1.0, 0.9, -3.0, 0.3], np.float32)


def drawn(temperature=1.0, top_p=1.0, top_k=0, seed=0, first=0):
    choice = SamplingParams(
        key=np.tile(seed_key(seed), (DRAWS, 1)),
        temperature=np.full(DRAWS, temperature, np.float32),
        top_p=np.full(DRAWS, top_p, np.float32),
        top_k=np.full(DRAWS, top_k, np.int32),
        may_draw=np.ones(DRAWS, bool),
    )
    index = first + np.arange(DRAWS, dtype=np.int32)
    return np.asarray(jax.jit(choose)(np.tile(LOGITS, (DRAWS, 1)), index, choice))


def reference(temperature, top_p, top_k):
    """Probabilities, written as one would say it."""
    p = np.exp(LOGITS.astype(np.float64) / temperature)
    likeliest = list(np.argsort(-p, kind="stable"))
    if top_k:
        likeliest = likeliest[:top_k]
    total = sum(p[i] for i in likeliest)
    kept, mass = [], 0.0
    for i in likeliest:
        if mass >= top_p and top_p < 1:
            break
        kept.append(i)
        mass += p[i] / total
    out = np.zeros(V)
    out[kept] = p[kept]
    return out / out.sum()


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"),
    [(1.0, 1.0, 0), (0.5, 1.0, 0), (2.5, 1.0, 4), (1.0, 0.6, 0), (1.3, 0.7, 3), (1.0, 1e-6, 0)],
)
def test_frequencies(temperature, top_p, top_k):
    expected = reference(temperature, top_p, top_k)
    counts = np.bincount(drawn(temperature, top_p, top_k), minlength=V)
    assert not counts[expected == 0].any()
    error = np.abs(counts / DRAWS - expected)
    assert (error < 4.5 * np.sqrt(expected * (1 - expected) / DRAWS) + 1e-9).all()


@pytest.mark.parametrize("temperature", [1e-37, 1e-3, 1.0, 1e3, 1e38])
def test_forbidden_tokens_are_never_chosen(temperature):
    logits = np.array([[-np.inf, -50.0, -60.0, -3e38, -np.inf]], np.float32)
    for seed in range(20):
        row = SamplingParams(*(np.array([x], d) for x, d in (
            (seed_key(seed), np.uint32), (temperature, np.float32), (1.0, np.float32),
            (0, np.int32), (True, bool))))  # fmt: skip
        token = int(choose(logits, np.array([seed]), row)[0])
        assert token in (1, 2, 3) and (temperature > 1e-3 or token == 1)


def test_greedy_and_rows_of_both_kinds():
    assert (drawn(temperature=0.0) == 1).all()
    choice = SamplingParams(
        key=np.tile(seed_key(1), (DRAWS, 1)),
        temperature=(np.arange(DRAWS) % 2).astype(np.float32),
        top_p=np.ones(DRAWS, np.float32),
        top_k=np.zeros(DRAWS, np.int32),
        may_draw=np.ones(DRAWS, bool),
    )
    index = np.arange(DRAWS, dtype=np.int32)
    tokens = np.asarray(jax.jit(choose)(np.tile(LOGITS, (DRAWS, 1)), index, choice))
    assert (tokens[::2] == 1).all() and len(set(tokens[1::2])) == V - 1


def test_randomness_is_of_the_seed_and_the_place_alone():
    whole = drawn(seed=5)
    np.testing.assert_array_equal(whole, drawn(seed=5))
    np.testing.assert_array_equal(whole[100:], drawn(seed=5, first=100)[:-100])
    assert (whole != drawn(seed=6)).mean() > 0.3
    assert len({tuple(seed_key(s)) for s in (0, 1, 2**32, 2**70)}) == 4


def test_only_text_ends_and_vision_start_are_allowed():
    allowed = allowed_tokens(TOKENIZER, 300)  # the table is padded
    special = [TOKENIZER.endoftext, TOKENIZER.im_end, TOKENIZER.vision_start]
    np.testing.assert_array_equal(np.nonzero(allowed)[0], [*range(256), *sorted(special)])


def test_text_comes_in_whole_characters():
    text = "a\u00e9\u20ac\U0001f600b"
    stream = TextStream(TOKENIZER)
    pieces = [stream.push(byte) for byte in text.encode()]
    assert [p for p in pieces if p] == list(text)
    assert stream.finish() == (text, "")
    stream.push(ord("x"))
    assert stream.push(0xE2) == ""  # the beginning of a character that never ends
    assert stream.finish() == ("x\ufffd", "\ufffd")
    assert stream.finish() == ("", "")
