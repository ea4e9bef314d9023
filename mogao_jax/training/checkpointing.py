"""Checkpoints: the state, the data's position and the counters, saved and restored as one.

A checkpoint is a folder `checkpoints/<step>` with the items

    state/  the TrainState (Orbax)
    data/   the data iterator's position, one file per process (Grain)
    meta/   JSON: the whole config, counters, versions, checksums of everything else

Saving is asynchronous and never leaves half a checkpoint under its final name. Files that were
damaged later are noticed by checksum (Orbax restores flipped bits without a word), put aside,
and training goes on from the one before.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata as package_metadata
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from mogao_jax.config.convert import to_dict
from mogao_jax.config.schema import MogaoConfig
from mogao_jax.errors import CheckpointError
from mogao_jax.sharding import multihost
from mogao_jax.training import compatibility, workdir
from mogao_jax.training.fingerprint import fingerprint, path_name
from mogao_jax.training.metrics import LossNotFinite
from mogao_jax.training.state import TrainState

_FORMAT = 1
_DAMAGED = "checkpoints_damaged"
Report = Callable[[str], None]


class _Damaged(Exception):
    """This checkpoint cannot be used; an older one may be."""


class Restored(NamedTuple):
    """What `Checkpointer.restore` found.

    Attributes:
      state: on the devices, with the shardings asked for; may be donated.
      step: steps done.
      counters: as given to `save` (tokens seen, seconds trained, ...).
    """

    state: TrainState
    step: int
    counters: dict[str, Any]


class Checkpointer:
    """The checkpoints of one run. Use as a context manager, so that the last save is finished."""

    def __init__(
        self,
        run_folder: str | os.PathLike,
        config: MogaoConfig,
        *,
        report: Report | None = None,
    ):
        """
        Args:
          run_folder: the workdir; checkpoints lie in its folder checkpoints/.
          config: stored with every checkpoint, and compared on restore;
            `train.checkpoint_every` and `train.keep_checkpoints` are followed.
          report: what to do with messages for the user (default: a log warning).
        """
        self._folder = pathlib.Path(run_folder).absolute()
        self._config = config
        self._report = report or logging.getLogger(__name__).warning
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            save_decision_policy=policies.AnySavePolicy(
                [
                    policies.PreemptionCheckpointingPolicy(),
                    policies.FixedIntervalPolicy(self._config.train.checkpoint_every),
                ]
            ),
            preservation_policy=policies.LatestN(self._config.train.keep_checkpoints),
            cleanup_tmp_directories=True,
        )
        return ocp.CheckpointManager(self._folder / workdir.CHECKPOINTS, options=options)

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        try:
            self.close()
        except CheckpointError as e:
            if error is None:
                raise
            self._report(str(e))  # what ended the run matters more

    # ------------------------------------------------------------------------------- saving

    def steps(self) -> list[int]:
        """Steps of the checkpoints there are, oldest first."""
        return sorted(self._manager.all_steps())

    def save(
        self,
        step: int,
        state: TrainState,
        *,
        counters: Mapping[str, Any] | None = None,
        data: Any = None,
        force: bool = False,
    ) -> bool:
        """Saves if it is time to, in the background; the state may be donated right afterwards.

        Args:
          step: steps done. A step that has a checkpoint is not saved again.
          state: the TrainState after that step.
          counters: JSON-serialisable numbers.
          data: the Grain iterator, standing where the next step will read.
          force: save whatever the step (the end of a run).
        Returns:
          Whether it was saved.
        Raises:
          CheckpointError: this save, or the one before it, could not be written.
          LossNotFinite: the parameters are lost; the checkpoints before stay as they are.
        """
        if step in self._manager.all_steps() or not (force or self._manager.should_save(step)):
            return False
        tree = _as_tree(state)
        _check_finite(step, tree["params"])
        meta = {
            "format": _FORMAT,
            "step": step,
            "config": to_dict(self._config),
            "counters": dict(counters or {}),
            "fingerprint": fingerprint(tree),
            "data": None if data is None else multihost.gather(_checksum(_data_text(data))),
            "versions": _versions(),
        }
        items: dict[str, Any] = {
            "state": ocp.args.StandardSave(tree),
            "meta": ocp.args.JsonSave({**meta, "checksum": _digest(meta)}),
        }
        if data is not None:
            import grain

            items["data"] = grain.checkpoint.CheckpointSave(data)
        with self._saving(step):
            return bool(self._manager.save(step, args=ocp.args.Composite(**items), force=force))

    def _saving(self, step: int | None = None) -> _Explain:
        return _Explain(self, step)

    def reached_preemption(self, step: int) -> bool:
        """Whether the machine is about to be taken away (SIGTERM), agreed among processes.

        Must be asked by every process at every step. False where `jax.distributed` is not
        running, without which nobody listens for the signal.
        """
        return jax.distributed.is_initialized() and self._manager.reached_preemption(step)

    def wait(self) -> None:
        """Returns when everything is on disk; raises CheckpointError if it could not be."""
        with self._saving():
            self._manager.wait_until_finished()

    def close(self) -> None:
        with self._saving():
            self._manager.close()

    # ---------------------------------------------------------------------------- restoring

    def restore(
        self, abstract: TrainState, *, data: Any = None, restart_data: bool = False
    ) -> Restored | None:
        """The newest checkpoint that is whole.

        Args:
          abstract: of ShapeDtypeStructs with shardings (`state.abstract_state`): where the arrays
            go now, whatever the mesh was when they were saved.
          data: the Grain iterator to put at its saved position, made anew by the caller.
          restart_data: leave `data` as it is, at its beginning.
        Returns:
          None if there is no checkpoint.
        Raises:
          CheckpointError: the checkpoint is of another config (with the fields that differ), or
            of another number of processes, or all checkpoints are damaged.
        """
        reasons: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            path = self._folder / workdir.CHECKPOINTS / str(step)
            restored, reason = None, ""
            try:
                meta = _read_meta(path)
                self._check_config(step, meta)
                state = self._restore_state(path, meta, abstract)
                if data is not None and not restart_data:
                    self._restore_data(path, meta, data)
                restored = Restored(state, step, meta["counters"])
            except CheckpointError:
                raise
            except Exception as e:  # whatever a damaged file makes a reader raise
                reason = str(e) if isinstance(e, _Damaged) else _brief(e)
            if multihost.all_agree(restored is not None):
                self._put_aside(reasons, step)
                return restored
            reasons[step] = reason or "damaged for another process"
        if reasons:
            listing = "; ".join(f"step {s}: {r}" for s, r in reasons.items())
            raise CheckpointError(
                f"none of the checkpoints in {str(self._folder / workdir.CHECKPOINTS)!r} can be "
                f"read ({listing}). Restore the folder from a copy, or move it away to begin anew."
            )
        return None

    def _check_config(self, step: int, meta: Mapping[str, Any]) -> None:
        refused, noted = compatibility.differences(meta["config"], self._config)
        if refused:
            raise CheckpointError(
                f"the checkpoint of step {step} in {str(self._folder)!r} is of another config: "
                f"{'; '.join(map(str, refused))} (checkpoint -> now). Set these fields back, or "
                "use another --workdir."
            )
        if noted:
            self._report(f"Going on with changed settings: {'; '.join(map(str, noted))}.")

    def _restore_state(
        self, path: pathlib.Path, meta: Mapping[str, Any], abstract: TrainState
    ) -> TrainState:
        target = _as_tree(abstract)
        # A target with less in it (an average no longer wanted) must not fail, nor one with more
        # go unnoticed: compare names first.
        wanted, saved = set(_names(target)), set(meta["fingerprint"])
        if wanted != saved:
            some = sorted(wanted ^ saved)[:3]
            raise CheckpointError(
                f"the checkpoint {str(path)!r} holds other arrays than this version of the model "
                f"and optimizer ({', '.join(some)}, ...), though the configs agree. Go on with "
                f"the version that wrote it: {meta['versions']}."
            )
        tree = _read_arrays(path, target)
        _verify(tree, meta["fingerprint"])
        return TrainState(**_own(tree))

    def _restore_data(self, path: pathlib.Path, meta: Mapping[str, Any], data: Any) -> None:
        import grain

        checksums = meta["data"]
        if checksums is None:
            raise CheckpointError(
                f"the checkpoint {str(path)!r} has no data position; allow the data to start anew."
            )
        index, count = multihost.process_index(), multihost.process_count()
        if len(checksums) != count:
            raise CheckpointError(
                f"the checkpoint {str(path)!r} was written by {len(checksums)} processes, whose "
                f"data positions cannot be shared out among {count}. Run {len(checksums)} "
                "processes, or allow the data to start anew."
            )
        file = path / "data" / f"process_{index}-of-{count}.json"
        if _checksum(file.read_text()) != checksums[index]:
            raise _Damaged(f"{file.name} is damaged")
        grain.checkpoint.CheckpointHandler().restore(file.parent, data)

    def _put_aside(self, reasons: Mapping[int, str], used: int) -> None:
        """Moves damaged checkpoints away (their steps will be saved again), and says so."""
        if not reasons:
            return
        aside = self._folder / _DAMAGED
        self._manager.close()
        if multihost.is_main():
            aside.mkdir(exist_ok=True)
            for step in reasons:
                target = aside / str(step)
                while target.exists():
                    target = target.with_name(target.name + "x")
                (self._folder / workdir.CHECKPOINTS / str(step)).rename(target)
        multihost.sync("damaged checkpoints put aside")
        self._manager = self._open()
        for step, reason in reasons.items():
            self._report(
                f"The checkpoint of step {step} is damaged ({reason}); it was moved to "
                f"{str(aside)!r}. Going on from step {used}."
            )


class _Explain:
    """Turns what Orbax raises while saving into one message."""

    def __init__(self, owner: Checkpointer, step: int | None):
        self._owner, self._step = owner, step

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, traceback) -> None:
        if error is None or not isinstance(error, Exception):
            return
        folder = self._owner._folder / workdir.CHECKPOINTS
        whole = _step_folders(folder)
        last = f"the last whole one is of step {whole[0].name}" if whole else "there is none yet"
        what = "" if self._step is None else f" (noticed when saving step {self._step})"
        raise CheckpointError(
            f"a checkpoint could not be written to {str(folder)!r}{what}: {_brief(error)}. "
            f"Checkpoints before it are untouched; {last}. Is the disk full? Free some space; "
            "the same command then resumes."
        ) from error


# ---------------------------------------------------------------------------- reading a model


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
      abstract: a tree of ShapeDtypeStructs with shardings, to place the arrays on a mesh and to
        set their dtypes; None: on the default device, as saved.
      report: for messages (default: a log warning).
    Returns:
      The parameters (nested dicts), and the checkpoint's meta: "config", "step", "counters", ...
    Raises:
      CheckpointError: nothing there, everything damaged, no average kept, or other parameters
        than in `abstract`.
    """
    report = report or logging.getLogger(__name__).warning
    folders = find_checkpoints(path)
    reasons = []
    for folder in folders:
        try:
            meta = _read_meta(folder)
            params = _load_one(folder, meta, weights, abstract)
        except CheckpointError:
            raise
        except Exception as e:
            reasons.append(f"{folder}: {e if isinstance(e, _Damaged) else _brief(e)}")
            continue
        for reason in reasons:
            report(f"Damaged checkpoint left out ({reason}); using {folder}.")
        return params, meta
    raise CheckpointError(f"no checkpoint can be read: {'; '.join(reasons)}.")


