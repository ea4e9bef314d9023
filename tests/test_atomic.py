"""The one writer of files and folders: whole under their name, or not there."""

from __future__ import annotations

import errno
import os
import shutil
import stat

import pytest

from mogao_jax import atomic
from mogao_jax.errors import CheckpointError, EnvironmentProblem


def left_in(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_file_appears_whole(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with atomic.atomic_file(path) as partial:
        assert partial.parent == path.parent and partial.name.endswith(".partial")
        partial.write_text("one")
        assert not path.exists()
    assert path.read_text() == "one" and left_in(path.parent) == ["a.txt"]
    atomic.write_file(path, "zwölf", durable=True)
    assert path.read_bytes() == "zwölf".encode()
    atomic.write_file(path, b"\xff")
    assert path.read_bytes() == b"\xff"


def test_mode_is_that_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_text("x")
    with atomic.atomic_file(tmp_path / "a") as partial:
        partial.chmod(0o600)
    modes = [stat.S_IMODE((tmp_path / n).stat().st_mode) for n in ("plain", "a")]
    assert modes[0] == modes[1]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file(tmp_path, error):
    (tmp_path / "a").write_text("old")
    with pytest.raises(error), atomic.atomic_file(tmp_path / "a") as partial:
        partial.write_text("half")
        raise error
    assert (tmp_path / "a").read_text() == "old" and left_in(tmp_path) == ["a"]


def test_the_system_says_no(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(EnvironmentProblem, match="file/a' cannot be written .* Go elsewhere"):
        atomic.write_file(tmp_path / "file" / "a", "x", remedy="Go elsewhere.")
    with pytest.raises(EnvironmentProblem, match="cannot be written .*give another --out"):
        atomic.require_writable(tmp_path / "file", "Please give another --out.")
    with (
        pytest.raises(EnvironmentProblem, match="No space left.*Nothing is left"),
        atomic.atomic_directory(tmp_path / "out"),
    ):
        raise RuntimeError(f"Error writing: {os.strerror(errno.ENOSPC)} [tensorstore]")
    assert left_in(tmp_path) == ["file"]


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(CheckpointError, match="cut short"), atomic.atomic_directory(tmp_path / "o"):
        raise CheckpointError("cut short") from OSError(errno.EIO, "x")
    assert left_in(tmp_path) == []


def test_a_folder_appears_whole(tmp_path):
    with atomic.atomic_directory(tmp_path / "new" / "out") as folder:
        assert folder == tmp_path / "new" / "out.partial"
        (folder / "a").write_text("x")
    assert left_in(tmp_path / "new") == ["out"] and left_in(tmp_path / "new" / "out") == ["a"]
    with (
        pytest.raises(EnvironmentProblem, match="exists already"),
        atomic.atomic_directory(tmp_path / "new" / "out"),
    ):
        pass


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "half").write_text("x")
    said: list[str] = []
    with atomic.atomic_directory(tmp_path / "out", say=said.append) as folder:
        # Another one that runs at the same time is noticed.
        with (
            pytest.raises(EnvironmentProblem, match="another process"),
            atomic.atomic_directory(tmp_path / "out"),
        ):
            pass
        assert left_in(folder) == [".in-progress"]
    assert "interrupted" in said[0] and left_in(tmp_path / "out") == []


def test_room_is_checked_first(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=64 * 2**20 + 9))
    atomic.require_room(tmp_path, 9)
    with (
        pytest.raises(EnvironmentProblem, match="GB of room"),
        atomic.atomic_directory(tmp_path / "out", needed_bytes=10),
    ):
        pass
    assert left_in(tmp_path) == []
