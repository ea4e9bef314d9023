import pickle

import numpy as np
import pytest

from mogao_jax.errors import DataError
from mogao_jax.sequence.document import Image, Text
from mogao_jax.worlds.shapes.tasks import TASK_CATEGORIES, TASKS
from mogao_jax.worlds.shapes.world import ShapesSource


def content(document):
    return tuple(
        (i.text, i.role, i.loss)
        if isinstance(i, Text)
        else (i.pixels.shape, i.pixels.tobytes(), i.role, i.loss)
        for i in document.items
    )


@pytest.mark.parametrize("task", TASKS)
def test_same_index_same_document(task):
    source = ShapesSource(task, seed=11)
    copy = pickle.loads(pickle.dumps(source))
    backwards = [source.with_truth(i) for i in reversed(range(20))][::-1]
    for index in range(20):
        document, truth = backwards[index]
        assert content(copy[index]) == content(document)
        assert copy.truth(index) == truth
        assert copy[np.int64(index)].id == document.id == f"shapes/{task}/train/11/{index}"
    assert len({content(d) for d, _ in backwards}) >= 15
    other = [content(ShapesSource(task, seed=12)[i]) for i in range(20)]
    assert [content(d) for d, _ in backwards] != other


@pytest.mark.parametrize(
    ("task", "category"), [(t, c) for t, cs in TASK_CATEGORIES.items() for c in cs]
)
def test_a_source_of_one_category(task, category):
    source = ShapesSource(task, category=category)
    assert {source.truth(i).category for i in range(20)} == {category}
    assert source[3].id == f"shapes/{task}/{category}/train/0/3"
    # Its own stream: else the same scenes would come twice where both sources are mixed.
    mixed = {content(ShapesSource(task)[i]) for i in range(20)}
    assert not mixed & {content(source[i]) for i in range(20)}


def test_documents_do_not_depend_on_the_global_state():
    np.random.seed(0)
    first = content(ShapesSource("story")[5])
    np.random.seed(1)
    np.random.random(10)
    assert content(ShapesSource("story")[5]) == first


def test_streams_are_never_shared():
    seen = set()
    places = [
        (seed, split, task, index)
        for seed in (0, 1, 2**40)
        for split in ("train", "validation")
        for task in TASKS
        for index in (0, 1, 2, 2**31 - 2)
    ]
    for seed, split, task, index in places:
        seen.add(ShapesSource(task, seed, split).rng(index).bytes(16))
    assert len(seen) == len(places)


@pytest.mark.parametrize(
    "task", ["qa", "t2i", "edit", "story", "clip", "describe", "state", "quiz"]
)
def test_no_validation_document_is_found_in_training(task):
    train, validation = (ShapesSource(task, split=s) for s in ("train", "validation"))
    known = {content(train[i]) for i in range(600)}
    assert not any(content(validation[i]) in known for i in range(200))


def test_roles_and_losses():
    for task in TASKS:
        source = ShapesSource(task)
        for index in range(40):
            document = source[index]
            items = document.items
            assert document.complete
            for item in items:
                assert item.loss == (item.role != "user")
            kinds = [(type(i), i.role) for i in items]
            user_image, user_text = (Image, "user"), (Text, "user")
            drawn, said = (Image, "assistant"), (Text, "assistant")
            if task in ("qa", "describe", "state"):
                assert kinds == [user_image, user_text, said]
            elif task == "quiz":
                assert kinds == [user_image, *([user_text, said] * (len(kinds) // 2))]
            elif task == "t2i":
                assert kinds == [user_text, drawn]
            elif task == "edit":
                assert kinds == [user_image, user_text, drawn]
            elif task == "story":
                images = (len(kinds) - 2) // 2
                assert kinds == [user_text, *([said, drawn] * images), said]
            elif task == "clip":
                assert kinds == [(Text, None), (Image, None)] * (len(kinds) // 2)
            else:
                assert kinds == [(Text, None)] or kinds == [user_text, said] * (len(kinds) // 2)


def test_length_and_borders():
    source = ShapesSource("t2i", size=10)
    assert len(source) == 10 and len(ShapesSource("t2i")) == 2**31 - 1
    assert ShapesSource("t2i")[2**31 - 2].id.endswith("/2147483646")
    for index in (10, -1):
        with pytest.raises(IndexError, match="outside"):
            source[index]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "t2v"}, "unknown task 't2v'; the tasks are text, qa"),
        ({"task": "qa", "split": "test"}, "unknown split 'test'"),
        ({"task": "qa", "seed": -1}, "seed"),
        ({"task": "qa", "size": 0}, "size"),
        ({"task": "qa", "category": "colors"}, "no category 'colors'; the categories are color"),
        ({"task": "edit", "category": "move"}, "'edit' has no category 'move'; leave it empty"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(DataError, match=message):
        ShapesSource(**fields)
