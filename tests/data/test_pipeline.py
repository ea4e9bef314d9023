"""The pipeline end to end: batches, exact resume, broken and over-long records, validation."""

import dataclasses
import json
import logging

import jax
import numpy as np
import pytest

from mogao_jax.config.schema import (
    DataConfig,
    ImageConfig,
    MogaoConfig,
    PackingConfig,
    SourceConfig,
    TrainConfig,
)
from mogao_jax.data import pipeline
from mogao_jax.errors import ConfigError, DataError
from mogao_jax.sequence.batch import EMPTY, FULL, PackedBatch
from mogao_jax.sequence.document import Document, Image, Text, to_json
from mogao_jax.sequence.packing import fill_shares
from mogao_jax.tokenizer import ByteTokenizer

TOKENIZER = ByteTokenizer()
PACKING = PackingConfig(
    und_tokens=120, clean_tokens=16, noised_tokens=16, images=6, vit_patches=64, pool=12
)


def picture(rng: np.random.Generator) -> Image:
    h, w = rng.choice([16, 32], 2)
    return Image(pixels=rng.integers(0, 256, (h, w, 3), dtype=np.uint8), role="assistant")


def documents(n: int, seed: int = 0) -> list[Document]:
    rng = np.random.default_rng(seed)
    made = []
    for i in range(n):
        text = Text(f"{i}: " + "x" * int(rng.integers(0, 25)), role="user", loss=False)
        items = [
            [Text(f"plain {i}")],
            [text, picture(rng)],
            [dataclasses.replace(picture(rng), role="user", loss=False), text, picture(rng)],
        ][i % 3]
        made.append(Document(tuple(items), id=f"doc-{i}"))
    return made


def write(path, docs, extra=()):
    lines = [json.dumps(to_json(d)) for d in docs] + list(extra)
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def make_config(paths: dict[str, str], **kw) -> MogaoConfig:
    data = {"validation_documents": 8, **kw.pop("data", {})}
    sources = {name: SourceConfig(kind="documents", path=path) for name, path in paths.items()}
    return MogaoConfig(
        images=ImageConfig(max_pixels=1024, max_side=32),
        packing=kw.pop("packing", PACKING),
        data=DataConfig(sources=sources, **data),
        train=TrainConfig(**{"global_batch_rows": 2, "grad_accum_steps": 3, **kw.pop("train", {})}),
        **kw,
    )


def leaves(x):
    return jax.tree.leaves(x)


def assert_same(a, b):
    for x, y in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def identities(batch: PackedBatch) -> set[bytes]:
    """The texts of a batch's documents (which start with their numbers)."""
    found = set()
    und = batch.und
    for row in np.ndindex(und.tokens.shape[:-1]):
        for segment in range(1, und.meta.segment[row].max() + 1):
            tokens = und.tokens[row][und.meta.segment[row] == segment]
            found.add(bytes(int(t) for t in tokens if t < 256))
    return found


@pytest.fixture
def two_sources(tmp_path):
    return make_config(
        {
            "a": write(tmp_path / "a.jsonl", documents(60)),
            "b": write(tmp_path / "b.jsonl", documents(40, seed=1)),
        }
    )


def test_batches_have_fixed_shapes_and_both_sources(two_sources):
    iterator = pipeline.make_train_iterator(two_sources, tokenizer=TOKENIZER)
    batches = [next(iterator) for _ in range(4)]
    iterator.close()
    for batch in batches:
        assert batch.und.tokens.shape == (3, 2, 120)
        assert batch.clean.positions.shape == (3, 2, 16, 3)
        assert batch.images.pixels.shape == (3, 2, 6, 32, 32, 3)
        assert batch.vit.pixels.shape == (3, 2, 64, 588)
        assert (batch.und.meta.segment[..., 0] == 1).all()  # no row is empty
        assert batch.noised.loss_weights.sum() > 0 and batch.und.loss_weights.sum() > 0
        shares = fill_shares(batch)
        assert shares["und"] == pytest.approx((batch.und.tokens > 0).mean(), abs=0.01)
    sources = np.concatenate([b.und.source[b.und.meta.segment > 0] for b in batches])
    assert set(sources) == {0, 1}
    assert not np.array_equal(batches[0].und.tokens, batches[1].und.tokens)


