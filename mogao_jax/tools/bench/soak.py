"""Many generations of every kind in one process.

Checks that nothing crashes, results are well formed, no program is compiled again for the same
shapes, and memory stops growing. Programs take memory too, so everything is served a second time,
when there is nothing left to compile.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from mogao_jax.config.geometry import VAE_GRID
from mogao_jax.config.schema import MogaoConfig
from mogao_jax.process_memory import held_bytes
from mogao_jax.sampling.loading import Model
from mogao_jax.sampling.requests import Request, Result
from mogao_jax.sampling.sampler import Sampler
from mogao_jax.sequence.document import Image, Text
from mogao_jax.sequence.elements import apply_chat_template
from mogao_jax.tools.bench import fixtures

_MIB = 2**20
_MAX_TOKENS = 64
_STOPS = ("end", "max_images", "max_tokens", "cache_full")


@dataclasses.dataclass(frozen=True)
class Point:
    """The state after `done` generations."""

    done: int
    compilations: dict[str, int]  # of the sampler's programs, by name
    memory: int  # bytes that the process holds
    seconds: float  # since the beginning

    @property
    def num_compilations(self) -> int:
        return sum(self.compilations.values())


@dataclasses.dataclass(frozen=True)
class Soak:
    """Result of a soak run. A program with more compilations than shapes was compiled again."""

    points: list[Point]  # those of the first time, then those of the second
    stops: dict[str, int]  # number of results by what ended them
    produced: dict[str, int]  # number of texts, images
    broken: list[str]  # what is wrong with results, in words
    shapes: dict[str, int]  # number of combinations that each transformer program was called with

    @property
    def growth(self) -> int:
        """Bytes that serving everything a second time added."""
        return self.points[-1].memory - self.points[len(self.points) // 2 - 1].memory

    @property
    def recompiled(self) -> int:
        """Compilations beyond one per combination of shapes."""
        compiled = self.points[-1].compilations
        return sum(max(0, compiled.get(name, 0) - n) for name, n in self.shapes.items())


def soak(
    model: Model,
    num: int,
    *,
    seed: int = 0,
    num_steps: int = 8,
    batch_size: int = 8,
    num_points: int = 8,
    say: Callable[[str], None] = lambda message: None,
) -> Soak:
    """Serves `num` random requests, in batches, and then the same ones again.

    The context is hardly longer than the longest prompt, so that some requests reach its end.
    """
    requests = fixtures.mixed_requests(
        model.config, num, seed=seed, num_steps=num_steps, max_tokens=_MAX_TOKENS
    )
    max_length = fixtures.longest(model, requests) + _MAX_TOKENS // 4
    sampler = fixtures.make_sampler(model, max_length, batch_size, few_tokens=True)
    shapes = _watch_shapes(sampler)
    stops = collections.Counter({stop: 0 for stop in _STOPS})
    produced: collections.Counter[str] = collections.Counter({"texts": 0, "images": 0})
    broken, points = [], []
    began, done = time.monotonic(), 0
    prepared = [sampler.prepare(r) for r in requests]
    edges = np.linspace(0, num, min(num_points, num) + 1).astype(int)
    parts = [prepared[first:last] for first, last in itertools.pairwise(edges)]
    for part in (*parts, *parts):
        results = sampler.sample(part)
        for i, (request, result) in enumerate(zip(part, results, strict=True)):
            stops[result.stop] += 1
            for item in result.items:
                produced["texts" if isinstance(item, Text) else "images"] += 1
            broken += [f"generation {done + i}: {x}" for x in faults(request, result, model)]
        done += len(part)
        counts = dict(sampler.engine.programs.counts)
        points.append(Point(done, counts, held_bytes(), time.monotonic() - began))
        say(f"{done} done, {points[-1].num_compilations} compilations")
    seen = {name: len(keys) for name, keys in shapes.items()}
    return Soak(points, dict(stops), dict(produced), broken, seen)


def faults(request: Request, result: Result, model: Model) -> list[str]:
    """What is wrong with the form of a result."""
    images = [item for item in result.items if isinstance(item, Image)]
    is_text = [isinstance(item, Text) for item in result.items]
    options, document = request.options, result.document
    given = len(request.document.items)
    checks = {
        "an unknown stop": result.stop in _STOPS,
        "another prompt": tuple(document.items[:given]) == tuple(request.document.items),
        "lost items": tuple(document.items[given:]) == result.items,
        "a wrong end": document.complete == (result.stop == "end"),
        "a document that cannot be fed back in": bool(
            apply_chat_template(document, model.tokenizer, add_generation_prompt=True)
        ),
        "two texts in a row": not any(a and b for a, b in itertools.pairwise(is_text)),
        "an empty text": all(item.text for item in result.items if isinstance(item, Text)),
        "no image first": not (options.draw_first and is_text[0]),
        "a forbidden image": options.allow_images or not images,
        "too many images": len(images) <= options.max_images,
        "stopped by images that are not there": (
            result.stop != "max_images" or len(images) == options.max_images
        ),
    }
    found = [what for what, is_right in checks.items() if not is_right]
    return found + [x for image in images for x in _size_faults(image, request, model.config)]


def _size_faults(image: Image, request: Request, config: MogaoConfig) -> list[str]:
    assert image.pixels is not None
    height, width = image.pixels.shape[:2]
    asked, limits = request.options.size, config.images
    if (height, width) != (asked or (height, width)) or height % VAE_GRID or width % VAE_GRID:
        return [f"an image {image.pixels.shape}, asked for {asked}"]
    if height * width > limits.max_pixels or max(height, width) > limits.max_side:
        return [f"an image larger than the model draws: {height}x{width}"]
    return []


def _watch_shapes(sampler: Sampler) -> dict[str, set]:
    """Notes the shapes that the transformer's programs are called with from now on."""
    seen: dict[str, set] = {name: set() for name in ("prefill", "decode", "integrate_flow")}

    def noted(name: str, program: Callable[..., Any]) -> Callable[..., Any]:
        def call(params: Any, *args: Any, **static: Any) -> Any:
            leaves, tree = jax.tree.flatten(args)
            seen[name].add((tree, *map(np.shape, leaves), *sorted(static.items())))
            return program(params, *args, **static)

        return call

    for name in seen:
        setattr(sampler.engine, name, noted(name, getattr(sampler.engine, name)))
    return seen


