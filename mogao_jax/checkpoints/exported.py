"""Exported models: the transformer's parameters and the whole config in one safetensors file.

One tensor per parameter, named by its path joined with dots, in one dtype. The file's metadata:

    format      "mogao_jax.model"
    version     of this format
    config      the config as JSON
    step        optimizer steps that the parameters have seen
    weights     "ema" or "raw"
    tokenizer   checksum of the vocabulary that the ids belong to (`tokenizer_digest`)
    encoders    checksums of the frozen encoders' files as JSON
    porting     what `mogao port from-hf` recorded of the files that the model began with, as JSON
    written_by  the release of mogao_jax
    digest      sha256 of all of the above and of every tensor

The frozen encoders are not in it; the config says where they are ("embedded": in the package), and
the checksums whether they are still those that it was trained with.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import traverse_util

import mogao_jax
from mogao_jax.atomic import atomic_file
from mogao_jax.config.convert import from_dict, to_dict
from mogao_jax.config.schema import MogaoConfig
from mogao_jax.errors import CheckpointError, ConfigError
from mogao_jax.key_tables import compress, identity, match
from mogao_jax.paths import expanded
from mogao_jax.safetensors_files import is_finite, opened, read_all, rounded
from mogao_jax.tokenizer import Tokenizer

FORMAT, VERSION = "mogao_jax.model", "1"
DTYPES = ("float16", "bfloat16", "float32")
_FIELDS = ("format", "version", "config", "step", "weights", "tokenizer", "written_by", "digest")
_REMEDY = "Copy it again, or export it again."


@dataclasses.dataclass(frozen=True)
class Header:
    """What an exported file says of itself."""

    config: MogaoConfig  # of the model
    step: int  # optimizer steps done
    weights: str  # "ema" (the moving average) or "raw"
    tokenizer: str  # `tokenizer_digest` of the tokenizer it was trained with
    encoders: Mapping[str, str]  # `models.encoder_weights.file_digests` it was trained with
    porting: Mapping[str, Any]  # `sidecar_files.origin` of its checkpoint; {}: none recorded
    shapes: Mapping[str, tuple[int, ...]]  # of each tensor, by its name in the file


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """Names a vocabulary: equal for tokenizers that give the same ids to the same conversation."""
    tokens = [tokenizer.decode([i], keep_special=True) for i in range(tokenizer.vocab_size)]
    # Their text as ids again, which tells how words are put together from shorter ones.
    ids = [tokenizer.encode(token) for token in tokens]
    what: list[Any] = [tokens, sorted(tokenizer.special_ids), ids]
    if tokenizer.chat.source is not None:
        what += [tokenizer.chat.source, tokenizer.chat.tokens]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


def write_exported(
    path: str | os.PathLike,
    params: Any,
    *,
    config: MogaoConfig,
    step: int,
    weights: Literal["ema", "raw"],
    tokenizer: Tokenizer,
    encoders: Mapping[str, str] | None = None,
    porting: Mapping[str, Any] | None = None,
    dtype: str = "float16",
) -> pathlib.Path:
    """Writes a model, whole or not at all; returns the path.

    Args:
      path: the file to write, named *.safetensors; replaced if it is there.
      params: nested dicts of arrays, unboxed.
      encoders: `models.encoder_weights.file_digests` of those it was trained with, if known.
      porting: `sidecar_files.origin` of the checkpoint, so that the way back knows it.
      dtype: one of DTYPES, for all tensors.
    Raises:
      CheckpointError: values that are not finite, or too large for `dtype`.
      EnvironmentProblem: the file cannot be written.
    """
    path = expanded(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"an exported model is a .safetensors file; {str(path)!r} is not.")
    flat = traverse_util.flatten_dict(params, sep=".")
    tensors = {k: rounded(k, np.asarray(jax.device_get(x)), dtype) for k, x in flat.items()}
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "config": json.dumps(to_dict(config), sort_keys=True),
        "step": str(step),
        "weights": weights,
        "tokenizer": tokenizer_digest(tokenizer),
        "encoders": json.dumps(dict(encoders or {}), sort_keys=True),
        "porting": json.dumps(dict(porting or {}), sort_keys=True),
        "written_by": mogao_jax.__version__,
    }
    metadata["digest"] = content_digest(metadata, tensors, tensors.__getitem__)
    with atomic_file(path) as partial:
        safetensors.numpy.save_file(tensors, partial, metadata)
    return path


def read_header(path: str | os.PathLike) -> Header:
    """What the file says of itself, without its parameters.

    Raises CheckpointError: missing, cut short, not an exported model, or of another version.
    """
    path = pathlib.Path(path)
    with opened(path, _REMEDY) as f:
        metadata = f.metadata() or {}
        shapes = {name: tuple(f.get_slice(name).get_shape()) for name in f.keys()}  # noqa: SIM118
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{str(path)!r} is a safetensors file, but not a model exported by mogao: write one "
            "with `mogao export WORKDIR --out FILE.safetensors`."
        )
    if metadata.get("version") != VERSION:
        raise CheckpointError(
            f"{str(path)!r} has format version {metadata.get('version')}; this release "
            f"({mogao_jax.__version__}) reads version {VERSION}. It was written by "
            f"mogao_jax {metadata.get('written_by')}."
        )
    missing = [name for name in _FIELDS if name not in metadata]
    if missing:
        raise _damaged(path, f"its metadata lacks {', '.join(missing)}")
    try:
        return Header(
            config=from_dict(json.loads(metadata["config"])),
            step=int(metadata["step"]),
            weights=metadata["weights"],
            tokenizer=metadata["tokenizer"],
            encoders=dict(json.loads(metadata.get("encoders", "{}"))),
            porting=dict(json.loads(metadata.get("porting", "{}"))),
            shapes=shapes,
        )
    except ConfigError as e:
        raise CheckpointError(
            f"{str(path)!r}, written by mogao_jax {metadata['written_by']}, has a config that this "
            f"release ({mogao_jax.__version__}) does not understand: {e}"
        ) from e
    except (TypeError, ValueError, RecursionError):
        raise _damaged(path, "its metadata is not readable") from None


def read_params(path: str | os.PathLike, abstract: Any) -> Any:
    """The parameters of an exported model, on the default device, with the dtypes of `abstract`.

    Args:
      abstract: nested dicts of ShapeDtypeStructs (`models.modules.param_shapes` of the header's
        config): every tensor of the file must be one of these, and each of these be there.
    Raises:
      CheckpointError: listing each tensor that is missing, not expected or mis-shaped; or the
        file is damaged; or it has values that are not finite.
    """
    path = pathlib.Path(path)
    wanted = traverse_util.flatten_dict(abstract, sep=".")
    tensors, metadata = read_all(path, _REMEDY)
    match(
        identity(wanted),
        {name: x.shape for name, x in tensors.items()},
        {name: x.shape for name, x in wanted.items()},
        place=f"{str(path)!r}",
        remedy="The config is its own: export it again, with this release.",
    )
    if content_digest(metadata, tensors, tensors.__getitem__) != metadata.get("digest"):
        raise _damaged(path, "its checksum is wrong")
    bad = [name for name, x in tensors.items() if not is_finite(x)]
    if bad:
        names = "; ".join(compress(bad))
        raise CheckpointError(f"{str(path)!r} has values that are not finite in {names}.")
    placed = {name: jnp.asarray(tensors[name], wanted[name].dtype) for name in wanted}
    return traverse_util.unflatten_dict(placed, sep=".")


def check_digest(path: str | os.PathLike) -> None:
    """Raises CheckpointError if the checksum is wrong; one tensor in memory at a time."""
    path = pathlib.Path(path)
    with opened(path, _REMEDY) as f:
        metadata = f.metadata() or {}
        found = content_digest(metadata, f.keys(), f.get_tensor)
    if found != metadata.get("digest"):
        raise _damaged(path, "its checksum is wrong")


def content_digest(
    metadata: Mapping[str, str], names: Iterable[str], read: Callable[[str], np.ndarray]
) -> str:
    """sha256 of the metadata (but for the digest) and of every tensor with its name."""
    total = hashlib.sha256()
    said = {name: value for name, value in metadata.items() if name != "digest"}
    total.update(json.dumps(said, sort_keys=True).encode())
    for name in sorted(names):
        array = read(name)
        total.update(f"\n{name} {array.dtype.name} {list(array.shape)}\n".encode())
        total.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return total.hexdigest()


def _damaged(path: pathlib.Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{str(path)!r} is damaged ({reason}). {_REMEDY}")
