"""Documents as a tfds data set, written and read."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mogao_jax import images
from mogao_jax.data.sources import DocumentsSource
from mogao_jax.data.tfds_source import TfdsSource, decode
from mogao_jax.errors import DocumentError
from mogao_jax.sequence.document import Document, Image, Text, to_json


def png(shade: int) -> bytes:
    return images.encoded_bytes(Image(pixels=np.full((16, 16, 3), shade, np.uint8)))


def test_tfds_round_trip(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    from mogao_jax.data import tfds_builder

    made = [
        Document(
            (
                Text(f"ü {i}", role="user", loss=False),
                Image(data=png(i), role="assistant"),
                Text("<|im_end|>"),
            )[: 1 + i % 3],
            id=f"d{i}",
            complete=bool(i % 2),
        )
        for i in range(12)
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(to_json(d)) for d in made))
    folder = tfds_builder.prepare(path, tmp_path / "tfds")
    for split in ("train", "validation"):
        source, want = TfdsSource(folder, split), DocumentsSource(path, split)
        got = {source[i].id: source[i] for i in range(len(source))}
        assert set(got) == {want[i].id for i in range(len(want))} and got
        for i in range(len(want)):
            a, b = want[i], got[want[i].id]
            assert a.complete == b.complete and len(a.items) == len(b.items)
            for x, y in zip(a.items, b.items, strict=True):
                assert (type(x), x.role, x.loss) == (type(y), y.role, y.loss)
                assert x.text == y.text if isinstance(x, Text) else x.data == y.data
    with pytest.raises(DocumentError, match="place: not a record"):
        decode({"id": b"x"}, "place")
