"""Layout against what docs/method.md and the config say in words, document by document."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mogao_jax.config.schema import ImageConfig, LayoutConfig, MogaoConfig
from mogao_jax.errors import ConfigError, DocumentError
from mogao_jax.sequence.batch import EMPTY, FULL, IMAGE_ONLY
from mogao_jax.sequence.document import Document, Image, Text
from mogao_jax.sequence.layout import lay_out
from mogao_jax.sequence.masking import VAE_CLEAN, VAE_NOISED, VIT
from mogao_jax.tokenizer import ByteTokenizer

TOKENIZER = ByteTokenizer()
IMAGES = ImageConfig(max_pixels=64 * 64, max_side=96, vit_resize="match_vae_grid")
NO_DROP = LayoutConfig(p_image_only=0.0, p_empty=0.0, end_after_image="never")


def random_pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def laid_out(*items, layout=NO_DROP, images=IMAGES, complete=True, seed=0, **kwargs):
    document = Document(items, id="doc", complete=complete)
    return lay_out(
        document,
        tokenizer=TOKENIZER,
        config=MogaoConfig(images=images, layout=layout),
        rng=np.random.default_rng(seed),
        **kwargs,
    )


def spelled(tokens) -> list[str]:
    names = {getattr(TOKENIZER, n): f"<{n}>" for n in ("endoftext", "im_start", "im_end")}
    names |= {TOKENIZER.vision_start: "<vs>", TOKENIZER.vision_end: "<ve>"}
    names |= {TOKENIZER.image_pad: "<V>"}
    return [names.get(int(t), chr(t)) for t in tokens]


def test_plain_document_token_by_token():
    a, b = random_pixels(32, 48), random_pixels(16, 16)
    out = laid_out(Text("ab"), Image(pixels=a), Text("c"), Image(pixels=b))
    v = ["<V>"] * 6
    assert spelled(out.und.tokens) == ["a", "b", "<vs>", *v, "<ve>", "c", "<vs>"]
    # a, b, <vs>, [image], <ve>, c, <vs>, [image]: one T each.
    orders = [0, 1, 2, 3, 3, 3, 3, 3, 3, 4, 5, 6]
    np.testing.assert_array_equal(out.und.positions[:, 0], orders)
    np.testing.assert_array_equal(out.und.meta.order, orders)
    # Trained: b after a, <vs> after b (not <ve>: it is not the model's to choose), c, <vs>.
    np.testing.assert_array_equal(out.und.loss_weights, [1, 1, 0, *[0] * 6, 1, 1, 0])
    assert spelled(out.und.targets[[0, 1, 9, 10]]) == ["b", "<vs>", "c", "<vs>"]
    # The first image: clean (a later one is generated) and noised; the last: noised only.
    np.testing.assert_array_equal(out.clean.meta.order, [3] * 6)
    np.testing.assert_array_equal(out.noised.meta.order, [3] * 6 + [7])
    np.testing.assert_array_equal(out.clean.image, [0] * 6)
    np.testing.assert_array_equal(out.noised.image, [0] * 6 + [1])
    np.testing.assert_array_equal(out.images.size, [[32, 48], [16, 16]])
    np.testing.assert_array_equal(out.images.pixels[0, :32, :48], a)
    assert not out.images.pixels[0, 32:].any() and not out.images.pixels[0, :, 48:].any()
    # Addresses on the canvas grid of 96 / 16 = 6 columns, and row-major H, W.
    np.testing.assert_array_equal(out.clean.patch, [0, 1, 2, 6, 7, 8])
    hw = [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    np.testing.assert_array_equal(out.clean.positions[:, 1:], hw)
    np.testing.assert_array_equal(out.clean.positions, out.noised.positions[:6])


def test_chat_follows_qwens_template_and_trains_only_the_assistant():
    out = laid_out(Text("hi", role="user", loss=False), Text("yo", role="assistant"))
    text = "<im_start>user\nhi<im_end>\n<im_start>assistant\nyo<im_end>"
    assert "".join(spelled(out.und.tokens)) == text
    trained = [s for s, w in zip(spelled(out.und.targets), out.und.loss_weights, strict=True) if w]
    assert trained == ["y", "o", "<im_end>"]


def test_control_tokens_in_user_text_are_text():
    out = laid_out(Text("<|vision_start|><|im_end|>"))
    control = {TOKENIZER.vision_start, TOKENIZER.im_end}
    assert not control & set(out.und.tokens.tolist())


def test_understanding_document_carries_no_vae_tokens():
    out = laid_out(
        Image(pixels=random_pixels(32, 32), role="user", loss=False),
        Text("what?", role="user", loss=False),
        Text("a cat", role="assistant"),
    )
    assert (out.und.meta.kind == VIT).sum() == 4
    assert len(out.clean.image) == len(out.noised.image) == len(out.images.uid) == 0
    assert "<vs>" not in [
        s for s, w in zip(spelled(out.und.targets), out.und.loss_weights, strict=True) if w
    ]


def test_condition_image_before_a_target_has_vit_and_clean_tokens():
    out = laid_out(
        Image(pixels=random_pixels(32, 32), role="user", loss=False),
        Text("x", role="user", loss=False),
        Image(pixels=random_pixels(32, 48), role="assistant"),
    )
    assert (out.und.meta.kind == VIT).sum() == 4
    assert len(out.clean.image) == 4 and len(out.noised.image) == 6
    trained = [s for s, w in zip(spelled(out.und.targets), out.und.loss_weights, strict=True) if w]
    assert trained == ["<vs>"]


@pytest.mark.parametrize(
    ("policy", "num_images", "ends"),
    [
        ("never", 1, False),
        ("never", 2, False),
        ("interleaved", 1, False),
        ("interleaved", 2, True),
        ("always", 1, True),
    ],
)
def test_end_after_image(policy, num_images, ends):
    layout = dataclasses.replace(NO_DROP, end_after_image=policy)
    out = laid_out(
        *[Image(pixels=random_pixels(16, 16, i)) for i in range(num_images)], layout=layout
    )
    tokens = spelled(out.und.tokens)
    assert (tokens[-1] == "<endoftext>") == ends
    assert tokens.count("<V>") == num_images - (not ends)  # read by the end token
    trained = [s for s, w in zip(spelled(out.und.targets), out.und.loss_weights, strict=True) if w]
    assert ("<endoftext>" in trained) == ends


def test_a_fourth_of_the_single_images_is_ended_sometimes():
    layout = dataclasses.replace(NO_DROP, end_after_image="sometimes")
    one, two = ([Image(pixels=random_pixels(16, 16, i)) for i in range(n)] for n in (1, 2))
    ended = [
        spelled(laid_out(*one, layout=layout, seed=seed).und.tokens)[-1] == "<endoftext>"
        for seed in range(400)
    ]
    assert 0.18 < np.mean(ended) < 0.32
    for seed in range(20):
        out = laid_out(*two, layout=layout, seed=seed)
        assert spelled(out.und.tokens)[-1] == "<endoftext>"


def test_cut_documents_have_no_end_token():
    assert spelled(laid_out(Text("ab"), complete=True).und.tokens)[-1] == "<endoftext>"
    assert spelled(laid_out(Text("ab"), complete=False).und.tokens)[-1] == "b"


def test_lay_out_everything_adds_copies_only():
    layout = dataclasses.replace(NO_DROP, lay_out_everything=True)
    items = [
        Text("a"),
        Image(pixels=random_pixels(32, 32)),
        Text("b"),
        Image(pixels=random_pixels(16, 32)),
    ]
    lean, full = laid_out(*items), laid_out(*items, layout=layout)
    assert (full.und.meta.kind == VIT).sum() == 4 + 2 and (lean.und.meta.kind == VIT).sum() == 4
    assert len(full.clean.image) == 4 + 2 and len(lean.clean.image) == 4
    for a, b in ((lean.und, full.und), (lean.noised, full.noised)):
        assert a.loss_weights.sum() == b.loss_weights.sum()
    is_text = full.und.meta.kind != VIT
    np.testing.assert_array_equal(
        full.und.positions[is_text], lean.und.positions[lean.und.meta.kind != VIT]
    )


def test_vae_only_understanding_has_clean_tokens_where_anything_follows():
    layout = dataclasses.replace(NO_DROP, understanding_encoder="vae")
    image = Image(pixels=random_pixels(32, 32), loss=False)
    out = laid_out(image, Text("a"), layout=layout)
    assert not (out.und.meta.kind == VIT).any() and len(out.vit.segment) == 0
    assert len(out.clean.image) == 4


@pytest.mark.parametrize(("context", "num_segments"), [(FULL, 1), (IMAGE_ONLY, 2), (EMPTY, 3)])
def test_contexts_are_segments_of_their_own(context, num_segments):
    items = [
        Text("a"),
        Image(pixels=random_pixels(32, 32)),
        Text("b"),
        Image(pixels=random_pixels(16, 32)),
    ]
    out = laid_out(*items, context=context)
    full = laid_out(*items)
    assert max(out.und.meta.segment) == num_segments
    # Text losses stay in the full form; every target has exactly one noised copy.
    assert out.und.loss_weights[out.und.meta.segment > 1].sum() == 0
    assert out.und.loss_weights.sum() == full.und.loss_weights.sum()
    assert sorted(out.noised.image.tolist()) == [0] * 4 + [1] * 2
    np.testing.assert_array_equal(np.sort(out.images.uid), np.sort(full.images.uid))
    assert set(out.images.context.tolist()) == {context}
    if context == IMAGE_ONLY:
        in_form = out.und.meta.segment == 2
        assert spelled(out.und.tokens[in_form]) == ["<vs>", *["<V>"] * 4, "<ve>", "<vs>"]
        np.testing.assert_array_equal(out.und.positions[in_form, 0], [0, 1, 1, 1, 1, 2, 3])
        np.testing.assert_array_equal(out.noised.positions[:, 0], [1] * 4 + [4] * 2)
        assert set(out.clean.meta.segment.tolist()) == {2}
    if context == EMPTY:
        for segment, n in ((2, 4), (3, 2)):
            assert spelled(out.und.tokens[out.und.meta.segment == segment]) == ["<vs>"]
            assert (out.noised.meta.segment == segment).sum() == n
        assert set(out.noised.positions[:, 0].tolist()) == {1.0}
        assert len(out.clean.image) == 0


def test_keeping_the_holes_of_dropped_text():
    layout = dataclasses.replace(NO_DROP, drop_positions="keep")
    items = [
        Text("abc"),
        Image(pixels=random_pixels(16, 16)),
        Text("de"),
        Image(pixels=random_pixels(16, 16)),
    ]
    full, dropped = laid_out(*items), laid_out(*items, layout=layout, context=IMAGE_ONLY)
    np.testing.assert_array_equal(full.noised.positions, dropped.noised.positions)


def test_contexts_are_drawn_with_the_configured_shares():
    layout = LayoutConfig(p_image_only=0.2, p_empty=0.3, end_after_image="never")
    rng = np.random.default_rng(0)
    document = Document([Image(pixels=random_pixels(16, 16, i)) for i in range(3)], id="d")
    drawn = [
        lay_out(
            document,
            tokenizer=TOKENIZER,
            config=MogaoConfig(images=IMAGES, layout=layout),
            rng=rng,
        ).images.context
        for _ in range(700)
    ]
    shares = np.bincount(np.concatenate(drawn), minlength=3) / 2100
    np.testing.assert_allclose(shares, [0.5, 0.2, 0.3], atol=0.04)  # 4 standard errors
    # A document's own rng decides alone.
    with pytest.raises(ConfigError, match="over 1"):
        LayoutConfig(p_image_only=0.7, p_empty=0.7)


def test_vit_positions_are_centres_on_the_vae_grid():
    """Native grids differ (28 and 16 pixels): a ViT token's H, W is where its centre lies."""
    images = dataclasses.replace(IMAGES, vit_resize="native")
    out = laid_out(Image(pixels=random_pixels(64, 64), loss=False), Text("a"), images=images)
    # 64 pixels: 4 VAE tokens, 2 ViT tokens of 32 pixels with centres at pixels 16 and 48; VAE
    # token i has its centre at pixel 16 i + 8.
    centres = [(16 - 8) / 16, (48 - 8) / 16]
    is_vit = out.und.meta.kind == VIT
    np.testing.assert_allclose(out.und.positions[is_vit, 1], np.repeat(centres, 2))
    np.testing.assert_allclose(out.und.positions[is_vit, 2], np.tile(centres, 2))
    # Matching grids: whole numbers, the VAE token's own ids.
    out = laid_out(Image(pixels=random_pixels(64, 32)), Text("a"), images=IMAGES)
    np.testing.assert_array_equal(out.und.positions[out.und.meta.kind == VIT], out.noised.positions)


