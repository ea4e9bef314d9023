"""A folder that is there as a whole or not at all, however its making ends.

Everything is written into `NAME.partial` beside it, which is renamed at the end. An error takes
the partial folder away; what a killed process left behind is taken away by the next one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator

from mogao_jax.errors import CheckpointError, EnvironmentProblem
from mogao_jax.paths import expanded

_LOCK = ".in-progress"
_SPARE = 64 * 2**20


@contextlib.contextmanager
def unfinished(
    out: str | os.PathLike, needed_bytes: int, say: Callable[[str], None]
) -> Iterator[pathlib.Path]:
    """Hands out the partial folder; on leaving without an error it gets its name.

    Args:
      out: the folder to make; nothing may be there.
      needed_bytes: that will be written, at most.
    Raises:
      CheckpointError: something is there, or another process is making it.
      EnvironmentProblem: the folder cannot be written, or the disk is too full, before or
        meanwhile.
    """
    out = absent(out)
    partial = out.with_name(out.name + ".partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock = _claim(partial, say)
    except OSError as e:
        raise _cannot(out, e) from e
    try:
        require_room(out.parent, needed_bytes)
        yield partial
        (partial / _LOCK).unlink()
        absent(out)
        partial.rename(out)
    except BaseException as e:
        shutil.rmtree(partial, ignore_errors=True)
        problem = _of_the_machine(e)
        if problem is not None:
            raise _cannot(out, problem) from e
        raise
    finally:
        os.close(lock)


def absent(out: str | os.PathLike) -> pathlib.Path:
    """The absolute path; raises CheckpointError if something is there."""
    out = expanded(out).absolute()
    if os.path.lexists(out):
        raise CheckpointError(
            f"{str(out)!r} exists already; nothing is overwritten. Give another --out, or remove "
            "it first."
        )
    return out


def require_room(folder: pathlib.Path, needed_bytes: int) -> None:
    """Raises EnvironmentProblem unless the disk has room for as many bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes + _SPARE:
        raise EnvironmentProblem(
            f"{str(folder)!r} has {free / 1e9:.2f} GB of room, but {needed_bytes / 1e9:.2f} GB "
            "are about to be written. Free some, or give another --out."
        )


def _claim(partial: pathlib.Path, say: Callable[[str], None]) -> int:
    """Makes the partial folder, after what a killed process left; returns its lock."""
    if partial.is_dir():
        lock = os.open(partial / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        if not _locked(lock):
            os.close(lock)
            raise CheckpointError(
                f"another process is writing {str(partial)!r}; wait for it, or give another --out."
            )
        say(f"Removing {partial}, which an interrupted run has left; starting anew.")
        shutil.rmtree(partial)
        os.close(lock)
    partial.mkdir()
    lock = os.open(partial / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    _locked(lock)
    return lock


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _of_the_machine(error: BaseException) -> OSError | None:
    """The operating system's refusal to write, if that is what an error is about."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return cause
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS):
            if isinstance(cause, ValueError | RuntimeError) and os.strerror(number) in str(cause):
                return OSError(number, os.strerror(number))  # as tensorstore tells it
        cause = cause.__cause__
    return None


def _cannot(out: pathlib.Path, e: OSError) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"{str(out)!r} cannot be written ({e.strerror or e}); nothing is left of it. Free some "
        "space or its permissions, or give another --out."
    )