@pytest.mark.parametrize("after", [0, 1, 3])
def test_resume_is_exact(two_sources, after):
    first = pipeline.make_train_iterator(two_sources, tokenizer=TOKENIZER)
    for _ in range(after):
        next(first)
    state = json.loads(json.dumps(first.get_state()))
    want = [next(first) for _ in range(3)]
    second = pipeline.make_train_iterator(two_sources, tokenizer=TOKENIZER)
    next(second)  # as if it had been used for something else
    second.set_state(state)
    assert second.get_state() == state
    got = [next(second) for _ in range(3)]
    assert second.get_state() == first.get_state()
    first.close()
    second.close()
    assert_same(want, got)


def test_states_keep_their_structure(two_sources):
    iterator = pipeline.make_train_iterator(two_sources, tokenizer=TOKENIZER)

    def shape(state):
        if isinstance(state, dict):
            return {k: shape(v) for k, v in state.items()}
        return type(state)

    before = shape(iterator.get_state())
    next(iterator)
    assert shape(iterator.get_state()) == before
    iterator.close()


def test_grain_checkpoints_of_orbax(two_sources, tmp_path):
    import grain.checkpoint
    import orbax.checkpoint as ocp

    first = pipeline.make_train_iterator(two_sources, tokenizer=TOKENIZER)
    next(first)
    with ocp.CheckpointManager(tmp_path / "ckpt") as manager:
        manager.save(0, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(first)))
        manager.wait_until_finished()
        want = next(first)
        second = pipeline.make_train_iterator(two_sources, tokenizer=TOKENIZER)
        args = ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(second))
        manager.restore(0, args=args)
        assert_same(want, next(second))
    first.close()
    second.close()


@pytest.mark.slow
def test_worker_processes_resume_exactly(two_sources):
    config = dataclasses.replace(
        two_sources, data=dataclasses.replace(two_sources.data, num_workers=2)
    )
    first = pipeline.make_train_iterator(config, tokenizer=TOKENIZER)
    next(first)
    state = json.loads(json.dumps(first.get_state()))
    want = next(first)
    first.close()
    second = pipeline.make_train_iterator(config, tokenizer=TOKENIZER)
    second.set_state(state)
    got = next(second)
    second.close()
    assert_same(want, got)


def test_processes_share_out_the_documents(tmp_path):
    """In the first epoch no document comes up in two processes."""
    config = make_config(
        {"a": write(tmp_path / "a.jsonl", documents(120))},
        packing=dataclasses.replace(PACKING, pool=4),
        train={"global_batch_rows": 2, "grad_accum_steps": 1},
    )
    seen = []
    for process in range(2):
        iterator = pipeline.make_train_iterator(
            config, tokenizer=TOKENIZER, reader=process, num_readers=2
        )
        batch = next(iterator)
        iterator.close()
        assert batch.und.tokens.shape == (1, 1, 120)
        seen.append(identities(batch))
    assert seen[0] and seen[1] and not seen[0] & seen[1]
    with pytest.raises(ConfigError, match="global_batch_rows"):
        pipeline.make_train_iterator(config, tokenizer=TOKENIZER, num_readers=3)


BROKEN = ["{", '{"items": []}', '{"items": [{"type": "image", "path": "no.png"}]}']


def test_broken_records_are_skipped_named_and_counted(tmp_path, caplog):
    config = make_config({"mine": write(tmp_path / "a.jsonl", documents(60), BROKEN)})
    preparer = pipeline.make_preparer(config, TOKENIZER, "train")
    rows = pipeline.RowIterator(preparer, 0, 1)
    with caplog.at_level(logging.WARNING):
        for _ in range(60):  # several epochs
            next(rows)
    assert rows.broken.num_broken == 3 == next(rows).num_broken
    named = [r.message for r in caplog.records if r.message.startswith("Skipped")]
    assert len(named) == 3  # once each, not once an epoch
    assert any("mine: a.jsonl:61: not valid JSON" in m for m in named)
    assert any("a.jsonl:63" in m and "no.png' does not exist" in m for m in named)
    again = pipeline.RowIterator(preparer, 0, 1)
    again.set_state(rows.get_state())
    next(again)
    assert again.broken.num_broken == 3


@pytest.mark.parametrize("limit, stops", [(2, True), (3, False)])
def test_too_many_broken_records_stop_the_run(tmp_path, limit, stops):
    path = write(tmp_path / "a.jsonl", documents(60), BROKEN)
    config = make_config({"mine": path}, data={"max_broken": limit})
    iterator = pipeline.make_train_iterator(config, tokenizer=TOKENIZER)
    if not stops:
        for _ in range(8):
            next(iterator)
    else:
        with pytest.raises(DataError, match=r"3 records are broken.*max_broken \(2\)"):
            for _ in range(8):
                next(iterator)
    iterator.close()


