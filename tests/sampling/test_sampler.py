"""The sampler as a whole: batches, stops, shapes, continuation, events."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import replay
import tiny_system as tiny

from mogao_jax.errors import DocumentError, RequestError
from mogao_jax.models import cache as kv_cache
from mogao_jax.sampling.options import SamplingOptions
from mogao_jax.sampling.requests import (
    Finished,
    GeneratedImage,
    ImageProgress,
    ImageStarted,
    Request,
    TextChunk,
)
from mogao_jax.sampling.scheduler import BatchScheduler
from mogao_jax.sequence.document import Document, Image, Text

TOKENIZER = tiny.TOKENIZER
MAX_LENGTH = 100


def image(height, width, seed=0, role=None):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image(pixels=pixels, role=role, loss=False)


def document(*items):
    return Document(tuple(Text(i, loss=False) if isinstance(i, str) else i for i in items), id="d")


def request(*items, seed=0, **options):
    options = {"num_steps": 3, "max_tokens": 12, "temperature": 3.0} | options
    return Request(document(*items), seed, SamplingOptions(**options))


@functools.cache
def shared():
    """One sampler for all tests: programs are compiled once. With what its VAE was given."""
    sampler = replay.make_sampler(*replay.tiny_model(), max_length=MAX_LENGTH, batch_size=4)
    latents: list[np.ndarray] = []
    decode = sampler.engine.encoders.decode

    def decode_and_keep(given, sizes):
        latents.extend(given)
        return decode(given, sizes)

    sampler.engine.encoders.decode = decode_and_keep
    return sampler, latents


@pytest.fixture
def sampler():
    sampler, latents = shared()
    before = sampler.allowed.copy()
    latents.clear()
    yield sampler
    sampler.allowed[:] = before


def write_only(sampler, *tokens):
    sampler.allowed[:] = False
    sampler.allowed[list(tokens)] = True


def texts(result):
    return [item.text for item in result.items if isinstance(item, Text)]


def images_of(result):
    return [item.pixels for item in result.items if isinstance(item, Image)]


def run(sampler, requests):
    """(results, latents of each request's images)."""
    _, latents = shared()
    latents.clear()
    order = []

    def on_event(index, event):
        if isinstance(event, GeneratedImage):
            order.append(index)

    results = sampler.sample(requests, on_event)
    of_request = [[x for i, x in zip(order, latents, strict=True) if i == k]
                  for k in range(len(requests))]  # fmt: skip
    return results, of_request


MIXED = [
    request("draw a cat ", seed=1, draw_first=True, size=(32, 48), num_steps=5, max_images=2),
    request("q", image(32, 32), " what is it?", seed=2, allow_images=False, temperature=0.0),
    request(image(16, 16, 1), "and ", image(32, 32, 2), "on ", seed=6, max_images=3,
            guidance_scale=2.0, max_tokens=28, temperature=6.0),
    request("ab", seed=4, temperature=5.0, top_k=3, image_guidance_scale=7.5, max_images=2,
            timestep_shift=1.7, guidance_interval=(0.2, 0.9)),
]  # fmt: skip


@pytest.mark.slow
def test_a_batch_gives_what_each_request_gives_alone(sampler):
    together, latents = run(sampler, MIXED)
    assert len(images_of(together[0])) >= 1 and not images_of(together[1])
    assert len(images_of(together[2])) >= 2 and texts(together[2])
    for k, alone in enumerate(MIXED):
        (single,), (own,) = run(sampler, [alone])
        assert single.stop == together[k].stop
        assert texts(single) == texts(together[k])
        assert len(own) == len(latents[k]) == len(images_of(single))
        for a, b in zip(latents[k], own, strict=True):
            assert tiny.relative_error(a, b) < 1e-5
        for a, b in zip(images_of(together[k]), images_of(single), strict=True):
            assert np.abs(a.astype(int) - b).max() <= 1


def test_a_second_batch_compiles_nothing_new(sampler):
    write_only(sampler, *replay.LETTERS)
    both = {"draw_first": True, "max_images": 2, "max_tokens": 6}
    run(
        sampler,
        [
            request("draw ", image(32, 32), "so", size=(32, 48), **both),
            request("one", size=(16, 16), **both),
            request(image(16, 16), "what?", allow_images=False),
        ],
    )
    count = sampler.num_compilations
    assert count > 0
    again = {"temperature": 0.0, "num_steps": 7, "guidance_scale": 2.0, "top_k": 3}
    run(
        sampler,
        [
            request("a longer question ", image(16, 16), allow_images=False, top_p=0.5),
            request("zwei", seed=8, size=(16, 16), **both | again),
            request("and ", image(32, 32), size=(32, 48), **both, timestep_shift=3.0),
        ],
    )
    assert sampler.num_compilations == count


def test_memory_is_bounded_by_the_context(sampler):
    limits = {"batch_size": sampler.batch_size, "limits": sampler.limits}
    batch = BatchScheduler(
        sampler.engine,
        sampler.open_sessions([sampler.prepare(r) for r in MIXED], lambda *event: None),
        **limits,
    )
    batch.run()
    model = tiny.CONFIG.model
    per_token = 2 * model.num_layers * model.num_kv_heads * model.head_dim * 4 + 3 * 4
    rows, most = 4 * 3, 128  # the power of two above max_length
    assert 0 < kv_cache.num_bytes(batch.cache) <= rows * 2 * most * per_token


@pytest.mark.parametrize(
    ("options", "prompt", "tokens", "stop"),
    [
        ({"max_tokens": 7}, ["hello"], "ab", "max_tokens"),
        ({"max_tokens": 500}, ["hello"], "ab", "cache_full"),
        ({"max_tokens": 500}, ["hello"], "<", "end"),
        ({"max_tokens": 500, "max_images": 2}, ["hello"], "a|", "max_images"),
        ({"max_tokens": 500, "max_images": 99}, ["hello"], "|", "cache_full"),
        ({"max_tokens": 0, "draw_first": True}, ["hello"], "a|", "max_tokens"),
    ],
    ids=["tokens", "text fills the cache", "end", "images", "images fill the cache", "no text"],
)
def test_stops(sampler, options, prompt, tokens, stop):
    codes = {"<": TOKENIZER.endoftext, "|": TOKENIZER.vision_start}
    write_only(sampler, *(codes.get(c, ord(c)) for c in tokens))
    (result,), _ = run(sampler, [request(*prompt, size=(32, 48), **options)])
    assert result.stop == stop
    written = sum(len(t) for t in texts(result))
    assert result.document.items == (*document(*prompt).items, *result.items)
    assert result.document.complete == (stop == "end")
    if stop == "end":
        assert not result.items
    if stop == "max_tokens":
        assert written == options["max_tokens"]
    if stop == "max_images":
        assert len(images_of(result)) == 2 and isinstance(result.items[-1], Image)
    if stop == "cache_full" and tokens == "ab":
        assert len("hello") + written == MAX_LENGTH
    if stop == "cache_full" and tokens == "|":
        # hello, and for each image <vs>, 6 ViT tokens, <ve>: 11 of them fit in 100 tokens;
        # the twelfth is drawn and cannot be kept.
        assert len(images_of(result)) == 12
    if options.get("draw_first"):
        assert len(images_of(result)) == 1 and not texts(result)


def test_chats_end_with_their_own_token_and_keep_their_roles(sampler):
    write_only(sampler, TOKENIZER.im_end)
    chat = Document((Text("hi", role="user", loss=False),), id="chat")
    options = SamplingOptions(num_steps=2, draw_first=True, size=(16, 16), max_images=3)
    (result,), _ = run(sampler, [Request(chat, 0, options)])
    assert result.stop == "end"
    (item,) = result.items
    assert isinstance(item, Image) and item.role == "assistant" and item.pixels.shape == (16, 16, 3)


def test_forbidden_tokens_are_never_written(sampler):
    """However likely the model finds them: control tokens, and images where there are none."""
    modules, params = replay.tiny_model()
    forbidden = [TOKENIZER.image_pad, TOKENIZER.vision_end, TOKENIZER.im_start]
    table = np.array(params["token_embedding"])
    loud = 50 * np.random.default_rng(0).normal(size=(2, table.shape[1]))
    for token, row in zip([*forbidden, TOKENIZER.vision_start], [*loud, *-loud], strict=True):
        table[token] = row  # of the two and their negatives one is always far ahead
    best = []

    def probe(what, seen):
        best.append(int(np.argmax(seen["logits"][0])))

    from mogao_jax.sampling.sampler import Sampler

    loud_params = params | {"token_embedding": table}
    free = Sampler(modules, loud_params, replay.encoders(), TOKENIZER, probe=probe, text_chunk=5)
    (result,) = free.sample([request("ab", allow_images=False, temperature=0.0)])
    assert set(best) <= {*forbidden, TOKENIZER.vision_start} and len(best) >= 1
    assert all(ord(c) < 256 or c == "\ufffd" for t in texts(result) for c in t)
    assert not images_of(result)


def test_a_result_fed_back_in_goes_on(sampler):
    whole = request("once ", seed=9, max_tokens=20, allow_images=False)
    (expected,), _ = run(sampler, [whole])
    cut = dataclasses.replace(whole, options=dataclasses.replace(whole.options, max_tokens=8))
    (first,), _ = run(sampler, [cut])
    rest = dataclasses.replace(
        whole,
        document=first.document,
        options=dataclasses.replace(whole.options, max_tokens=12),
    )
    (second,), _ = run(sampler, [rest])
    assert texts(first)[0] + texts(second)[0] == texts(expected)[0]

    # Over an image: the text after it is the same (it sees the same pixels).
    write_only(sampler, *replay.LETTERS, TOKENIZER.vision_start)
    whole = request("once ", seed=11, max_tokens=60, max_images=2, temperature=4.0, size=(16, 16))
    (expected,), _ = run(sampler, [whole])
    one = dataclasses.replace(whole, options=dataclasses.replace(whole.options, max_images=1))
    (first,), _ = run(sampler, [one])
    (second,), _ = run(sampler, [dataclasses.replace(one, document=first.document)])
    together = [*first.items, *second.items]
    assert [type(i) for i in together] == [type(i) for i in expected.items]
    assert [i.text for i in together if isinstance(i, Text)] == texts(expected)
    np.testing.assert_array_equal(images_of(first)[0], images_of(expected)[0])


def test_sizes(sampler):
    """Of the option, else of the document's last image, else the largest square."""
    options = {"draw_first": True, "max_images": 1, "guidance_scale": 1.0,
               "image_guidance_scale": 1.0}  # fmt: skip
    cases = [
        (request("a", size=(32, 48), **options), (32, 48)),
        (request("a", image(100, 50), "b", **options), (48, 32)),
        (request("a", **options), (32, 32)),  # of at most 32 * 48 pixels
    ]
    results, _ = run(sampler, [c for c, _ in cases])
    assert [images_of(r)[0].shape[:2] for r in results] == [size for _, size in cases]


def test_events_tell_what_the_result_has(sampler):
    events: list = []
    requests = [MIXED[0], MIXED[3]]
    results = sampler.sample(requests, lambda index, event: events.append((index, event)))
    for k, result in enumerate(results):
        own = [e for i, e in events if i == k]
        said = "".join(e.text for e in own if isinstance(e, TextChunk))
        assert said == "".join(texts(result))
        (finished,) = [e for e in own if isinstance(e, Finished)]
        assert finished is own[-1] and finished.result.stop == result.stop
        same = zip(finished.result.document.items, result.document.items, strict=True)
        assert all(a is b for a, b in same)
        shown = [e.image for e in own if isinstance(e, GeneratedImage)]
        assert [x.pixels is y for x, y in zip(shown, images_of(result), strict=True)]
        sizes = [e.size for e in own if isinstance(e, ImageStarted)]
        assert sizes == [p.shape[:2] for p in images_of(result)]
        steps = [(e.step, e.num_steps) for e in own if isinstance(e, ImageProgress)]
        num_steps = requests[k].options.num_steps
        assert steps.count((num_steps, num_steps)) == len(shown)


def test_more_requests_than_a_batch_holds(sampler):
    requests = [request("a" * (k + 1), seed=k, max_tokens=3, allow_images=False) for k in range(6)]
    results = sampler.sample(requests)
    for k, result in enumerate(results):
        assert result.document.items[0].text == "a" * (k + 1)
        assert len(texts(result)[0]) == 3
    assert sampler.sample([]) == []


def test_what_cannot_be_served_is_refused(sampler):
    with pytest.raises(DocumentError, match=r"needs 121 tokens.*holds 100"):
        sampler.sample([request("a" * 120)])
    with pytest.raises(RequestError, match="seed is -1"):
        sampler.sample([request("a", seed=-1)])
    with pytest.raises(RequestError, match="num_steps is 0"):
        sampler.sample([request("a", num_steps=0)])
    with pytest.raises(RequestError, match="size"):
        sampler.sample([request("a", size=(17, 16))])
