"""The parameters of a checkpoint, for sampling and evaluation."""

from __future__ import annotations

import logging
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax

from mogao_jax.checkpoints import files
from mogao_jax.errors import CheckpointError

Report = Callable[[str], None]


def load_params(
    path: str | os.PathLike,
    *,
    weights: Literal["ema", "raw", "best"] = "best",
    abstract: Any = None,
    report: Report | None = None,
) -> tuple[Any, dict[str, Any]]:
    """The parameters of a checkpoint, without the optimizer: for sampling and evaluation.

    Args:
      path: a workdir (its newest checkpoint that is whole), its checkpoints/, or one checkpoint.
      weights: ema (the moving average), raw, or best: ema where there is one.
      abstract: a tree of ShapeDtypeStructs that sets the arrays' dtypes and, where they have
        shardings, places them on a mesh; None: on the default device, as saved.
      report: for messages (default: a log warning).
    Returns:
      The parameters (nested dicts), and the checkpoint's meta: "config", "step", "counters", ...
    Raises:
      CheckpointError: nothing there, everything damaged, no average kept, or other parameters
        than in `abstract`.
    """
    report = report or logging.getLogger(__name__).warning
    folders = files.find_checkpoints(path)
    reasons = []
    for folder in folders:
        try:
            meta = files.read_folder_meta(folder)
            params = _load_one(folder, meta, weights, abstract)
        except CheckpointError:
            raise
        except Exception as e:
            reasons.append(f"{folder}: {e if isinstance(e, files.Damaged) else files.brief(e)}")
            continue
        for reason in reasons:
            report(left_out(reason, folder))
        return params, meta
    raise CheckpointError(f"no checkpoint can be read: {'; '.join(reasons)}.")


def best_weights(meta: Mapping[str, Any], weights: str = "best") -> Literal["ema", "raw"]:
    """Which parameters of a checkpoint `weights` ("ema", "raw" or "best") asks for."""
    has_ema = any(name.startswith("ema_params/") for name in meta["fingerprint"])
    return "ema" if weights == "ema" or (weights == "best" and has_ema) else "raw"


def require_weights(meta: Mapping[str, Any], weights: str, folder: pathlib.Path) -> None:
    """Raises CheckpointError if a moving average is asked for where none was kept."""
    if weights == "ema" and best_weights(meta) == "raw":
        raise CheckpointError(
            f"{str(folder)!r} has no moving average (optimizer.ema_decay was 0); ask for raw."
        )


def left_out(reason: str, folder: pathlib.Path) -> str:
    """What is said where an older checkpoint is used in place of a damaged one."""
    return f"Damaged checkpoint left out ({reason}); using {folder}."


def _load_one(folder: pathlib.Path, meta: Mapping[str, Any], weights: str, abstract: Any) -> Any:
    require_weights(meta, weights, folder)
    part = "ema_params" if best_weights(meta, weights) == "ema" else "params"
    saved = files.saved_shapes(folder)[part]
    if abstract is not None:
        _check_shapes(saved, abstract, folder)
    target = jax.tree.map(_target, saved, saved if abstract is None else abstract)
    tree = files.read_arrays(folder, {part: target})
    files.verify(tree, meta["fingerprint"])
    params = files.own(tree)[part]
    if abstract is not None:
        params = jax.tree.map(lambda x, a: x.astype(a.dtype), params, abstract)
    return params


def _target(saved: Any, wanted: Any) -> jax.ShapeDtypeStruct:
    """As saved, where it is wanted (what Orbax saved says of shardings is of another machine)."""
    sharding = wanted.sharding if isinstance(wanted, jax.ShapeDtypeStruct) else None
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(saved.shape, saved.dtype, sharding=sharding)


def _check_shapes(saved: Any, abstract: Any, folder: pathlib.Path) -> None:
    have = {n: tuple(x.shape) for n, x in files.named_leaves(saved)}
    want = {n: tuple(x.shape) for n, x in files.named_leaves(abstract)}
    bad = sorted(n for n in have.keys() | want.keys() if have.get(n) != want.get(n))
    if bad:
        some = ", ".join(f"{n} {have.get(n)} -> {want.get(n)}" for n in bad[:4])
        raise CheckpointError(
            f"{str(folder)!r} is of another model: {len(bad)} parameters differ in shape or name "
            f"(checkpoint -> wanted): {some}. Build the model from the config stored in it."
        )
