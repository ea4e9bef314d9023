"""Packed rows hold every document unchanged, each to itself; the packer fills rows."""

import numpy as np
import pytest

from mogao_jax.config.schema import PackingConfig
from mogao_jax.sequence import packing
from mogao_jax.sequence.batch import (
    GenStream,
    ImageTable,
    PackedBatch,
    Sizes,
    UndStream,
    VitPatches,
    sizes,
)
from mogao_jax.sequence.masking import TEXT, VAE_CLEAN, VAE_NOISED, VIT, TokenMeta, dense_mask

CANVAS = 32
LIMITS = Sizes(und=60, clean=20, noised=16, images=7, vit_patches=48)


def document(rng: np.random.Generator, num_segments: int, num_images: int) -> PackedBatch:
    """A structure as layout makes it, with random values everywhere that must survive."""

    def meta(n: int, kinds) -> TokenMeta:
        segment = np.sort(rng.integers(1, num_segments + 1, n))
        if n:
            segment[-1] = num_segments
        order = np.sort(rng.integers(0, 5, n))
        rank = np.lexsort((order, segment))
        return TokenMeta(
            segment[rank].astype(np.int32),
            order[rank].astype(np.int32),
            rng.choice(kinds, n).astype(np.int32),
        )

    def gen(n: int, kind: int) -> GenStream:
        return GenStream(
            image=rng.integers(0, num_images, n).astype(np.int32),
            patch=rng.integers(0, 4, n).astype(np.int32),
            copy=rng.integers(0, 3, n).astype(np.int32),
            meta=meta(n, [kind]),
            positions=rng.random((n, 3), np.float32),
            loss_weights=rng.random(n, np.float32),
        )

    vit_tokens = num_images
    num_und = int(rng.integers(2, 8)) + vit_tokens
    vit_index = np.full(num_und, -1, np.int32)
    vit_index[:vit_tokens] = rng.permutation(vit_tokens)
    pixels = np.zeros((num_images, CANVAS, CANVAS, 3), np.uint8)
    size = rng.choice([16, 32], (num_images, 2)).astype(np.int32)
    for i, (h, w) in enumerate(size):
        pixels[i, :h, :w] = rng.integers(1, 256, (h, w, 3))
    return PackedBatch(
        und=UndStream(
            tokens=rng.integers(1, 99, num_und).astype(np.int32),
            targets=rng.integers(1, 99, num_und).astype(np.int32),
            loss_weights=rng.random(num_und, np.float32),
            meta=meta(num_und, [TEXT, VIT]),
            positions=rng.random((num_und, 3), np.float32),
            vit_index=vit_index,
            source=np.full(num_und, 3, np.int32),
        ),
        clean=gen(int(rng.integers(1, 5)) if num_images else 0, VAE_CLEAN),
        noised=gen(int(rng.integers(1, 4)) if num_images else 0, VAE_NOISED),
        images=ImageTable(
            pixels=pixels,
            size=size,
            uid=rng.integers(0, 2**32, num_images, dtype=np.uint32),
            context=rng.integers(0, 3, num_images).astype(np.int32),
            source=np.full(num_images, 3, np.int32),
        ),
        vit=VitPatches(
            pixels=rng.integers(0, 256, (4 * vit_tokens, 588), dtype=np.uint8),
            positions=rng.integers(0, 9, (4 * vit_tokens, 2)).astype(np.int32),
            segment=np.repeat(np.arange(1, vit_tokens + 1), 4).astype(np.int32),
        ),
    )


def documents(seed: int) -> list[PackedBatch]:
    rng = np.random.default_rng(seed)
    return [document(rng, s, i) for s, i in [(1, 0), (3, 2), (1, 1), (2, 0), (2, 3)]]


