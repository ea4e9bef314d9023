"""The process's own memory: now, and at most."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from mogao_jax.process_memory import held_bytes, peak_bytes


def run(program: str) -> list[int]:
    program = f"from mogao_jax.process_memory import peak_bytes\n{program}"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return [int(word) for word in ended.stdout.split()]


def test_grows_with_what_is_used():
    before, after = run("a = peak_bytes(); x = b'x' * 2**28; del x; print(a, peak_bytes())")
    assert before + 2**28 * 0.95 <= after < before + 2**28 * 1.1


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system's figure is taken as is")
def test_a_large_parent_does_not_count():
    held = np.ones(2**29, np.uint8)
    (child,) = run("print(peak_bytes())")
    assert peak_bytes() >= held.nbytes
    assert 2**22 < child < 2**28


def test_what_is_held_now():
    before = held_bytes()
    block = np.ones(2**26, np.uint8)
    assert before > 2**24 and held_bytes() >= before + block.nbytes // 2
