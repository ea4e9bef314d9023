"""What all safetensors files have in common: opening them, their dtypes, and sound values."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from mogao_jax.errors import CheckpointError

# What weights come in, by the format's names; its other dtypes are none for weights.
FLOATS = {
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
}
DTYPES = {dtype.name: dtype for dtype in FLOATS.values()}
_EXPONENT = {"bfloat16": 0x7F80, "float16": 0x7C00, "float32": 0x7F800000}


@contextlib.contextmanager
def opened(path: str | os.PathLike, remedy: str = "Download or copy it again.") -> Iterator[Any]:
    """An open file (`safetensors.safe_open`), which reads numpy arrays.

    Large files are to be opened anew for each tensor: the library maps the file into memory, and
    what has been read of it counts as this process's until it is closed.

    Raises:
      CheckpointError: it is not there, no safetensors file, damaged, or cut short.
    """
    if not pathlib.Path(path).is_file():
        raise CheckpointError(f"there is no file {str(path)!r}; check the path.")
    try:
        with safetensors.safe_open(path, "numpy") as f:
            yield f
    except OSError as e:
        raise CheckpointError(f"{str(path)!r} cannot be read ({e.strerror or e}).") from None
    except (safetensors.SafetensorError, ValueError) as e:
        raise CheckpointError(
            f"{str(path)!r} cannot be read as safetensors ({e}): it is another kind of file, "
            f"damaged or cut short. {remedy}"
        ) from None


def read_all(
    path: str | os.PathLike, remedy: str = "Download or copy it again."
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """All tensors and the metadata of a file; raises as `opened`."""
    with opened(path, remedy) as f:
        return {key: f.get_tensor(key) for key in f.keys()}, f.metadata() or {}  # noqa: SIM118


def is_finite(x: np.ndarray) -> bool:
    """Whether no element is NaN or infinite: no exponent with all bits set."""
    mask = _EXPONENT.get(x.dtype.name)
    if mask is None:
        return bool(np.isfinite(x.astype(np.float64)).all())
    bits = np.ascontiguousarray(x).reshape(-1).view(f"uint{8 * x.dtype.itemsize}")
    step = 2**22  # in parts: masks of a whole embedding would take as much memory again
    return not any(
        ((bits[i : i + step] & mask) == mask).any() for i in range(0, max(1, bits.size), step)
    )


def rounded(
    name: str, value: np.ndarray, dtype: str, *, allow_non_finite: bool = False
) -> np.ndarray:
    """A tensor in the dtype that it is written in.

    Raises:
      CheckpointError: it is not finite, or too large for the dtype.
    """
    sound = is_finite(value)
    if not sound and not allow_non_finite:
        raise CheckpointError(
            f"{name} has values that are not finite (NaN or infinity); nothing written. A model "
            "with these computes nothing of use: give an older checkpoint. (`mogao port` writes "
            "them as they are with --allow-nan.)"
        )
    with np.errstate(over="ignore"):
        result = np.ascontiguousarray(value).astype(DTYPES[dtype], copy=False)
    if sound and result.dtype != value.dtype and not is_finite(result):
        largest = np.abs(value.astype(np.float32)).max()
        raise CheckpointError(
            f"{name} reaches {largest:.3g}, too large for {dtype}; nothing written. Use --dtype "
            "bfloat16 or float32."
        )
    return result