def meta_of(x: PackedBatch) -> TokenMeta:
    parts = [x.und.meta, x.clean.meta, x.noised.meta]
    return TokenMeta(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


@pytest.mark.parametrize("seed", range(5))
def test_packed_documents_attend_to_themselves_as_they_would_alone(seed):
    docs = documents(seed)
    row = packing.pack_row(docs, LIMITS, CANVAS)
    mask = dense_mask(meta_of(row), meta_of(row))
    # Where each document's tokens of each stream stand in the row, by counting.
    want = np.zeros_like(mask)
    stream_starts = [0, LIMITS.und, LIMITS.und + LIMITS.clean]
    for doc in docs:
        index = []
        for k, n in enumerate(sizes(doc)[:3]):
            index += range(stream_starts[k], stream_starts[k] + n)
            stream_starts[k] += n
        want[np.ix_(index, index)] = dense_mask(meta_of(doc), meta_of(doc))
    np.testing.assert_array_equal(mask, want)


@pytest.mark.parametrize("seed", range(5))
def test_indices_reach_the_same_things_as_before(seed):
    docs = documents(seed)
    row = packing.pack_row(docs, LIMITS, CANVAS)
    assert sizes(row) == LIMITS
    start = dict.fromkeys(Sizes._fields, 0)
    for doc in docs:
        n = sizes(doc)
        und = slice(start["und"], start["und"] + n.und)
        for name in ("tokens", "targets", "loss_weights", "positions", "source"):
            np.testing.assert_array_equal(getattr(row.und, name)[und], getattr(doc.und, name))
        for here, there in zip(row.und.vit_index[und], doc.und.vit_index, strict=True):
            assert (here == -1) == (there == -1)
            if there >= 0:
                np.testing.assert_array_equal(
                    row.vit.pixels[4 * here : 4 * here + 4],
                    doc.vit.pixels[4 * there : 4 * there + 4],
                )
        for name in ("clean", "noised"):
            mine, his = getattr(row, name), getattr(doc, name)
            where = slice(start[name], start[name] + getattr(n, name))
            for field in ("patch", "positions", "loss_weights"):
                np.testing.assert_array_equal(getattr(mine, field)[where], getattr(his, field))
            for field in ("pixels", "size", "uid", "context", "source"):
                np.testing.assert_array_equal(
                    getattr(row.images, field)[mine.image[where]],
                    getattr(doc.images, field)[his.image],
                )
        for field, amount in zip(Sizes._fields, n, strict=True):
            start[field] += amount
    for stream, name in ((row.und, "und"), (row.clean, "clean"), (row.noised, "noised")):
        rest = slice(start[name], None)
        assert not stream.meta.segment[rest].any() and not stream.loss_weights[rest].any()
        assert (stream.meta.segment[: start[name]] > 0).all()
        used = np.stack([stream.meta.segment, stream.meta.order])[:, : start[name]]
        assert (np.lexsort(used[::-1]) == np.arange(start[name])).all(), "not sorted"
    assert (row.und.vit_index[start["und"] :] == -1).all()
    assert (row.clean.image[start["clean"] :] == -1).all()
    assert (row.noised.image[start["noised"] :] == -1).all()
    assert not row.images.size[start["images"] :].any()
    assert not row.images.pixels[start["images"] :].any()
    # Every ViT image of the row has its own number, of as many patches as before.
    used = row.vit.segment[: start["vit_patches"]]
    np.testing.assert_array_equal(used, np.repeat(np.arange(1, len(used) // 4 + 1), 4))
    assert not row.vit.segment[start["vit_patches"] :].any()


def test_images_without_vit_tokens_do_not_shift_vit_numbers():
    rng = np.random.default_rng(0)
    plain = document(rng, 1, 2)
    no_vit = plain._replace(vit=VitPatches(*(a[:0] for a in plain.vit[:3])))
    row = packing.pack_row([no_vit, plain], LIMITS, CANVAS)
    np.testing.assert_array_equal(row.vit.segment[:8], plain.vit.segment)
    n = len(plain.und.tokens)
    np.testing.assert_array_equal(row.und.vit_index[n : 2 * n], plain.und.vit_index)


def test_empty_row_and_stacking():
    row = packing.pack_row([], LIMITS, CANVAS)
    assert not dense_mask(meta_of(row), meta_of(row)).any()
    other = packing.pack_row(documents(0), LIMITS, CANVAS)
    batch = packing.stack_rows([row, other])
    assert batch.und.meta.segment.shape == (2, LIMITS.und)
    assert batch.images.pixels.shape == (2, LIMITS.images, CANVAS, CANVAS, 3)
    np.testing.assert_array_equal(batch.noised.positions[1], other.noised.positions)


def test_exceeds_names_the_fields():
    limits = packing.budgets(PackingConfig(und_tokens=10, images=2))
    assert packing.exceeds(Sizes(10, 0, 0, 2, 0), limits) is None
    message = packing.exceeds(Sizes(11, 0, 0, 3, 0), limits)
    assert "packing.und_tokens=10" in message and "packing.images=2" in message
    assert "clean" not in message
    with pytest.raises(ValueError, match="und_tokens"):
        packing.Packer(limits, 4).add(0, Sizes(11, 0, 0, 0, 0))


def stream(seed: int, n: int) -> list[Sizes]:
    """A mixture like the embedded one: text, image alone, image and text, several."""
    rng = np.random.default_rng(seed)
    found = []
    for kind in rng.integers(0, 4, n):
        text, (a, b) = int(rng.integers(15, 60)), rng.choice([9, 12, 16, 20, 24, 30], 2)
        a, b = int(a), int(b)
        found.append(
            [
                Sizes(2 * text, 0, 0, 0, 0),
                Sizes(text, 0, a, 1, 0),
                Sizes(text + 4, 0, 0, 0, 16),
                Sizes(text + 4, a, b, 2, 16),
            ][kind]
        )
    return found


def run(limits: Sizes, pool: int, items: list[Sizes]) -> tuple[packing.Packer, list[list[int]]]:
    packer, rows, fed = packing.Packer(limits, pool), [], 0
    while fed < len(items) or packer.held:
        while packer.wanted and fed < len(items):
            packer.add(fed, items[fed])
            fed += 1
        rows.append(packer.take_row())
    return packer, rows


def test_every_document_is_packed_once_within_the_budgets():
    items = stream(0, 400)
    limits = Sizes(200, 40, 60, 5, 64)
    packer, rows = run(limits, 30, items)
    assert sorted(i for row in rows for i in row) == list(range(400))
    used = np.array([np.sum([items[i] for i in row], axis=0) for row in rows])
    assert (used <= limits).all()
    seen: set[int] = set()
    for row in rows:  # the oldest that waits always goes first, so nothing waits for ever
        assert row[0] == min(set(range(400)) - seen)
        seen.update(row)
    assert rows == run(limits, 30, items)[1]
    shares = packer.fill.shares()
    for name, share in zip(Sizes._fields, used.sum(0) / np.array(limits) / len(rows), strict=True):
        assert shares[name] == pytest.approx(share)
    assert shares["gen"] == pytest.approx(used[:, 1:3].sum() / 100 / len(rows))
    assert packer.fill.documents == 400 and packer.fill.rows == len(rows)


def test_rows_are_filled_when_the_budgets_suit_the_mixture():
    items = stream(1, 6000)
    mean = np.mean(items, axis=0)
    proportional = np.ceil(mean * 600 / mean[0] * [1, 1, 1, 1.3, 1.3]).astype(int)
    limits = Sizes(*map(int, proportional))
    packer, fed, rows = packing.Packer(limits, 128), 0, 0
    while fed + packer.wanted <= len(items):
        while packer.wanted:
            packer.add(fed, items[fed])
            fed += 1
        packer.take_row()
        rows += 1
    shares = packer.fill.shares()
    assert rows > 200 and shares["und"] > 0.95 and shares["gen"] > 0.95, shares


def test_take_row_of_nothing():
    assert packing.Packer(LIMITS, 3).take_row() == []
