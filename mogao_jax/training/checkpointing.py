"""Checkpoints: the state, the data's position and the counters, saved and restored as one.

A checkpoint is a folder `checkpoints/<step>` with the items

    state/  the TrainState (Orbax)
    data/   the data iterator's position, one file per process (Grain)
    meta/   JSON: the whole config, counters, versions, checksums of everything else

Saving is asynchronous and never leaves half a checkpoint under its final name. Files that were
damaged later are noticed by checksum (Orbax restores flipped bits silently) and moved away, and
training resumes from the checkpoint before.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from mogao_jax.checkpoints import CHECKPOINTS, files
from mogao_jax.checkpoints.fingerprint import fingerprint
from mogao_jax.checkpoints.sidecar_files import changed_encoders
from mogao_jax.config.convert import to_dict
from mogao_jax.config.schema import MogaoConfig, OptimizerConfig
from mogao_jax.errors import CheckpointError
from mogao_jax.sharding import multihost
from mogao_jax.training import compatibility
from mogao_jax.training.metrics import LossNotFinite
from mogao_jax.training.state import TrainState

_DAMAGED = "checkpoints_damaged"
Report = Callable[[str], None]


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
        made_with: Mapping[str, Any] | None = None,
        report: Report | None = None,
    ):
        """
        Args:
          run_folder: the workdir; checkpoints lie in its folder checkpoints/.
          config: stored with every checkpoint, and compared on restore;
            `train.checkpoint_every` and `train.keep_checkpoints` are followed.
          made_with: what else meta says: "tokenizer" (`sidecar_files.describe_tokenizer`) and
            "encoders" (`models.encoder_weights.file_digests`). A run that resumes with other
            encoders is told so.
          report: what to do with messages for the user (default: a log warning).
        """
        self._folder = pathlib.Path(run_folder).absolute()
        self._config = config
        self._made_with = dict(made_with or {})
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
        return ocp.CheckpointManager(self._folder / CHECKPOINTS, options=options)

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
            "format": files.FORMAT,
            "step": step,
            "config": to_dict(self._config),
            "counters": dict(counters or {}),
            "fingerprint": fingerprint(tree),
            "data": None if data is None else multihost.gather(_checksum(_data_text(data))),
            "versions": files.versions(),
            **self._made_with,
        }
        items: dict[str, Any] = {
            "state": ocp.args.StandardSave(tree),
            "meta": ocp.args.JsonSave({**meta, "checksum": files.digest(meta)}),
        }
        if data is not None:
            import grain

            items["data"] = grain.checkpoint.CheckpointSave(data)
        with self._saving(step):
            return bool(self._manager.save(step, args=ocp.args.Composite(**items), force=force))

    @contextlib.contextmanager
    def _saving(self, step: int | None = None) -> Iterator[None]:
        """Turns what Orbax raises while saving into one message."""
        try:
            yield
        except Exception as e:
            folder = self._folder / CHECKPOINTS
            whole = files.step_folders(folder)
            last = (
                f"the last whole one is of step {whole[0].name}" if whole else "there is none yet"
            )
            what = "" if step is None else f" (noticed when saving step {step})"
            raise CheckpointError(
                f"a checkpoint could not be written to {str(folder)!r}{what}: {files.brief(e)}. "
                f"Checkpoints before it are untouched; {last}. Is the disk full? Free some space; "
                "the same command then resumes."
            ) from e

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
          data: the Grain iterator to put at its saved position, newly made by the caller.
          restart_data: leave `data` as it is, at its beginning.
        Returns:
          None if there is no checkpoint.
        Raises:
          CheckpointError: the checkpoint is of another config (with the fields that differ), or
            of another number of processes, or all checkpoints are damaged.
        """
        reasons: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            restored, reason = None, "damaged for another process"
            try:
                restored = self._restore_step(step, abstract, None if restart_data else data)
            except CheckpointError:
                raise
            except Exception as e:  # whatever a damaged file makes a reader raise
                reason = str(e) if isinstance(e, files.Damaged) else files.brief(e)
            if multihost.all_agree(restored is not None):
                self._put_aside(reasons, step)
                return restored
            reasons[step] = reason
        if reasons:
            listing = "; ".join(f"step {s}: {r}" for s, r in reasons.items())
            raise CheckpointError(
                f"none of the checkpoints in {str(self._folder / CHECKPOINTS)!r} can be "
                f"read ({listing}). Restore the folder from a copy, or move it away to begin anew."
            )
        return None

    def _restore_step(self, step: int, abstract: TrainState, data: Any) -> Restored:
        path = self._folder / CHECKPOINTS / str(step)
        meta = files.read_folder_meta(path)
        self._check_config(step, meta)
        state = self._restore_state(path, meta, abstract)
        if data is not None:
            self._restore_data(path, meta, data)
        return Restored(state, step, meta["counters"])

    def _check_config(self, step: int, meta: Mapping[str, Any]) -> None:
        refused, noted = compatibility.differences(meta["config"], self._config)
        if refused:
            raise CheckpointError(
                f"the checkpoint of step {step} in {str(self._folder)!r} is of another config: "
                f"{'; '.join(map(str, refused))} (checkpoint -> now). "
                f"{compatibility.remedy(refused)}"
            )
        if noted:
            self._report(f"Going on with changed settings: {'; '.join(map(str, noted))}.")
        now = self._made_with.get("encoders", {})
        if changed := changed_encoders(meta.get("encoders"), now):
            self._report(f"Going on with {changed}: features mean something else than before.")

    def _restore_state(
        self, path: pathlib.Path, meta: Mapping[str, Any], abstract: TrainState
    ) -> TrainState:
        target = _as_tree(abstract)
        # A target with less in it (an average no longer wanted) must not fail, nor one with more
        # go unnoticed: compare names first.
        wanted, saved = {name for name, _ in files.named_leaves(target)}, set(meta["fingerprint"])
        if wanted != saved:
            some = sorted(wanted ^ saved)[:3]
            raise CheckpointError(
                f"the checkpoint {str(path)!r} holds other arrays than this version of the model "
                f"and optimizer ({', '.join(some)}, ...), though the configs agree. Go on with "
                f"the version that wrote it: {meta['versions']}."
            )
        tree = files.read_arrays(path, _as_saved(target, meta))
        files.verify(tree, meta["fingerprint"])
        return TrainState(**_as_wanted(files.own(tree), target))

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
            raise files.Damaged(f"{file.name} is damaged")
        grain.checkpoint.CheckpointHandler().restore(file.parent, data)

    def _put_aside(self, reasons: Mapping[int, str], used: int) -> None:
        """Moves damaged checkpoints away, because their steps will be saved again; reports it."""
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
                (self._folder / CHECKPOINTS / str(step)).rename(target)
        multihost.sync("damaged checkpoints put aside")
        self._manager = self._open()
        for step, reason in reasons.items():
            self._report(
                f"The checkpoint of step {step} is damaged ({reason}); it was moved to "
                f"{str(aside)!r}. Going on from step {used}."
            )


