"""Documents in a tensorflow-datasets data set (array_record; no TensorFlow needed).

Features of a record:

    id        text    the document's id
    complete  bool    see sequence/document.py
    kinds     int64[n]  of each item: 0 text, 1 image
    roles     int64[n]  0 none, 1 system, 2 user, 3 assistant
    losses    int64[n]  0 or 1
    contents  n byte strings: UTF-8 text, or an encoded image file
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from mogao_jax import images
from mogao_jax.data.sources import DOCUMENTS, Split, select_split
from mogao_jax.errors import DataError, DocumentError
from mogao_jax.paths import expanded
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


class TfdsSource:
    """A dataset prepared with tensorflow-datasets (file format array_record), by its folder."""

    def __init__(self, path: str | pathlib.Path, split: Split = "train"):
        """Raises DataError if there is no such dataset, or tensorflow-datasets is missing."""
        try:
            import tensorflow_datasets as tfds
        except ImportError:
            raise DataError(
                "reading tfds datasets needs the package tensorflow-datasets "
                '(without TensorFlow): pip install "mogao_jax[tfds]"'
            ) from None
        folder = expanded(path)
        if not (folder / "dataset_info.json").is_file():
            raise DataError(f"no prepared tfds dataset in {str(folder)!r} (no dataset_info.json).")
        try:
            builder = tfds.builder_from_directory(str(folder))
            own_split = "validation" in builder.info.splits
            wanted = split if own_split else "train"
            self._records: Any = builder.as_data_source(split=wanted)
        except Exception as e:  # noqa: BLE001  (damaged metadata or shards, unknown split, ...)
            raise DataError(f"the tfds dataset in {str(folder)!r} cannot be opened: {e}") from None
        self._name = f"{builder.info.name}/{wanted}"
        self._selected = select_split(len(self._records), split, own_split)
        if split == "train" and not len(self):
            raise DataError(f"the tfds dataset in {str(folder)!r} has no records.")

    def __len__(self) -> int:
        return len(self._records if self._selected is None else self._selected)

    def __deepcopy__(self, memo: dict) -> TfdsSource:
        return self

    def __getitem__(self, index: int) -> Document:
        """Raises DocumentError if the record is damaged or has other features."""
        record = index if self._selected is None else int(self._selected[index])
        place = f"{self._name}:{record}"
        try:
            example = self._records[record]
        except Exception as e:  # noqa: BLE001  (array_record raises its own on damaged bytes)
            raise DocumentError(f"{place} cannot be read: {e}") from None
        return decode(example, place)


TFDS = dataclasses.replace(
    DOCUMENTS, open=lambda config, *, split, **_: TfdsSource(config.path, split)
)
