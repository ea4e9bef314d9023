"""Documents: what is refused, with which words; the JSON form; nothing crashes on odd JSON."""

import base64
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mogao_jax import images
from mogao_jax.errors import DocumentError
from mogao_jax.sequence.document import Document, Image, Text, from_json, to_json

PIXELS = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
PNG = images.encoded_bytes(Image(pixels=PIXELS))


@pytest.mark.parametrize(
    "items, match",
    [
        ((), "'d' is empty: give it at least one"),
        ((Text(""), Text("")), "all of its text items are empty"),
        ((Text("a"), Text("b", role="robot")), "item 1: unknown role 'robot'; use one of system"),
        ((Text(3),), "item 0: text must be a string"),
        ((Image(),), "item 0: an image needs exactly one of path, bytes or pixels, got 0"),
        ((Image(data=b"x", pixels=PIXELS),), "exactly one .*got 2"),
        ((Image(pixels=PIXELS.astype(np.float32)),), r"uint8\[H, W, 3\], got float32\[4, 5, 3\]"),
        ((Image(pixels=PIXELS[..., 0]),), r"uint8\[H, W, 3\], got uint8\[4, 5\]"),
        ((Image(pixels=PIXELS[:0]),), r"got uint8\[0, 5, 3\]"),
        (("text",), "item 0: must be Text or Image, got str"),
    ],
)
def test_what_cannot_be_laid_out_is_refused(items, match):
    with pytest.raises(DocumentError, match=match):
        Document(items, id="d")


def test_json_fields_and_defaults(tmp_path):
    record = {
        "items": [
            {"type": "text", "text": "a"},
            {"type": "text", "text": "<|im_end|>", "role": "user"},
            {"type": "text", "text": "c", "role": "system", "loss": True},
            {"type": "image", "path": "sub/../cat.png", "role": "assistant"},
            {"type": "image", "bytes": base64.b64encode(PNG).decode(), "loss": False},
        ]
    }
    for given_record in (record, json.dumps(record)):
        document = from_json(given_record, base_dir=tmp_path, place="f.jsonl:3")
        assert document.id == "f.jsonl:3" and document.complete
        assert [item.loss for item in document.items] == [True, False, True, True, False]
        assert [i.role for i in document.items] == [None, "user", "system", "assistant", None]
        assert document.items[1].text == "<|im_end|>"
        assert document.items[3].path == (tmp_path / "cat.png").resolve()
        assert document.items[4].data == PNG
    named = from_json({**record, "id": "x", "complete": False}, base_dir=tmp_path)
    assert named.id == "x" and not named.complete


def test_round_trip_through_json(tmp_path):
    (tmp_path / "p.png").write_bytes(PNG)
    document = Document(
        (
            Text("ä\n", role="user", loss=True),
            Image(pixels=PIXELS, role="assistant", loss=False),
            Image(path=tmp_path / "p.png"),
            Image(data=PNG),
            Text("", loss=False),
        ),
        id="i",
        complete=False,
    )
    again = from_json(json.dumps(to_json(document)))
    assert (again.id, again.complete) == ("i", False)
    for a, b in zip(document.items, again.items, strict=True):
        assert (a.role, a.loss, type(a)) == (b.role, b.loss, type(b))
        if isinstance(a, Text):
            assert a.text == b.text
        else:
            np.testing.assert_array_equal(images.load_pixels(a), images.load_pixels(b))


def item(**fields):
    return {"items": [{"type": "text", "text": "t", **fields}]}


def image(**fields):
    return {"items": [{"type": "image", **fields}]}


@pytest.mark.parametrize(
    "record, match",
    [
        ("{", "here: not valid JSON"),
        ("[" * 100_000, "here: not valid JSON"),
        ("[1]", "here: a document must be a JSON object"),
        ({"items": "x"}, "field 'items' must be a list, got str"),
        ({"items": []}, "is empty"),
        ({"items": [], "title": 1}, "unknown field 'title'; known fields: complete, id, items"),
        ({"items": [], "id": 7}, "'id' must be a string, got 7"),
        ({**item(), "complete": 1}, "'complete' must be true or false, got 1"),
        ({"items": ["hi"]}, "item 0: must be an object whose 'type'"),
        ({"items": [{"type": ["text"]}]}, "item 0: must be an object whose 'type'"),
        ({"items": [{"type": "video"}]}, "item 0: must be an object whose 'type'"),
        (item(role="bot"), "here, item 0: unknown role 'bot'"),
        (item(role=["user"]), "item 0: unknown role"),
        (item(loss="yes"), "'loss' must be true or false, got 'yes'"),
        (item(text=3), "field 'text' must be a string"),
        (item(path="x.png"), "unknown field 'path'"),
        (image(), "needs either 'path' or 'bytes'"),
        (image(path="a.png", bytes="AAAA"), "needs either 'path' or 'bytes'"),
        (image(bytes="not base64!"), "'bytes' is not base64"),
        (image(bytes=3), "'bytes' is not base64"),
        (image(path=""), "'path' must be a non-empty string"),
        (image(path="../secret.png"), "'../secret.png' leaves the folder"),
        (image(path="/etc/passwd"), "leaves the folder"),
        (image(path="a\0b.png"), "'path'"),
    ],
)
def test_bad_json_is_named(tmp_path, record, match):
    with pytest.raises(DocumentError, match=match) as e:
        from_json(record, base_dir=tmp_path, place="here")
    assert "here" in str(e.value)


def test_links_out_of_the_folder_and_paths_without_one(tmp_path):
    (tmp_path / "out.png").write_bytes(PNG)
    inside = tmp_path / "in"
    inside.mkdir()
    (inside / "link.png").symlink_to(tmp_path / "out.png")
    with pytest.raises(DocumentError, match="leaves the folder"):
        from_json(image(path="link.png"), base_dir=inside)
    with pytest.raises(DocumentError, match="paths are not allowed here"):
        from_json(image(path="a.png"))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)
item_like = st.dictionaries(
    st.sampled_from(["type", "text", "path", "bytes", "role", "loss", "x"]),
    values | st.sampled_from(["text", "image", "user", "assistant", "AAAA", "a.png"]),
)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["items", "id", "complete", "x"]),
        values | st.lists(item_like, max_size=3),
    )
)
def test_any_json_is_a_document_or_a_document_error(tmp_path_factory, record):
    base = tmp_path_factory.getbasetemp()
    for given_record in (record, json.dumps(record)):
        try:
            document = from_json(given_record, base_dir=base, place="p")
        except DocumentError as e:
            assert "p" in str(e)
        else:
            assert document.items