def as_text(name: str, found: Soak, machine: Mapping[str, str]) -> str:
    """The curve of compilations and memory, what ended generations, and what was wrong."""
    last = found.points[-1]
    lines = [
        f"{last.done} mixed generations of {name}, half of them again, in {last.seconds:.0f} s",
        "; ".join(f"{key} {value}" for key, value in machine.items()),
        "",
        f"{'done':>6}  {'compilations':>12}  {'memory, MiB':>11}  {'seconds':>8}",
    ]
    for p in found.points:
        memory = p.memory / _MIB
        lines.append(f"{p.done:>6}  {p.num_compilations:>12}  {memory:>11.0f}  {p.seconds:>8.0f}")
    lines += [
        "",
        f"programs compiled: {_counts(dict(sorted(last.compilations.items())))}",
        f"compiled again for the same shapes: {found.recompiled}",
        f"memory that the second time added: {found.growth / _MIB:.0f} MiB",
        f"produced: {_counts(found.produced)}",
        f"ended by: {_counts(found.stops)}",
        f"results in bad form: {len(found.broken)}",
    ]
    return "\n".join(lines + [f"  {what}" for what in found.broken])


def as_json(name: str, found: Soak, machine: Mapping[str, str]) -> dict[str, Any]:
    """The same as numbers."""
    record = dataclasses.asdict(found)
    return {"model": name, "machine": dict(machine), **record, "recompiled": found.recompiled}


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in counts.items())