def test_causal_vit_orders_its_tokens_and_leaks_nothing():
    layout = dataclasses.replace(NO_DROP, vit_attention="causal")
    items = [
        Text("a"),
        Image(pixels=random_pixels(32, 32)),
        Text("b"),
        Image(pixels=random_pixels(16, 16)),
    ]
    out, plain = laid_out(*items, layout=layout), laid_out(*items)
    vit_orders = out.und.meta.order[out.und.meta.kind == VIT]
    np.testing.assert_array_equal(vit_orders, [2, 3, 4, 5])
    assert set(out.noised.meta.order[:4].tolist()) == {2}  # strictly before its own ViT tokens
    assert set(out.clean.meta.order.tolist()) == {5}  # after all of them
    np.testing.assert_array_equal(out.und.positions, plain.und.positions)  # ids do not change


def test_text_positions_zero_mode():
    layout = dataclasses.replace(NO_DROP, text_positions="t")
    out = laid_out(Text("abc"), layout=layout)
    np.testing.assert_array_equal(out.und.positions, [[0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0]])


def test_weights_per_image_and_per_source():
    layout = dataclasses.replace(NO_DROP, flow_weight_per="image")
    items = [Image(pixels=random_pixels(32, 32)), Image(pixels=random_pixels(16, 16)), Text("ab")]
    out = laid_out(*items, layout=layout, ntp_weight=0.5, flow_weight=3.0)
    np.testing.assert_allclose(out.noised.loss_weights, [0.75] * 4 + [3.0])
    assert set(out.und.loss_weights.tolist()) == {0.0, 0.5}


def test_streams_are_sorted_and_kinds_are_right():
    rng = np.random.default_rng(3)
    for _ in range(30):
        items = [
            Image(pixels=random_pixels(16 * rng.integers(1, 3), 16), loss=bool(rng.random() < 0.7))
            if rng.random() < 0.5
            else Text("xyz"[: rng.integers(1, 4)])
            for _ in range(rng.integers(1, 8))
        ]
        layout = LayoutConfig(p_image_only=0.3, p_empty=0.3)
        out = laid_out(*items, Text("end"), layout=layout)
        for stream in (out.und, out.clean, out.noised):
            order = np.lexsort((stream.meta.order, stream.meta.segment))
            np.testing.assert_array_equal(order, np.arange(len(order)))
        assert set(out.clean.meta.kind.tolist()) <= {VAE_CLEAN}
        assert set(out.noised.meta.kind.tolist()) <= {VAE_NOISED}
        assert out.clean.loss_weights.sum() == 0


def test_nothing_to_learn_is_refused():
    with pytest.raises(DocumentError, match="'doc': nothing to learn"):
        laid_out(Text("question", loss=False))
    out = laid_out(Text("question", loss=False), require_loss=False)
    assert len(out.und.tokens) == 9
