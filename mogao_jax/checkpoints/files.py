"""A checkpoint's folder on disk: finding it, reading its parts, and knowing damage.

<step>/state/         arrays (Orbax)
<step>/data/          the data's position, a file per process (Grain)
<step>/meta/metadata  JSON with checksums of itself and of everything else
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from importlib import metadata as package_metadata
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from mogao_jax.checkpoints import CHECKPOINTS
from mogao_jax.checkpoints.fingerprint import fingerprint, path_name
from mogao_jax.errors import CheckpointError
from mogao_jax.paths import expanded

FORMAT = 1


class Damaged(Exception):
    """This checkpoint cannot be used; an older one may be."""


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


def read_meta(path: str | os.PathLike) -> dict[str, Any]:
    """The meta item of the newest checkpoint at a path whose meta can be read."""
    reason = ""
    for folder in find_checkpoints(path):
        try:
            return read_folder_meta(folder)
        except Exception as e:
            reason = reason or f"{folder}: {e if isinstance(e, Damaged) else brief(e)}"
    raise CheckpointError(f"no checkpoint can be read ({reason}).")


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
    found = fingerprint(tree)
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
