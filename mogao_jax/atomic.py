"""Atomic files and directories: write NAME.partial, rename on success, delete on failure.

A file or folder under its final name is complete. Every error of the operating system becomes one
EnvironmentProblem that says where, why and what to do.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pathlib
import shutil
import uuid
from collections.abc import Callable, Iterator

from mogao_jax.errors import EnvironmentProblem, MogaoError
from mogao_jax.paths import expanded

_LOCK = ".in-progress"
_SPARE = 64 * 2**20
_FILE_REMEDY = "Give another file, or free its disk or its permissions."
_FOLDER_REMEDY = "Free some space or its permissions, or give another --out."
_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)


@contextlib.contextmanager
def atomic_file(
    path: str | os.PathLike, *, remedy: str = _FILE_REMEDY, durable: bool = False
) -> Iterator[pathlib.Path]:
    """Yields a path to write to; it becomes `path` on leaving without an error.

    Missing parent folders are made. The temporary name has a random part: of several processes
    that write one file, the last one wins, and the file is never a mixture.

    Args:
      path: replaced if it is there.
      remedy: the error's last sentence.
      durable: wait until the data are on the disk.
    Raises:
      EnvironmentProblem: the file cannot be written; the old one, if any, is unchanged.
    """
    path = expanded(path)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.partial")
    with _one_error(path, remedy):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            mode = os.fstat(file).st_mode & 0o777  # as the umask says
            os.close(file)
            yield partial
            partial.chmod(mode)  # safetensors leaves its files to their owner alone
            if durable:
                with open(partial, "rb") as written:
                    os.fsync(written.fileno())
            os.replace(partial, path)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


def write_file(
    path: str | os.PathLike, data: str | bytes, *, remedy: str = _FILE_REMEDY, durable: bool = False
) -> None:
    """Writes a whole file (text as UTF-8); see `atomic_file`."""
    with atomic_file(path, remedy=remedy, durable=durable) as partial:
        partial.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)


@contextlib.contextmanager
def atomic_directory(
    out: str | os.PathLike,
    *,
    needed_bytes: int = 0,
    say: Callable[[str], None] | None = None,
    remedy: str = _FOLDER_REMEDY,
) -> Iterator[pathlib.Path]:
    """Yields the folder NAME.partial to fill; it becomes `out` on leaving without an error.

    A lock in it tells a running process from a killed one, whose remains are removed.

    Args:
      out: the folder to make; nothing may be there.
      needed_bytes: upper bound of what will be written.
      say: is told that remains are removed.
      remedy: the error's last sentence.
    Raises:
      EnvironmentProblem: something is there; another process is making it; it cannot be written;
        or the disk is too full, before or meanwhile.
    """
    out = require_absent(out)
    partial = out.with_name(out.name + ".partial")
    with _one_error(out, f"Nothing is left of it. {remedy}"):
        out.parent.mkdir(parents=True, exist_ok=True)
        lock = _claim(partial, say)
        try:
            require_room(out.parent, needed_bytes)
            yield partial
            (partial / _LOCK).unlink()
            require_absent(out)
            partial.rename(out)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        finally:
            os.close(lock)


def require_absent(out: str | os.PathLike) -> pathlib.Path:
    """Returns the absolute path; raises EnvironmentProblem if something is there."""
    out = expanded(out).absolute()
    if os.path.lexists(out):
        raise EnvironmentProblem(
            f"{str(out)!r} exists already; nothing is overwritten. Give another --out, or remove "
            "it first."
        )
    return out


def require_room(folder: pathlib.Path, needed_bytes: int) -> None:
    """Raises EnvironmentProblem unless the disk has room for that many bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes + _SPARE:
        raise EnvironmentProblem(
            f"{str(folder)!r} has {free / 1e9:.2f} GB of room, but {needed_bytes / 1e9:.2f} GB "
            "are about to be written. Free some, or give another --out."
        )


def require_writable(folder: str | os.PathLike, remedy: str = _FOLDER_REMEDY) -> pathlib.Path:
    """Makes the folder if need be, writes and removes a file in it; returns its path without `~`.

    Raises:
      EnvironmentProblem: it cannot be made or written.
    """
    folder = expanded(folder)
    with _one_error(folder, remedy):
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{uuid.uuid4().hex[:8]}.partial"
        try:
            probe.write_bytes(b"\0" * 4096)  # a full disk still takes an empty file
        finally:
            probe.unlink(missing_ok=True)
    return folder


@contextlib.contextmanager
def _one_error(path: pathlib.Path, remedy: str) -> Iterator[None]:
    try:
        yield
    except Exception as e:
        refusal = _os_error_of(e)
        if refusal is None:
            raise
        raise EnvironmentProblem(
            f"{str(path)!r} cannot be written ({refusal.strerror or refusal}). {remedy}"
        ) from e


def _os_error_of(error: BaseException) -> OSError | None:
    """The OSError behind an exception, or None; a MogaoError says already what is wrong."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, MogaoError):
        if isinstance(cause, OSError):
            return cause
        for number in _REFUSALS:  # tensorstore and safetensors report it as text alone
            if os.strerror(number) in str(cause):
                return OSError(number, os.strerror(number))
        cause = cause.__cause__
    return None


def _claim(partial: pathlib.Path, say: Callable[[str], None] | None) -> int:
    """Makes the partial folder, without what a killed process left in it; returns its lock."""
    if partial.is_dir():
        lock, free = _lock(partial)
        if not free:
            os.close(lock)
            raise EnvironmentProblem(
                f"another process is writing {str(partial)!r}; wait for it, or give another --out."
            )
        if say is not None:
            say(f"Removing {partial}, which an interrupted run has left; starting anew.")
        shutil.rmtree(partial)
        os.close(lock)
    partial.mkdir()
    return _lock(partial)[0]


def _lock(folder: pathlib.Path) -> tuple[int, bool]:
    """(descriptor of the folder's lock file, whether this process holds the lock)."""
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return lock, False
    return lock, True
