"""Compiled programs are kept in the user's cache folder: the second run starts in seconds."""

from __future__ import annotations

import hashlib
import os
import pathlib
import platform

import jax


def keep_compiled_programs() -> pathlib.Path | None:
    """Turns on JAX's persistent cache, unless JAX_COMPILATION_CACHE_DIR says otherwise.

    Returns:
      The folder, $XDG_CACHE_HOME/mogao_jax/...; None where it cannot be made, or another is set.
      JAX_ENABLE_COMPILATION_CACHE=false turns caching off.
    """
    if getattr(jax.config, "jax_compilation_cache_dir", None):
        return None
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    # A folder per kind of processor: programs for one may not run on another that shares the home.
    folder = pathlib.Path(root) / "mogao_jax" / f"compiled-{_processor()}"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    return folder


def _processor() -> str:
    what = platform.machine() + platform.processor()
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        what += next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):  # not Linux
        pass
    return hashlib.sha256(what.encode()).hexdigest()[:8]
