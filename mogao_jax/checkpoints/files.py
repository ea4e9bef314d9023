"""A checkpoint's folder on disk: finding it, reading its parts, and knowing damage.

<step>/state/         arrays (Orbax)
<step>/data/          the data's position, a file per process (Grain)
<step>/meta/metadata  JSON with checksums of itself and of everything else
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata as package_metadata
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from mogao_jax import registry
from mogao_jax.checkpoints import CHECKPOINTS, hub
from mogao_jax.checkpoints.fingerprint import fingerprint, path_name
from mogao_jax.errors import CheckpointError
from mogao_jax.paths import expanded

FORMAT = 1
Weights = Literal["best", "ema", "raw"]
PARTS = {"ema": "ema_params", "raw": "params"}  # of the saved tree
T = TypeVar("T")


class Damaged(Exception):
    """This checkpoint cannot be used; an older one may be."""


def locate(name: str | os.PathLike) -> pathlib.Path:
    """The file or folder that a checkpoint's name means.

    `name`: "demo", a path, or ORG/NAME of a model on Hugging Face's Hub, which is fetched.
    Raises CheckpointError if there is nothing.
    """
    if str(name) in registry.CHECKPOINTS.names():
        file = registry.CHECKPOINTS.get(str(name))
        if not file.is_file():
            raise CheckpointError(
                f"the {name} checkpoint is not in this installation. Train it with `bash "
                f"launch/{name}.sh` and give runs/{name}.safetensors, or another checkpoint."
            )
        return file
    place = expanded(name).absolute()
    if not place.exists() and hub.is_name(str(name)):
        return hub.fetch(str(name))
    if not place.exists():
        raise CheckpointError(
            f"there is no checkpoint {str(name)!r}: give 'demo', a file written by `mogao export`, "
            "a run's folder, one checkpoint in it, what `mogao port from-hf` or `to-hf` made, or "
            "ORG/NAME of a model on the Hub."
        )
    return place


def find_checkpoints(path: str | os.PathLike) -> list[pathlib.Path]:
    """Checkpoint folders at or below a path, newest first; raises CheckpointError for none."""
    path = expanded(path).absolute()
    if (path / "meta").is_dir():
        return [path]
    found = step_folders(path / CHECKPOINTS) or step_folders(path)
    if not found:
        raise CheckpointError(
            f"no checkpoint in {str(path)!r}: give a workdir, its folder checkpoints, or one "
            "checkpoint in it."
        )
    return found


def step_folders(path: pathlib.Path) -> list[pathlib.Path]:
    """Finished checkpoints (unfinished ones have longer names), newest first."""
    if not path.is_dir():
        return []
    return sorted((p for p in path.iterdir() if p.name.isdigit()), key=lambda p: -int(p.name))


def newest(
    path: str | os.PathLike,
    use: Callable[[pathlib.Path, dict[str, Any]], T],
    report: Callable[[str], None] | None = None,
) -> T:
    """What `use` makes of the folder and the meta item of the newest checkpoint that is whole.

    Args:
      path: a workdir, its checkpoints/, or one checkpoint.
      use: may raise whatever reading a damaged file raises; then the next older one is tried.
      report: is told what was left out (default: a log warning).
    Raises:
      CheckpointError: nothing there, or everything is damaged.
    """
    report = report or logging.getLogger(__name__).warning
    reasons = []
    for folder in find_checkpoints(path):
        try:
            result = use(folder, read_folder_meta(folder))
        except CheckpointError:
            raise
        except Exception as e:
            reasons.append(f"{folder}: {e if isinstance(e, Damaged) else brief(e)}")
            continue
        for reason in reasons:
            report(f"Damaged checkpoint left out ({reason}); using {folder}.")
        return result
    raise CheckpointError(f"no checkpoint can be read: {'; '.join(reasons)}.")


def read_meta(path: str | os.PathLike) -> dict[str, Any]:
    """The meta item of the newest checkpoint at a path whose meta can be read."""
    return newest(path, lambda folder, meta: meta, report=lambda message: None)


def read_folder_meta(folder: pathlib.Path) -> dict[str, Any]:
    """The meta item of one checkpoint; raises Damaged, or what reading a broken file raises."""
    # Read as a plain file, so that it can be read anywhere and in any version of Orbax.
    meta = json.loads((folder / "meta" / "metadata").read_text(encoding="utf-8"))
    checksum = meta.pop("checksum", None)
    if checksum != digest(meta):
        raise Damaged("its meta file is damaged")
    if meta["format"] != FORMAT:
        raise CheckpointError(
            f"{str(folder)!r} has format {meta['format']}; this version reads {FORMAT}. "
            f"It was written by {meta['versions']}."
        )
    return meta


def write_folder_meta(folder: pathlib.Path, meta: Mapping[str, Any]) -> None:
    """Writes the meta item of one checkpoint as `read_folder_meta` reads it."""
    (folder / "meta").mkdir()
    text = json.dumps({**meta, "checksum": digest(meta)})
    (folder / "meta" / "metadata").write_text(text, encoding="utf-8")


def versions() -> dict[str, str]:
    """Releases of what writes checkpoints."""
    found = {}
    for name in ("mogao_jax", "jax", "flax", "optax", "orbax-checkpoint", "grain"):
        try:
            found[name] = package_metadata.version(name)
        except package_metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def digest(meta: Mapping[str, Any]) -> str:
    """The checksum of the meta item itself."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def read_arrays(folder: pathlib.Path, target: Any) -> Any:
    """Arrays of a checkpoint as the target says; the target may be a part of what is saved."""
    # The handler itself, not a Checkpointer around it: that one misses (and says so in the log)
    # metadata which lies a folder higher.
    return ocp.PyTreeCheckpointHandler().restore(
        epath.Path(folder / "state"),
        args=ocp.args.PyTreeRestore(
            item=target,
            restore_args=ocp.checkpoint_utils.construct_restore_args(target),
            partial_restore=True,
        ),
    )