def test_the_limit_counts_all_shards_together():
    row = pipeline.Row(PackedBatch(*[np.zeros(1)] * 5), 0, 2)

    class Parent(pipeline.grain.DatasetIterator):
        rows = iter([row, row._replace(shard=1, num_broken=1), row, row._replace(shard=1)])

        def __next__(self):
            return next(self.rows)

        def get_state(self):
            return {}

        def set_state(self, state):
            pass

    batches = pipeline.BatchIterator(Parent(), grad_accum_steps=1, rows=2, max_broken=3)
    next(batches)
    with pytest.raises(DataError, match="4 records"):
        next(batches)


def test_over_long_documents_are_refused_and_counted(tmp_path):
    long = Document((Text("y" * 500),), id="too-long")
    config = make_config({"a": write(tmp_path / "a.jsonl", [*documents(30), long])})
    rows = pipeline.RowIterator(pipeline.make_preparer(config, TOKENIZER, "train"), 0, 1)
    for _ in range(30):
        next(rows)
    assert rows.broken.num_over_long == 1 and rows.broken.num_broken == 0


def test_over_long_documents_are_cut_at_an_item_border(tmp_path):
    items = [Text("one"), Text("two" * 10), Text("z" * 500), Text("end")]
    docs = [Document(tuple(items), id="long"), Document((Text("y" * 500), Text("q")), id="worse")]
    config = make_config(
        {"a": write(tmp_path / "a.jsonl", docs * 2)},
        packing=dataclasses.replace(PACKING, over_long="cut", pool=1),
    )
    preparer = pipeline.make_preparer(config, TOKENIZER, "train")
    cut = preparer(pipeline.Draw(0, 0, 0))
    assert (
        bytes(cut.batch.und.tokens.tolist()) == b"onetwotwotwotwotwotwotwotwotwotwo"
    )  # no end token
    refused = preparer(pipeline.Draw(0, 1, 0))
    assert (
        refused.over_long and "'worse' needs" in refused.reason and "und_tokens" in refused.reason
    )


def test_only_over_long_documents_end_in_an_error(tmp_path):
    docs = [Document((Text("y" * 500),), id=f"{i}") for i in range(3)]
    config = make_config({"a": write(tmp_path / "a.jsonl", docs)})
    iterator = pipeline.make_train_iterator(config, tokenizer=TOKENIZER)
    with pytest.raises(DataError, match="(?s)none could be used.*und_tokens=120") as e:
        next(iterator)
    assert "Grain" not in str(e.value)
    iterator.close()


def test_missing_and_empty_sources_are_found_before_training(tmp_path):
    (tmp_path / "empty").mkdir()
    for path, match in [("nowhere", "'gone'.*nothing is at"), ("empty", "holds no documents")]:
        config = make_config({"gone": str(tmp_path / path)})
        with pytest.raises(DataError, match=match):
            pipeline.make_train_iterator(config, tokenizer=TOKENIZER)


def test_validation_is_fixed_held_out_and_context_can_be_forced(two_sources):
    batches = pipeline.make_validation_batches(two_sources, TOKENIZER)
    assert batches and all(b.und.tokens.shape == (2, 120) for b in batches)
    assert_same(batches, pipeline.make_validation_batches(two_sources, TOKENIZER))
    held_out = set().union(*map(identities, batches))
    iterator = pipeline.make_train_iterator(two_sources, tokenizer=TOKENIZER)
    trained = set().union(*(identities(next(iterator)) for _ in range(12)))
    iterator.close()
    assert held_out and not held_out & trained
    for context in (FULL, EMPTY):
        forced = pipeline.make_validation_batches(two_sources, TOKENIZER, context=context)
        targets = [b.images.context[b.images.size[..., 0] > 0] for b in forced]
        assert (np.concatenate(targets) == context).all()
        uids = {int(u) for b in forced for u in b.images.uid.ravel()}
        assert {int(u) for b in batches for u in b.images.uid.ravel()} >= uids - {0}


def test_validation_rows_are_shared_out_over_processes(two_sources):
    whole = pipeline.make_validation_batches(two_sources, TOKENIZER)
    parts = [
        pipeline.make_validation_batches(two_sources, TOKENIZER, reader=p, num_readers=2)
        for p in range(2)
    ]
    for batch, a, b in zip(whole, *parts, strict=True):
        np.testing.assert_array_equal(
            batch.und.tokens, np.concatenate([a.und.tokens, b.und.tokens])
        )