def _load_one(folder: pathlib.Path, meta: Mapping[str, Any], weights: str, abstract: Any) -> Any:
    has_ema = any(name.startswith("ema_params/") for name in meta["fingerprint"])
    if weights == "ema" and not has_ema:
        raise CheckpointError(
            f"{str(folder)!r} has no moving average (optimizer.ema_decay was 0); ask for raw."
        )
    part = "params" if weights == "raw" or not has_ema else "ema_params"
    saved = _saved_shapes(folder)[part]
    if abstract is not None:
        _check_shapes(saved, abstract, folder)
        target = jax.tree.map(_plain_target, saved, abstract)
    else:
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), saved
        )
    tree = _read_arrays(folder, {part: target})
    _verify(tree, meta["fingerprint"])
    params = _own(tree)[part]
    if abstract is not None:
        params = jax.tree.map(lambda x, a: x.astype(a.dtype), params, abstract)
    return params


def _plain_target(saved: Any, wanted: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(saved.shape, saved.dtype, sharding=wanted.sharding)


def _check_shapes(saved: Any, abstract: Any, folder: pathlib.Path) -> None:
    have = {n: tuple(x.shape) for n, x in _named(saved)}
    want = {n: tuple(x.shape) for n, x in _named(abstract)}
    bad = sorted(n for n in have.keys() | want.keys() if have.get(n) != want.get(n))
    if bad:
        some = ", ".join(f"{n} {have.get(n)} -> {want.get(n)}" for n in bad[:4])
        raise CheckpointError(
            f"{str(folder)!r} is of another model: {len(bad)} parameters differ in shape or name "
            f"(checkpoint -> wanted): {some}. Build the model from the config stored in it."
        )


def find_checkpoints(path: str | os.PathLike) -> list[pathlib.Path]:
    """Checkpoint folders at or below a path, newest first; raises CheckpointError for none."""
    path = pathlib.Path(path).expanduser().absolute()
    if (path / "meta").is_dir():
        return [path]
    found = _step_folders(path / workdir.CHECKPOINTS) or _step_folders(path)
    if not found:
        raise CheckpointError(
            f"no checkpoint in {str(path)!r}: give a workdir, its folder checkpoints, or one "
            "checkpoint in it."
        )
    return found


def _step_folders(path: pathlib.Path) -> list[pathlib.Path]:
    """Finished checkpoints (unfinished ones have longer names), newest first."""
    if not path.is_dir():
        return []
    return sorted((p for p in path.iterdir() if p.name.isdigit()), key=lambda p: -int(p.name))


def read_meta(path: str | os.PathLike) -> dict[str, Any]:
    """The meta item of the newest checkpoint at a path whose meta can be read."""
    reason = ""
    for folder in find_checkpoints(path):
        try:
            return _read_meta(folder)
        except Exception as e:
            reason = reason or f"{folder}: {e if isinstance(e, _Damaged) else _brief(e)}"
    raise CheckpointError(f"no checkpoint can be read ({reason}).")


# ------------------------------------------------------------------------------------ helpers


def _as_tree(state: TrainState) -> dict[str, Any]:
    """The state as a dict, without what is None."""
    fields = {
        "step": state.step,
        "params": state.params,
        "opt_state": state.opt_state,
        "ema_params": state.ema_params,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _named(tree: Any) -> Iterator[tuple[str, Any]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield path_name(path), leaf


def _names(tree: Any) -> list[str]:
    return [name for name, _ in _named(tree)]


def _read_meta(folder: pathlib.Path) -> dict[str, Any]:
    # Read as a plain file, so that it can be read anywhere and in any version of Orbax.
    meta = json.loads((folder / "meta" / "metadata").read_text(encoding="utf-8"))
    checksum = meta.pop("checksum", None)
    if checksum != _digest(meta):
        raise _Damaged("its meta file is damaged")
    if meta["format"] != _FORMAT:
        raise CheckpointError(
            f"{str(folder)!r} has format {meta['format']}; this version reads {_FORMAT}. "
            f"It was written by {meta['versions']}."
        )
    return meta


def _read_arrays(folder: pathlib.Path, target: Any) -> Any:
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


def _saved_shapes(folder: pathlib.Path) -> Any:
    """The saved tree (nested dicts) with .shape and .dtype at its leaves."""
    return ocp.PyTreeCheckpointHandler().metadata(epath.Path(folder / "state")).tree


def _verify(tree: Any, expected: Mapping[str, str]) -> None:
    found = fingerprint(tree)
    bad = sorted(name for name, value in found.items() if expected.get(name) != value)
    if bad:
        raise _Damaged(
            f"{len(bad)} of {len(found)} arrays differ from their checksums, such as {bad[0]}"
        )


def _check_finite(step: int, params: Any) -> None:
    finite = jax.device_get({name: _all_finite(x) for name, x in _named(params)})
    bad = [name for name, ok in finite.items() if not ok]
    if bad:
        raise LossNotFinite(
            f"step {step}: {len(bad)} of {len(finite)} parameters are not finite, such as "
            f"{bad[0]}. Nothing was saved; the same command resumes from the checkpoint before. "
            "Lower optimizer.learning_rate, or look at grad_norm in metrics.jsonl."
        )


@jax.jit
def _all_finite(x: jax.Array) -> jax.Array:
    return jnp.all(jnp.isfinite(x))


def _own(tree: Any) -> Any:
    """Copies arrays one by one: as Orbax returns them, a jitted step cannot take their memory."""

    def one(x):
        copy = _copy(x)
        copy.block_until_ready()
        x.delete()
        return copy

    return jax.tree.map(one, tree)


_copy = jax.jit(jnp.copy)


def _data_text(data: Any) -> str:
    """Exactly what Grain writes for an iterator."""
    state = data.get_state()
    return state.decode() if isinstance(state, bytes) else json.dumps(state, indent=4)


def _checksum(text: str) -> int:
    return zlib.crc32(text.encode())


def _digest(meta: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _versions() -> dict[str, str]:
    versions = {}
    for name in ("mogao_jax", "jax", "flax", "optax", "orbax-checkpoint", "grain"):
        try:
            versions[name] = package_metadata.version(name)
        except package_metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _brief(error: BaseException) -> str:
    """What went wrong first, in one line (Orbax wraps it, with pages of storage details)."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
