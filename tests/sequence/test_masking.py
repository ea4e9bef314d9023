"""can_attend against PAPER-level rules read off the structure of documents, not three integers."""

from __future__ import annotations

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mogao_jax.sequence import masking
from mogao_jax.sequence.masking import TEXT, VAE_CLEAN, VAE_NOISED, VIT, TokenMeta, dense_mask


@dataclasses.dataclass(frozen=True)
class Token:
    """Where a token stands in the data: no segment, order or kind."""

    document: int
    item: int  # index of the text span or image in its document
    form: str  # "text", "vit", "clean" or "noised"
    index: int  # within its item and form


def may_read(q: Token, k: Token, text_reads_vae: bool) -> bool:
    """Section 4 of the paper's digest, one sentence after the other."""
    if q.document != k.document:
        return False  # packed samples never see each other
    if k.form == "noised":
        # Nobody attends to a noised image, except itself (bidirectionally).
        return q.form == "noised" and q.item == k.item
    in_history = k.item < q.item
    if q.form == "text":
        if k.form == "text":  # causal
            return in_history or (k.item == q.item and k.index <= q.index)
        if k.form == "vit":
            return in_history
        return text_reads_vae and in_history  # never to VAE tokens (but in ablations A and B)
    if q.form == "vit":
        if k.form == "clean":
            return text_reads_vae and (in_history or k.item == q.item)
        return in_history or k.item == q.item  # bidirectional inside the image
    if q.form == "clean":
        return in_history or k.item == q.item  # all of the history and its own image
    # A noised image: all of the history, never the clean VAE or ViT tokens of its own image.
    return in_history


def random_documents(seed: int) -> tuple[list[Token], TokenMeta]:
    """Tokens in a random order, and the metadata that layout gives them."""
    rng = np.random.default_rng(seed)
    tokens, integers = [], []
    kinds = {"text": TEXT, "vit": VIT, "clean": VAE_CLEAN, "noised": VAE_NOISED}

    def add(form, document, item, count, order):
        for index in range(count):
            tokens.append(Token(document, item, form, index))
            integers.append((document + 1, order + (index if form == "text" else 0), kinds[form]))

    for document in range(rng.integers(1, 5)):
        order = 0
        for item in range(rng.integers(1, 6)):
            if rng.random() < 0.5:
                count = int(rng.integers(1, 5))
                add("text", document, item, count, order)
                order += count
            else:  # each form may be left out
                for form, most in (("vit", 3), ("clean", 4), ("noised", 4)):
                    add(form, document, item, int(rng.integers(0, most)), order)
                order += 1
    shuffled = rng.permutation(len(tokens))
    table = np.array(integers, np.int32).reshape(-1, 3)[shuffled]
    return [tokens[i] for i in shuffled], TokenMeta(*table.T)


@pytest.mark.parametrize("text_reads_vae", [False, True])
def test_is_the_papers_rules(text_reads_vae):
    pairs = set()
    for seed in range(40):
        tokens, meta = random_documents(seed)
        mask = dense_mask(meta, meta, text_reads_vae=text_reads_vae)
        for i, q in enumerate(tokens):
            for j, k in enumerate(tokens):
                assert mask[i, j] == may_read(q, k, text_reads_vae), (q, k)
                pairs.add((q.form, k.form, q.item > k.item, q.item == k.item, bool(mask[i, j])))
    assert len(pairs) > 50  # the documents held every relation of interest


def test_padding_neither_reads_nor_is_read():
    kinds = np.array([TEXT, VIT, VAE_CLEAN, VAE_NOISED], np.int32)
    padding = TokenMeta(np.zeros(4, np.int32), np.zeros(4, np.int32), kinds)
    real = TokenMeta(np.ones(4, np.int32), np.zeros(4, np.int32), kinds)
    for text_reads_vae in (False, True):
        for q, k in ((padding, padding), (padding, real), (real, padding)):
            assert not dense_mask(q, k, text_reads_vae=text_reads_vae).any()


def parse_drawing(text: str) -> tuple[TokenMeta, np.ndarray]:
    """The drawing in the module's docstring: metadata of its columns and its mask."""
    lines = [line.replace("|", " ").split() for line in text.splitlines()]
    rows = [line for line in lines if len(line) > 3 and set(line[2:]) <= {"#", "."}]
    start = lines.index(rows[0])
    orders, names = [int(x) for x in lines[start - 2]], lines[start - 1]
    assert [r[0] for r in rows] == lines[start - 2] and [r[1] for r in rows] == names
    kinds = {"V": VIT, "C": VAE_CLEAN, "N": VAE_NOISED, "M": VAE_NOISED}
    kind = np.array([kinds.get(name, TEXT) for name in names], np.int32)
    meta = TokenMeta(np.ones_like(kind), np.array(orders, np.int32), kind)
    return meta, np.array([[cell == "#" for cell in row[2:]] for row in rows])


def test_is_as_drawn():
    meta, drawn = parse_drawing(inspect.getdoc(masking))
    assert drawn.shape == (11, 11) and drawn.sum() == 54
    np.testing.assert_array_equal(dense_mask(meta, meta), drawn)


def test_same_under_jax_and_on_single_tokens():
    _, meta = random_documents(3)
    expected = dense_mask(meta, meta)
    traced = jax.jit(dense_mask)(*(jax.tree.map(jnp.asarray, (meta, meta))))
    np.testing.assert_array_equal(traced, expected)
    for i, j in ((0, 0), (1, 3), (4, 2)):
        single = masking.can_attend(meta.take(i), meta.take(j))
        assert bool(single) == expected[i, j]
