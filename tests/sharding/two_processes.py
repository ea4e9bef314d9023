"""Starts two programs that find each other by jax.distributed, and waits for both."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Mapping


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run_two(
    command: Callable[[int], list[str]], *, timeout: float, env: Mapping[str, str] = os.environ
) -> list[str]:
    """What `command(process)` for processes 0 and 1 print; fails where one of them does."""
    children = [
        subprocess.Popen(
            command(i), env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for i in range(2)
    ]
    try:
        outputs = [child.communicate(timeout=timeout) for child in children]
    finally:
        for child in children:
            child.kill()
    for child, (_, err) in zip(children, outputs, strict=True):
        assert child.returncode == 0, err[-3000:]
    return [out for out, _ in outputs]
