"""The promises of the objective: no leak, packed = alone, ECTF = the slow way, contexts exact."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
import tiny_system as tiny

from mogao_jax.sequence.batch import FULL, IMAGE_ONLY
from mogao_jax.sequence.document import Document, Image, Text
from mogao_jax.sequence.packing import pack_row, stack_rows
from mogao_jax.training.step import draw_noise, losses, model_inputs

TOLERANCE = 1e-5
VAE_ONLY = {"understanding_encoder": "vae"}


@pytest.fixture(scope="module")
def modules():
    return tiny.load_modules()


@pytest.fixture(scope="module")
def params(modules):
    return tiny.make_params(modules)


@pytest.fixture(scope="module")
def run(modules, params):
    """Losses of a batch."""
    return runner(modules, params)


def runner(modules, params):
    compiled = jax.jit(lambda b, i, t: losses(modules, params, b, i, t))
    return lambda batch: jax.device_get(compiled(batch, *tiny.inputs(batch, modules)))


@pytest.fixture(scope="module")
def gradient(modules):
    """Sums of weighted losses and their gradient, jitted once."""

    def objective(params, batch, inputs, target):
        out = losses(modules, params, batch, inputs, target)
        return out.ntp.total + out.flow.total, out

    compiled = jax.jit(jax.value_and_grad(objective, has_aux=True))
    return lambda params, batch: jax.device_get(
        compiled(params, batch, *tiny.inputs(batch, modules))
    )


def per_document(out, batch, row: int, segment: int):
    """(NTP losses, flow losses) of one segment's tokens."""
    und = batch.und.meta.segment[row] == segment
    noised = batch.noised.meta.segment[row] == segment
    return out.ntp_per_token[row][und], out.flow_per_token[row][noised]


def test_packed_neighbours_and_place_change_nothing(run):
    a, b, c = (tiny.interleaved_document(i) for i in range(3))
    alone = tiny.rows([[a]])
    ntp, flow = per_document(run(alone), alone, 0, 1)
    assert (ntp > 0).any() and (flow > 0).all()
    for packed, segment in ((tiny.rows([[a, b, c]]), 1), (tiny.rows([[b, c, a]]), 3)):
        other_ntp, other_flow = per_document(run(packed), packed, 0, segment)
        assert tiny.relative_error(other_ntp, ntp) < TOLERANCE
        assert tiny.relative_error(other_flow, flow) < TOLERANCE


def test_gradients_packed_are_the_sum_of_those_alone(gradient, params):
    documents = [tiny.interleaved_document(i) for i in range(3)]
    (_, together), packed = gradient(params, tiny.rows([documents]))
    parts = [gradient(params, tiny.rows([[d]])) for d in documents]
    summed = jax.tree.map(lambda *g: sum(g), *[g for _, g in parts])
    assert tiny.relative_error(packed, summed) < TOLERANCE
    total = sum(out.flow.total + out.ntp.total for (_, out), _ in parts)
    np.testing.assert_allclose(together.flow.total + together.ntp.total, total, rtol=TOLERANCE)


def _with_item(document: Document, index: int, item) -> Document:
    items = list(document.items)
    items[index] = item
    return Document(items, id=document.id)


def test_a_target_image_is_seen_only_by_what_comes_after_it(modules, params, run):
    """Items: text 0, image 1, text 2, image 3, text 4. Only the pixels of image 1 change."""
    document = tiny.interleaved_document(0)
    old = document.items[1]
    changed = _with_item(document, 1, Image(pixels=255 - old.pixels))
    before, after = tiny.rows([[document]]), tiny.rows([[changed]])
    np.testing.assert_array_equal(before.und.meta.order, after.und.meta.order)
    first, second = sorted(set(before.noised.meta.order[0]) - {0})[:2]
    a, b = run(before), run(after)

    order = before.und.meta.order[0]
    weighted = before.und.loss_weights[0] > 0
    early = weighted & (order < first)  # text before the image
    late = weighted & (order > first)
    np.testing.assert_array_equal(a.ntp_per_token[0][early], b.ntp_per_token[0][early])
    assert (a.ntp_per_token[0][late] != b.ntp_per_token[0][late]).all()
    assert early.any() and late.any()

    # Its own noised copy: fix what it is given (x_t and target), change only the clean history.
    inputs, _ = tiny.inputs(before, modules)
    other, _ = tiny.inputs(after, modules)
    mixed = inputs._replace(clean_latents=other.clean_latents, vit_features=other.vit_features)
    predict = jax.jit(lambda i: modules.model.apply({"params": params}, i).velocity)
    v, w = np.asarray(predict(inputs)[0]), np.asarray(predict(mixed)[0])
    is_first = before.noised.meta.order[0] == first
    is_second = before.noised.meta.order[0] == second
    np.testing.assert_array_equal(v[is_first], w[is_first])
    assert (v[is_second] != w[is_second]).any(-1).all()