# ------------------------------------------------------------------------------------ helpers


def _as_tree(state: TrainState) -> dict[str, Any]:
    """The state as a dict, without what is None."""
    return {name: value for name, value in state._asdict().items() if value is not None}


def _as_saved(target: dict[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
    """The target with moments of the dtype that they have in the checkpoint.

    Read as another, they would not have their checksums.
    """
    default = OptimizerConfig().moments_dtype
    dtype = jnp.dtype(meta["config"].get("optimizer", {}).get("moments_dtype", default))

    def one(x):
        return x.update(dtype=dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return {**target, "opt_state": jax.tree.map(one, target["opt_state"])}


def _as_wanted(tree: dict[str, Any], target: dict[str, Any]) -> dict[str, Any]:
    """The tree with moments of the target's dtype, one by one."""

    def one(x, wanted):
        if x.dtype == wanted.dtype:
            return x
        cast = jax.block_until_ready(_cast(x, wanted.dtype))
        x.delete()
        return cast

    return {**tree, "opt_state": jax.tree.map(one, tree["opt_state"], target["opt_state"])}


_cast = jax.jit(lambda x, dtype: x.astype(dtype), static_argnums=1)


def _check_finite(step: int, params: Any) -> None:
    finite = jax.device_get({name: _all_finite(x) for name, x in files.named_leaves(params)})
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


def _data_text(data: Any) -> str:
    """Exactly what Grain writes for an iterator."""
    state = data.get_state()
    return state.decode() if isinstance(state, bytes) else json.dumps(state, indent=4)


def _checksum(text: str) -> int:
    return zlib.crc32(text.encode())
