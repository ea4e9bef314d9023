"""The folder of compiled programs: in the user's cache, used again, and never in the way."""

from __future__ import annotations

import os
import subprocess
import sys

_CODE = """
from mogao_jax.compile_cache import keep_compiled_programs
import jax
print(keep_compiled_programs())
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: x * 3 + 1)(2.0)
"""


def _run(**environment) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION_CACHE")}
    result = subprocess.run(
        [sys.executable, "-c", _CODE],
        env=clean | {"JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout.strip()


def test_programs_are_kept_in_the_users_cache(tmp_path):
    folder = _run(XDG_CACHE_HOME=str(tmp_path))
    assert folder.startswith(str(tmp_path / "mogao_jax"))
    assert any(name.endswith("-cache") for name in os.listdir(folder))


def test_what_the_user_set_is_left_alone(tmp_path):
    own = tmp_path / "own"
    assert _run(XDG_CACHE_HOME=str(tmp_path), JAX_COMPILATION_CACHE_DIR=str(own)) == "None"
    assert not (tmp_path / "mogao_jax").exists() and any(own.iterdir())


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert _run(XDG_CACHE_HOME=str(tmp_path / "file")) == "None"
