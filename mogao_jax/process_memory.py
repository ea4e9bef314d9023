"""Memory of this process, as the system counts it."""

from __future__ import annotations

import os
import pathlib
import re
import resource
import sys


def peak_bytes() -> int:
    """The most memory that this program has had, in bytes.

    On Linux VmHWM, which begins anew with a program: getrusage's figure is never under what the
    process that started this one had.
    """
    try:
        status = pathlib.Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:  # not Linux
        status = ""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    if found:
        return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


def held_bytes() -> int:
    """Bytes that the program holds now (where that is not known: at most, so far)."""
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return peak_bytes()
