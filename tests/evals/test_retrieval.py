"""Ranks and figures of the retrieval benchmark, with samplers whose images are known."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from mogao_jax.config.schema import ImageConfig
from mogao_jax.errors import DataError, DocumentError
from mogao_jax.evals import retrieval
from mogao_jax.sampling.options import SamplingOptions
from mogao_jax.sampling.requests import Result
from mogao_jax.sequence.document import Document, Image, Text

IMAGES = ImageConfig(max_pixels=32 * 32, max_side=32)


def image(seed):
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return np.kron(blocks, np.ones((4, 4, 1), np.uint8))


def caption(seed):
    wanted = Image(pixels=image(seed), role="assistant", loss=True)
    return Document((Text(f"image {seed}", "user", False), wanted), id=f"c{seed}")


def edit(before, after):
    given = Image(pixels=image(before), role="user", loss=False)
    wanted = Image(pixels=image(after), role="assistant", loss=True)
    return Document((given, Text("change it", "user", False), wanted), id=f"e{before}-{after}")


class Draws:
    """A sampler that draws what a function says of the request's number."""

    def __init__(self, what):
        self.what, self.seen = what, []

    def sample(self, requests):
        results = []
        for request in requests:
            pixels = self.what(len(self.seen))
            self.seen.append(request)
            items = () if pixels is None else (Image(pixels=pixels),)
            results.append(Result(items, "max_images", request.document))
        return results


def run(documents, what, gallery=None):
    tasks = retrieval.tasks_of(documents, IMAGES, 100)
    known = retrieval.gallery_of(gallery or documents, IMAGES)
    sampler = Draws(what)
    return retrieval.run(sampler, tasks, known, options=SamplingOptions(), batch_size=3), sampler


def test_true_images_come_first_and_others_do_not():
    documents = [caption(i) for i in range(8)]
    found, sampler = run(documents, lambda n: image(n if n < 6 else 0))
    assert found.size == 8 and [j.rank == 1 for j in found.judged] == [True] * 6 + [False] * 2
    assert found.within(1).right == 6 and found.chance(5) == 5 / 8
    assert all(r.options.size == (32, 32) and r.options.draw_first for r in sampler.seen)
    assert len({r.seed for r in sampler.seen}) == 8
    assert all(len(r.document.items) == 1 for r in sampler.seen)


def test_ranks_against_a_plain_search():
    documents = [caption(i) for i in range(12)]
    rng = np.random.default_rng(5)
    drawn = [rng.integers(0, 256, (32, 32, 3), np.uint8) for _ in documents]
    found, _ = run(documents, lambda n: drawn[n])

    def means(pixels):
        return [pixels[y : y + 4, x : x + 4].mean((0, 1)) for y in range(0, 32, 4)
                for x in range(0, 32, 4)]  # fmt: skip

    for n, judged in enumerate(found.judged):
        far = [np.linalg.norm(np.subtract(means(drawn[n]), means(image(k)))) for k in range(12)]
        assert judged.rank == 1 + sum(d < far[n] for d in far)
        error = np.mean((drawn[n].astype(float) - image(n)) ** 2)
        assert judged.psnr == pytest.approx(10 * math.log10(255**2 / error))


def test_a_little_noise_changes_no_rank():
    documents = [caption(i) for i in range(6)]
    rng = np.random.default_rng(1)

    def noisy(n):
        return np.clip(image(n) + rng.normal(0, 30, (32, 32, 3)), 0, 255).astype(np.uint8)

    found, _ = run(documents, noisy)
    assert found.within(1).value == 1 and 15 < found.psnr < 25


def test_edits_are_nearer_to_one_side():
    documents = [edit(0, 1), edit(2, 3), edit(4, 4)]
    found, _ = run(documents, lambda n: image((1, 2, 4)[n]))
    assert [j.changed for j in found.judged] == [True, False, None]
    assert (found.changed.right, found.changed.total) == (1, 2)
    assert found.size == 5  # 0 to 4, each once
    words = [[p.words for p in retrieval.card(j).images] for j in found.judged]
    assert words[0] == ["given", "drawn", "asked for"]


def test_nothing_drawn_is_no_success():
    found, _ = run([caption(0), edit(1, 2)], lambda n: None)
    assert [j.rank for j in found.judged] == [0, 0] and found.within(5).right == 0
    assert math.isnan(found.psnr) and found.changed.right == 0 and found.changed.total == 1


def test_what_cannot_be_served_is_left_out(tmp_path):
    gone = Image(path=tmp_path / "gone.png", role="user", loss=False)
    say, wanted = Text("change it", "user", False), Image(pixels=image(1), loss=True)
    documents = [
        caption(0),
        Document((say, dataclasses.replace(gone, loss=True)), id="nothing to compare with"),
        Document((gone, say, wanted), id="nothing to change"),
        Document((gone, edit(2, 3).items[0], say, wanted), id="an earlier one is gone"),
        Document((Text("x" * 99), wanted), id="long"),
        edit(4, 5),
        caption(6),
    ]
    reasons = []

    def check(prompt):
        assert all(i.path is None for i in prompt.items if isinstance(i, Image))
        if any(isinstance(i, Text) and len(i.text) > 50 for i in prompt.items):
            raise DocumentError("too long")

    tasks = retrieval.tasks_of(documents, IMAGES, 2, check=check, leave_out=reasons.append)
    assert [t.prompt.id for t in tasks] == ["c0", "e4-5"]
    np.testing.assert_array_equal(tasks[1].given, image(4))
    assert len(reasons) == 4 and ["gone.png" in str(e) for e in reasons] == [True] * 3 + [False]
    with pytest.raises(DataError, match="can be read"):
        retrieval.tasks_of(documents[1:3], IMAGES, 2)


def test_documents_that_ask_for_nothing():
    with pytest.raises(DataError, match="asks for an image"):
        retrieval.tasks_of([Document((Text("words"),))], IMAGES, 3)
