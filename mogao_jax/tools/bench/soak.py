"""Many generations of every kind in one process: does it go on as it began?

No crash, results in good form, no compilation for shapes that were met before, memory that stays.
Programs take memory too, so everything is served a second time: then there is nothing to compile.
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from mogao_jax.config.geometry import VAE_GRID
from mogao_jax.process_memory import held_bytes
from mogao_jax.sampling.loading import Model
from mogao_jax.sampling.requests import Request, Result
from mogao_jax.sampling.sampler import Sampler
from mogao_jax.sequence.document import Image, Text
from mogao_jax.sequence.elements import apply_chat_template
from mogao_jax.tools.bench import fixtures
from mogao_jax.tools.bench.mixed import longest, mixed_requests

_MAX_TOKENS = 64
_STOPS = ("end", "max_images", "max_tokens", "cache_full")


@dataclasses.dataclass(frozen=True)
class Point:
    """How things stand after `done` generations.

    Attributes:
      compilations: programs of the sampler, by name.
      memory: bytes that the process holds.
      seconds: since the beginning.
    """

    done: int
    compilations: dict[str, int]
    memory: int
    seconds: float

    @property
    def num_compilations(self) -> int:
        return sum(self.compilations.values())


@dataclasses.dataclass(frozen=True)
class Soak:
    """What came of it.

    Attributes:
      points: in order; those of the first time, then those of the second.
      stops: results by what ended them.
      produced: number of texts, pictures.
      broken: what was wrong with results, in words; nothing, it is hoped.
      shapes: combinations of shapes that the transformer's programs were called with, by program.
        One that was compiled more often than that was compiled again for the same shapes.
    """

    points: list[Point]
    stops: dict[str, int]
    produced: dict[str, int]
    broken: list[str]
    shapes: dict[str, int]

    @property
    def growth(self) -> int:
        """Bytes that serving everything a second time added."""
        return self.points[-1].memory - self.points[len(self.points) // 2 - 1].memory

    @property
    def recompiled(self) -> int:
        """Programs that were compiled again for shapes that they had been compiled for."""
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

    The context is hardly longer than the longest prompt, so that some run into its end.
    """
    requests = mixed_requests(
        model.config, num, seed=seed, num_steps=num_steps, max_tokens=_MAX_TOKENS
    )
    sampler = Sampler(
        model.modules,
        model.params,
        model.encoders,
        model.tokenizer,
        max_context=longest(model, requests) + _MAX_TOKENS // 4,
        batch_size=batch_size,
    )
    if model.weights == fixtures.RANDOM:
        fixtures.write_few_tokens(sampler, model.tokenizer)
    shapes = _watch_shapes(sampler)
    stops = collections.Counter({stop: 0 for stop in _STOPS})
    produced: collections.Counter[str] = collections.Counter({"texts": 0, "pictures": 0})
    broken, points = [], []
    began, done = time.monotonic(), 0
    parts = list(_parts(requests, num_points))
    for part in (*parts, *parts):
        results = sampler.sample(part)
        for i, (request, result) in enumerate(zip(part, results, strict=True)):
            stops[result.stop] += 1
            for item in result.items:
                produced["texts" if isinstance(item, Text) else "pictures"] += 1
            broken += [f"generation {done + i}: {x}" for x in faults(request, result, model)]
        done += len(part)
        counts = dict(sampler.engine.programs.counts)
        points.append(Point(done, counts, held_bytes(), time.monotonic() - began))
        say(f"{done} done, {points[-1].num_compilations} compilations")
    seen = {name: len(keys) for name, keys in shapes.items()}
    return Soak(points, dict(stops), dict(produced), broken, seen)


def _parts(requests: Sequence[Request], count: int) -> Iterator[Sequence[Request]]:
    edges = np.linspace(0, len(requests), min(count, len(requests)) + 1).astype(int)
    for first, last in zip(edges[:-1], edges[1:], strict=True):
        yield requests[first:last]


def faults(request: Request, result: Result, model: Model) -> list[str]:
    """What is wrong with the form of a result."""
    options, items, images = request.options, result.items, model.config.images
    pictures = [item for item in items if isinstance(item, Image)]
    adjacent = zip(items[:-1], items[1:], strict=True)
    given = len(request.document.items)
    checks = {
        "an unknown stop": result.stop in _STOPS,
        "two texts in a row": not any(
            isinstance(a, Text) and isinstance(b, Text) for a, b in adjacent
        ),
        "an empty text": all(item.text for item in items if isinstance(item, Text)),
        "no picture first": not options.draw_first or isinstance(items[0], Image),
        "a forbidden picture": options.allow_images or not pictures,
        "too many pictures": len(pictures) <= options.max_images,
        "stopped by pictures that are not there": result.stop != "max_images"
        or len(pictures) == options.max_images,
        "another prompt": tuple(result.document.items[:given]) == tuple(request.document.items),
        "lost items": tuple(result.document.items[given:]) == items,
        "a wrong end": result.document.complete == (result.stop == "end"),
    }
    found = [what for what, is_right in checks.items() if not is_right]
    for picture in pictures:
        pixels = picture.pixels
        assert pixels is not None
        height, width = pixels.shape[:2]
        fits = height * width <= images.max_pixels and max(height, width) <= images.max_side
        wanted = options.size or (height, width)
        if (height, width) != wanted or height % VAE_GRID or width % VAE_GRID:
            found.append(f"a picture {pixels.shape}, asked for {options.size}")
        elif not fits:
            found.append(f"a picture larger than the model draws: {height}x{width}")
    if not apply_chat_template(result.document, model.tokenizer, add_generation_prompt=True):
        found.append("a document that cannot be fed back in")
    return found


def _watch_shapes(sampler: Sampler) -> dict[str, set]:
    """Notes with what shapes the transformer's programs are called from now on."""
    seen: dict[str, set] = {name: set() for name in ("extend", "decode", "draw")}

    def noted(name: str, program: Callable[..., Any]) -> Callable[..., Any]:
        def call(params: Any, *args: Any, **static: Any) -> Any:
            leaves, tree = jax.tree.flatten(args)
            shapes = tuple(np.shape(leaf) for leaf in leaves)
            seen[name].add((shapes, tree, tuple(sorted(static.items()))))
            return program(params, *args, **static)

        return call

    for name in seen:
        setattr(sampler.engine, name, noted(name, getattr(sampler.engine, name)))
    return seen