def saved_shapes(folder: pathlib.Path) -> Any:
    """The saved tree (nested dicts) with .shape and .dtype at its leaves."""
    return ocp.PyTreeCheckpointHandler().metadata(epath.Path(folder / "state")).tree


def verify(tree: Any, expected: Mapping[str, str]) -> None:
    """Raises Damaged unless all arrays have the checksums of `fingerprint.fingerprint`."""
    compare_checksums(fingerprint(tree), expected)


def compare_checksums(found: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """Raises Damaged naming the first array whose checksum is another than expected."""
    bad = sorted(name for name, value in found.items() if expected.get(name) != value)
    if bad:
        raise Damaged(
            f"{len(bad)} of {len(found)} arrays differ from their checksums, such as {bad[0]}"
        )


def own(tree: Any) -> Any:
    """Copies arrays one by one: as Orbax returns them, a jitted step cannot take their memory."""

    def one(x):
        copy = _copy(x)
        copy.block_until_ready()
        x.delete()
        return copy

    return jax.tree.map(one, tree)


_copy = jax.jit(jnp.copy)


def named_leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    """(name as in a fingerprint, leaf) of a tree."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield path_name(path), leaf


def brief(error: BaseException) -> str:
    """What went wrong first, in one line (Orbax wraps it, with pages of storage details)."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def load_params(
    path: str | os.PathLike,
    *,
    weights: Weights = "best",
    abstract: Any = None,
    report: Callable[[str], None] | None = None,
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
    return newest(path, lambda folder, meta: _load(folder, meta, weights, abstract), report)


def best_weights(
    meta: Mapping[str, Any], weights: Weights = "best", folder: pathlib.Path | None = None
) -> Literal["ema", "raw"]:
    """Which parameters of a checkpoint `weights` asks for.

    With `folder`, raises CheckpointError where a moving average is asked for and none was kept.
    """
    has_ema = any(name.startswith("ema_params/") for name in meta["fingerprint"])
    if folder is not None and weights == "ema" and not has_ema:
        raise CheckpointError(
            f"{str(folder)!r} has no moving average (optimizer.ema_decay was 0); ask for raw."
        )
    return "ema" if weights == "ema" or (weights == "best" and has_ema) else "raw"


def _load(
    folder: pathlib.Path, meta: dict[str, Any], weights: Weights, abstract: Any
) -> tuple[Any, dict[str, Any]]:
    part = PARTS[best_weights(meta, weights, folder)]
    saved = saved_shapes(folder)[part]
    if abstract is not None:
        _check_shapes(saved, abstract, folder)
    target = jax.tree.map(_target, saved, saved if abstract is None else abstract)
    tree = read_arrays(folder, {part: target})
    verify(tree, meta["fingerprint"])
    params = own(tree)[part]
    if abstract is not None:
        params = jax.tree.map(lambda x, a: x.astype(a.dtype), params, abstract)
    return params, meta


def _target(saved: Any, wanted: Any) -> jax.ShapeDtypeStruct:
    """As saved, where it is wanted (what Orbax saved says of shardings is of another machine)."""
    sharding = wanted.sharding if isinstance(wanted, jax.ShapeDtypeStruct) else None
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(saved.shape, saved.dtype, sharding=sharding)


def _check_shapes(saved: Any, abstract: Any, folder: pathlib.Path) -> None:
    have = {n: tuple(x.shape) for n, x in named_leaves(saved)}
    want = {n: tuple(x.shape) for n, x in named_leaves(abstract)}
    bad = sorted(n for n in have.keys() | want.keys() if have.get(n) != want.get(n))
    if bad:
        some = ", ".join(f"{n} {have.get(n)} -> {want.get(n)}" for n in bad[:4])
        raise CheckpointError(
            f"{str(folder)!r} is of another model: {len(bad)} parameters differ in shape or name "
            f"(checkpoint -> wanted): {some}. Build the model from the config stored in it."
        )
