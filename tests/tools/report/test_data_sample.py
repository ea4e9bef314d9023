"""The data sample: a packed row taken apart gives back what was laid out."""

from __future__ import annotations

import json

import numpy as np
import pytest
from report_rows import IMAGES, TOKENIZER, pack, story_and_question

from mogao_jax.config.schema import PackingConfig
from mogao_jax.errors import DataError
from mogao_jax.sequence.batch import EMPTY, FULL, IMAGE_ONLY
from mogao_jax.sequence.packing import budgets, pack_row, stack_rows
from mogao_jax.tools.report import data_sample


def row(context=FULL):
    return pack(story_and_question(context))


def _save(tmp_path, batch, **options):
    data_sample.save_data_sample(
        batch, TOKENIZER, tmp_path, sources=("stories", "questions"), **options
    )
    return data_sample.load_data_sample(tmp_path)


def _text(document, trained=None):
    runs = [i for i in document["items"] if i["type"] == "text"]
    return "".join("".join(r["tokens"]) for r in runs if trained in (None, r["trained"]))


def _images(document):
    return [i for i in document["items"] if i["type"] == "image"]


def test_documents_come_back(tmp_path):
    record, arrays = _save(tmp_path, row())
    story, question = record["documents"]
    assert (story["source"], question["source"]) == ("stories", "questions")
    assert [story["segment"], question["segment"]] == [1, 2]

    # Nothing predicts the first token; after an image its end is given, not learned.
    assert _text(story, trained=False) == "O<|vision_end|><|vision_end|>"
    learned = "nce <|vision_start|>then ünd<|vision_start|><|endoftext|>"
    assert _text(story, trained=True) == learned
    first, second = _images(story)
    assert first["copies"] == {"clean": 6, "noised": 6, "ViT": first["copies"]["ViT"]}
    assert set(second["copies"]) == {"ViT", "noised"} and second["copies"]["noised"] == 2
    assert first["t"] < second["t"] and first["context"] == "full"
    np.testing.assert_array_equal(arrays[f"image_{first['image']}"], IMAGES[0])
    np.testing.assert_array_equal(arrays[f"image_{second['image']}"], IMAGES[1])

    assert "What <b>is it?" in _text(question, trained=False)
    assert _text(question, trained=True).startswith("A cat.")
    (image,) = _images(question)
    assert set(image["copies"]) == {"ViT"} and image["context"] == ""


def test_an_image_with_vit_tokens_alone_is_put_together_from_patches(tmp_path):
    from mogao_jax import images

    record, arrays = _save(tmp_path, row())
    (image,) = _images(record["documents"][1])
    shown = arrays[f"image_{image['image']}"]
    height, width = images.vit_size(32, 32, mode="native", vit_max_pixels=1003520)
    np.testing.assert_array_equal(shown, images.resize(IMAGES[2], height, width))


def test_time_is_that_of_the_layout(tmp_path):
    """T goes up by one for each text token and each image (docs/method.md section 5)."""
    record, _ = _save(tmp_path, row())
    for document in record["documents"]:
        expected = 0
        for item in document["items"]:
            assert item["t"] == expected
            if item["type"] == "image":
                expected += 1
            else:
                expected += len(_ids(item["tokens"]))


def _ids(tokens):
    """Ids of decoded tokens: special tokens count one, others their bytes."""
    return [
        b for t in tokens for b in ([0] if t.startswith("<|") and t.endswith("|>") else t.encode())
    ]


@pytest.mark.parametrize(("context", "name"), [(IMAGE_ONLY, "image_only"), (EMPTY, "empty")])
def test_reduced_contexts_are_segments_of_their_own(tmp_path, context, name):
    record, _ = _save(tmp_path, row(context))
    forms = [d["context"] for d in record["documents"] if d["source"] == "stories"]
    assert forms[0] == "full" and set(forms[1:]) == {name}
    reduced = [d for d in record["documents"] if d["context"] == name]
    assert all("Once" not in _text(d) for d in reduced)
    noised = [p for d in reduced for p in _images(d) if "noised" in p["copies"]]
    assert len(noised) == 2


def test_fill_counts_what_is_no_padding(tmp_path):
    batch = row()
    record, arrays = _save(tmp_path, batch)
    fill = record["fill"]
    assert fill["und tokens"] == {"used": int((batch.und.meta.segment > 0).sum()), "budget": 192}
    assert fill["noised tokens"] == {"used": 8, "budget": 24}
    assert fill["clean tokens"] == {"used": 6, "budget": 16}
    assert fill["images"] == {"used": 2, "budget": 4}
    streams = data_sample.token_meta(arrays)
    for name, stream in (("und", batch.und), ("clean", batch.clean), ("noised", batch.noised)):
        for saved, given in zip(streams[name], stream.meta, strict=True):
            np.testing.assert_array_equal(saved, given)


def test_a_row_of_a_batch_is_taken(tmp_path):
    alone = _save(tmp_path, row())[0]
    batch = stack_rows([row(EMPTY), row()])
    assert _save(tmp_path, batch, row=1)[0] == alone
    assert _save(tmp_path, stack_rows([batch, batch]), row=1)[0] == alone


def test_characters_of_several_tokens_are_put_together():
    ids = TOKENIZER.encode("aü€😀") + [TOKENIZER.im_end] + [0xFF] * 5
    tokens = data_sample.split_tokens(ids, TOKENIZER)
    assert tokens[:5] == ["a", "ü", "€", "😀", "<|im_end|>"]
    assert "".join(tokens[5:]).replace("\ufffd", "") == ""


def test_an_empty_row(tmp_path):
    config = PackingConfig(und_tokens=8, clean_tokens=4, noised_tokens=4, images=1, vit_patches=4)
    record, _ = _save(tmp_path, pack_row([], budgets(config), canvas_side=16))
    assert record["documents"] == []


def test_damaged_and_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        data_sample.load_data_sample(tmp_path)
    _save(tmp_path, row())
    whole = (tmp_path / data_sample.NPZ_NAME).read_bytes()
    (tmp_path / data_sample.NPZ_NAME).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="damaged"):
        data_sample.load_data_sample(tmp_path)
    (tmp_path / data_sample.NPZ_NAME).write_bytes(whole)
    (tmp_path / data_sample.JSON_NAME).write_text(json.dumps({"documents": []}))
    with pytest.raises(DataError, match="damaged"):
        data_sample.load_data_sample(tmp_path)


def test_samples_of_older_runs_are_read(tmp_path):
    record, _ = _save(tmp_path, row())
    text = json.dumps(record).replace('"t":', '"time":').replace('"image":', '"picture":')
    (tmp_path / data_sample.JSON_NAME).write_text(text)
    assert data_sample.load_data_sample(tmp_path)[0] == record
