"""Writes documents as a tensorflow-datasets data set (array_record; no TensorFlow needed).

See mogao_jax/data/tfds_source.py for the features of a record.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from mogao_jax.data.sources import DocumentsSource, Split
from mogao_jax.data.tfds_source import encode
from mogao_jax.errors import EnvironmentProblem


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