def test_later_items_change_nothing_earlier(run):
    document = tiny.interleaved_document(1)
    rng = np.random.default_rng(9)
    shape = document.items[3].pixels.shape[:2]
    changed = _with_item(document, 3, tiny.image(rng, *shape))
    changed = _with_item(changed, 4, Text("q" * len(document.items[4].text)))
    before, after = tiny.rows([[document]]), tiny.rows([[changed]])
    a, b = run(before), run(after)
    changed_from = max(set(before.noised.meta.order[0]))  # the order of the second image
    earlier = before.und.meta.order[0] < changed_from
    # The last earlier token predicts <|vision_start|> or text that stays; all must be equal.
    np.testing.assert_array_equal(a.ntp_per_token[0][earlier], b.ntp_per_token[0][earlier])
    first_image = (before.noised.meta.order[0] > 0) & (before.noised.meta.order[0] < changed_from)
    assert first_image.any()
    np.testing.assert_array_equal(
        a.flow_per_token[0][first_image], b.flow_per_token[0][first_image]
    )


def test_ectf_equals_one_pass_per_target_image(gradient, params):
    """One pass over K noised images = K passes, each noising one image over clean history."""
    document = tiny.interleaved_document(2, num_images=3)
    (_, out), together = gradient(params, tiny.rows([[document]]))
    grads, flow_total, ntp_totals = [], 0.0, []
    for k in (1, 3, 5):  # places of the images among the items
        items = list(document.items[: k + 1])
        for i in (1, 3, 5):
            if i < k:
                items[i] = Image(pixels=items[i].pixels, loss=False)
        items = [Text(i.text, loss=False) if isinstance(i, Text) else i for i in items]
        one = Document(items, id=document.id, complete=False)
        laid = tiny.rows([[one]])
        # <|vision_start|> is the text pass's to train; here only the flow counts.
        laid = laid._replace(
            und=laid.und._replace(loss_weights=np.zeros_like(laid.und.loss_weights))
        )
        (_, single), grad = gradient(params, laid)
        flow_total += float(single.flow.total)
        grads.append(grad)
    # And one pass for the text, over clean images only: ViT is all that text reads.
    text_only = tiny.rows([[document]])
    text_only = text_only._replace(
        noised=text_only.noised._replace(loss_weights=np.zeros_like(text_only.noised.loss_weights))
    )
    (_, text), grad = gradient(params, text_only)
    grads.append(grad)
    ntp_totals.append(float(text.ntp.total))
    np.testing.assert_allclose(out.flow.total, flow_total, rtol=TOLERANCE)
    np.testing.assert_allclose(out.ntp.total, sum(ntp_totals), rtol=TOLERANCE)
    assert tiny.relative_error(together, jax.tree.map(lambda *g: sum(g), *grads)) < TOLERANCE


def test_laying_out_everything_changes_no_loss(run):
    documents = [tiny.interleaved_document(3), tiny.interleaved_document(4)]
    documents = [Document(d.items[:-1], id=d.id) for d in documents]  # ending in an image
    everything = tiny.config(layout={"lay_out_everything": True})
    lean, full = tiny.rows([documents]), tiny.rows([documents], everything)
    assert (full.clean.image >= 0).sum() > (lean.clean.image >= 0).sum()
    assert (full.und.vit_index >= 0).sum() > (lean.und.vit_index >= 0).sum()
    a, b = run(lean), run(full)
    np.testing.assert_allclose(a.ntp.total, b.ntp.total, rtol=TOLERANCE)
    np.testing.assert_allclose(a.flow.total, b.flow.total, rtol=TOLERANCE)


def test_image_only_context_is_the_document_without_its_text(run):
    """Dropping the condition = laying out a document of images alone, positions included."""
    document = tiny.interleaved_document(5)
    images = Document(
        [i for i in document.items if isinstance(i, Image)], id=document.id, complete=False
    )
    dropped = tiny.rows([[document]], context=IMAGE_ONLY)
    alone = tiny.rows([[images]], context=FULL)
    a, b = run(dropped), run(alone)
    _, flow_dropped = per_document(a, dropped, 0, 2)
    _, flow_alone = per_document(b, alone, 0, 1)
    assert len(flow_dropped) == len(flow_alone) > 0
    assert tiny.relative_error(flow_dropped, flow_alone) < TOLERANCE


