"""Looking at a sampler's programs from outside: when each runs, and on what."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from mogao_jax.sampling.engine import Engine

_PROGRAMS = ("extend", "decode", "draw")
_ENCODERS = ("encode", "decode", "read")


@dataclasses.dataclass
class Call:
    """One call of a program: seconds of the clock, and its arguments."""

    name: str
    began: float
    ended: float
    args: tuple
    kwargs: dict[str, Any]


@dataclasses.dataclass
class Watch:
    """All calls so far, in order. Names of the encoders' programs begin with "picture "."""

    calls: list[Call] = dataclasses.field(default_factory=list)

    def named(self, name: str) -> list[Call]:
        return [call for call in self.calls if call.name == name]

    def span(self, name: str) -> float:
        """Seconds from the beginning of a program's first call to the end of its last."""
        calls = self.named(name)
        return calls[-1].ended - calls[0].began if calls else 0.0

    def total(self, name: str) -> float:
        """Seconds inside a program's calls."""
        return sum(call.ended - call.began for call in self.named(name))


@contextlib.contextmanager
def watching(engine: Engine) -> Iterator[Watch]:
    """Within it, every program is waited for, and noted."""
    watch = Watch()
    owners: list[tuple[Any, str, str]] = [(engine, name, name) for name in _PROGRAMS]
    owners += [(engine.encoders, name, f"picture {name}") for name in _ENCODERS]
    originals = [vars(owner).get(name) for owner, name, _ in owners]
    for owner, name, label in owners:
        setattr(owner, name, _noted(getattr(owner, name), label, watch))
    try:
        yield watch
    finally:
        for (owner, name, _), original in zip(owners, originals, strict=True):
            if original is None:  # a method, found in the class again
                delattr(owner, name)
            else:
                setattr(owner, name, original)


def _noted(program: Callable[..., Any], label: str, watch: Watch) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        result = jax.block_until_ready(program(*args, **kwargs))
        watch.calls.append(Call(label, began, time.perf_counter(), args, kwargs))
        return result

    return call
