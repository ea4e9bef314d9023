"""Documents as a tensorflow-datasets data set (array_record; no TensorFlow needed).

Features of a record:

    id        text    the document's id
    complete  bool    see sequence/document.py
    kinds     int64[n]  of each item: 0 text, 1 image
    roles     int64[n]  0 none, 1 system, 2 user, 3 assistant
    losses    int64[n]  0 or 1
    contents  n byte strings: UTF-8 text, or an encoded image file
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from mogao_jax import images
from mogao_jax.data.sources import DocumentsSource, Split
from mogao_jax.errors import DocumentError, EnvironmentProblem
from mogao_jax.sequence.document import Document, Image, Item, Role, Text

_ROLES: tuple[Role | None, ...] = (None, "system", "user", "assistant")


def encode(document: Document) -> dict[str, Any]:
    """A record of the features above. Raises DocumentError if an image cannot be read."""
    items = document.items
    return {
        "id": document.id,
        "complete": document.complete,
        "kinds": np.array([isinstance(item, Image) for item in items], np.int64),
        "roles": np.array([_ROLES.index(item.role) for item in items], np.int64),
        "losses": np.array([item.loss for item in items], np.int64),
        "contents": [
            item.text.encode("utf-8", "replace")
            if isinstance(item, Text)
            else images.encoded_bytes(item)
            for item in items
        ],
    }


def decode(example: Mapping[str, Any], place: str) -> Document:
    """The document of a record. Raises DocumentError, naming the place."""
    try:
        identity = example["id"]
        identity = identity.decode("utf-8") if isinstance(identity, bytes) else str(identity)
        columns = zip(
            example["kinds"], example["roles"], example["losses"], example["contents"], strict=True
        )
        items: list[Item] = []
        for kind, role_index, loss, content in columns:
            role = _ROLES[int(role_index)]
            if int(kind) == 0:
                items.append(Text(bytes(content).decode("utf-8"), role, bool(loss)))
            else:
                items.append(Image(data=bytes(content), role=role, loss=bool(loss)))
        complete = bool(example["complete"])
    except (KeyError, IndexError, TypeError, ValueError) as e:
        raise DocumentError(f"{place}: not a record of documents ({e!r}).") from None
    return Document(tuple(items), id=identity or place, complete=complete)


class MogaoDocuments(tfds.core.GeneratorBasedBuilder):
    """Any DocumentsSource as a prepared data set; see `prepare`."""

    # Nothing is downloaded. (Looking for checksums needs importlib_resources, which
    # tensorflow-datasets does not install.)
    url_infos: ClassVar[dict] = {}
    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, source_path: str | pathlib.Path, **kwargs: Any):
        self._source_path = source_path
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        integers = tfds.features.Tensor(shape=(None,), dtype=np.int64)
        features = tfds.features.FeaturesDict(
            {
                "id": tfds.features.Text(),
                "complete": tfds.features.Scalar(np.bool_),
                "kinds": integers,
                "roles": integers,
                "losses": integers,
                "contents": tfds.features.Sequence(
                    tfds.features.Tensor(shape=(), dtype=np.object_)
                ),
            }
        )
        return tfds.core.DatasetInfo(
            builder=self, description="Interleaved documents.", features=features
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        splits: tuple[Split, ...] = ("train", "validation")
        return {s: self._examples(s) for s in splits if len(DocumentsSource(self._source_path, s))}

    def _generate_examples(self, split: Split) -> Any:  # required by the base class
        return self._examples(split)

    def _examples(self, split: Split) -> Iterator[tuple[int, dict[str, Any]]]:
        source = DocumentsSource(self._source_path, split)
        for index in range(len(source)):
            yield index, encode(source[index])


def prepare(source_path: str | pathlib.Path, out: str | pathlib.Path) -> pathlib.Path:
    """Writes the documents of a JSONL file or folder as a data set below `out`.

    Returns:
      the data set's folder, to give to a source of kind 'tfds'.
    Raises:
      DataError, DocumentError: a document cannot be read; nothing is skipped here.
      EnvironmentProblem: `out` cannot be written.
    """
    DocumentsSource(source_path)  # its errors before anything is written
    try:
        builder = MogaoDocuments(source_path=source_path, data_dir=str(out))
        builder.download_and_prepare()
    except OSError as e:
        raise EnvironmentProblem(f"cannot write to {str(out)!r}: {e.strerror or e}.") from None
    return pathlib.Path(builder.data_dir)