def test_empty_context_sees_nothing(run):
    """One image has the same prediction whatever document it was dropped from."""
    rng = np.random.default_rng(0)
    image = tiny.image(rng)
    flows = []
    for text in ("a", "quite another text"):
        document = Document([Text(text), image], id="same")
        # The uid (and so the noise) follows the document's id and the image's place.
        batch = tiny.rows([[document]], context=2)
        flows.append(per_document(run(batch), batch, 0, 2)[1])
    np.testing.assert_array_equal(*flows)
    full = [
        per_document(run(b), b, 0, 1)[1]
        for b in (tiny.rows([[Document([Text(t), image], id="same")]]) for t in ("a", "b"))
    ]
    assert (full[0] != full[1]).any()


@pytest.mark.parametrize(
    "sections",
    [
        {"model": {"fusion": "shared", "rope": "m_rope"}, "layout": VAE_ONLY},
        {"model": {"fusion": "shared"}, "layout": VAE_ONLY},
        {"model": {"scan_layers": True, "remat": "full"}, "layout": {"vit_attention": "causal"}},
        {"model": {"tie_embeddings": False}, "layout": {"text_positions": "t"}},
    ],
    ids=["ablation-A", "ablation-B", "scan-remat-causal-vit", "untied"],
)  # fmt: skip
def test_variants_keep_packed_equal_to_alone(sections):
    cfg = tiny.config(**sections)
    modules = tiny.load_modules(cfg)
    run = runner(modules, tiny.make_params(modules))
    a, b = tiny.interleaved_document(0), tiny.interleaved_document(1)
    alone, packed = tiny.rows([[a]], cfg), tiny.rows([[b, a]], cfg)
    expected = per_document(run(alone), alone, 0, 1)
    found = per_document(run(packed), packed, 0, 2)
    for x, y in zip(found, expected, strict=True):
        assert len(x) > 0 and tiny.relative_error(x, y) < TOLERANCE


def test_text_reads_images_through_the_vae_in_ablation_b(params):
    """VAE-only understanding: the answer depends on the image; with the ViT mask it could not."""
    cfg = tiny.config(layout={"understanding_encoder": "vae"})
    rng = np.random.default_rng(2)
    documents = [
        Document([tiny.image(rng), Text("answer")], id="d"),
        Document([tiny.image(rng), Text("answer")], id="d"),
    ]
    documents = [
        Document([Image(pixels=d.items[0].pixels, loss=False), d.items[1]], id="d")
        for d in documents
    ]

    def answers(reads_vae: bool):
        modules = tiny.load_modules(cfg)
        if not reads_vae:
            modules = dataclasses.replace(modules, model=modules.model.clone(text_reads_vae=False))
        run = runner(modules, tiny.make_params(modules))
        return [run(tiny.rows([[d]], cfg)).ntp_per_token for d in documents]

    seen, unseen = answers(True), answers(False)
    assert (seen[0] != seen[1]).any()
    np.testing.assert_array_equal(unseen[0], unseen[1])


def test_noised_copies_are_each_as_if_alone(modules, params):
    """Three noised copies in one pass = three passes with one of them each."""
    thrice = tiny.config(layout={"noised_copies": 3}, packing={"noised_tokens": 96})
    document = tiny.interleaved_document(6)
    laid = tiny.lay(document, thrice)
    together = stack_rows([pack_row([laid], tiny.BUDGETS._replace(noised=96), tiny.SIDE)])
    alone = tiny.rows([[document]])
    draw = draw_noise(jax.random.key(3), together.images, thrice)
    times = np.sort(np.asarray(draw.timesteps[0, 0]))
    assert (np.diff(times) > 0).all()  # spread out, not three times the same

    @jax.jit
    def run(batch, noise):
        inputs, target = model_inputs(modules, tiny.encoders(), batch, noise)
        return losses(modules, params, batch, inputs, target)

    out = run(together, draw)
    for copy in range(3):
        one = draw._replace(timesteps=draw.timesteps[:, :, copy, None],
                            noise=draw.noise[:, :, copy, None])  # fmt: skip
        single = run(alone, one)
        mine = (together.noised.image >= 0) & (together.noised.copy == copy)
        theirs = alone.noised.image >= 0
        assert tiny.relative_error(
            out.flow_per_token[mine], single.flow_per_token[theirs]
        ) < TOLERANCE  # fmt: skip
        np.testing.assert_allclose(out.ntp.total, single.ntp.total, rtol=TOLERANCE)
