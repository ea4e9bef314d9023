"""Images of one's own data, judged by which known image they are nearest to.

A model goes on with a document up to one of its images; what it draws is compared with every
image that the documents show (the gallery). It is recognised if the nearest one is the one that
was asked for: the right thing, and, where the gallery holds variants of it, the right variant.

Distance is the root mean square of what remains between the images' means over blocks of
`BLOCK` x `BLOCK` pixels, so that what an image shows counts and not how sharp it is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np

from mogao_jax import images as image_ops
from mogao_jax.config.schema import ImageConfig
from mogao_jax.errors import DataError, DocumentError
from mogao_jax.evals.cards import Card, CardImage
from mogao_jax.evals.proportion import Proportion, count
from mogao_jax.images import native_pixels
from mogao_jax.sampling.options import SamplingOptions
from mogao_jax.sampling.requests import Request, Result
from mogao_jax.sequence.document import Document, Image, Item, Text

BLOCK = 4
NEAR = (1, 5)  # ranks that are reported


class Samples(Protocol):
    """A sampler, or a loaded model."""

    def sample(self, requests: Sequence[Request], /) -> list[Result]: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """An image that a document asks for."""

    prompt: Document  # the document up to the image
    wanted: np.ndarray  # the image, uint8[H, W, 3] as the model would see it
    given: np.ndarray | None  # the last image before it


@dataclasses.dataclass(frozen=True, eq=False)
class Judged:
    """What was drawn."""

    task: Task
    drawn: np.ndarray | None  # uint8[H, W, 3]; None if the model drew nothing
    rank: int  # images of the gallery nearer to it than the wanted one, plus 1; 0 without a drawing
    psnr: float  # of the drawn image against the wanted one in dB; NaN if nothing was drawn
    # Whether it is nearer to the wanted image than to the given one; None if no image was given, or
    # the two are the same.
    changed: bool | None


@dataclasses.dataclass(frozen=True, eq=False)
class Retrieval:
    """All that was judged, against a gallery of `size` different images."""

    judged: tuple[Judged, ...]
    size: int

    def within(self, rank: int) -> Proportion:
        """How often the wanted image is among the `rank` nearest."""
        return count(0 < j.rank <= rank for j in self.judged)

    def chance(self, rank: int) -> float:
        """The same of images drawn from the gallery by lot."""
        return min(1.0, rank / self.size)

    @property
    def changed(self) -> Proportion:
        """Of edits: how often the image is nearer to the wanted one than to the given one."""
        return count(bool(j.changed) for j in self.judged if j.changed is not None)

    @property
    def psnr(self) -> float:
        """Mean PSNR in dB of what was drawn."""
        drawn = [j.psnr for j in self.judged if j.drawn is not None]
        return float(np.mean(drawn)) if drawn else math.nan


def tasks_of(
    documents: Iterable[Document],
    images: ImageConfig,
    number: int,
    *,
    check: Callable[[Document], object] = lambda prompt: None,
    leave_out: Callable[[DocumentError], object] = lambda error: None,
) -> list[Task]:
    """The last image with a loss of each document that has one, until there are `number`.

    Args:
      images: how the model sees images.
      check: is given each prompt, its images read; raises DocumentError for one that cannot be
        served.
      leave_out: is told why a document is left out.
    Raises:
      DataError: none of them asks for an image.
    """
    tasks: list[Task] = []
    for document in documents:
        if len(tasks) == number:
            break
        places = [i for i, x in enumerate(document.items) if isinstance(x, Image) and x.loss]
        if places and places[-1]:
            try:
                task = _task(document, places[-1], images)
                check(task.prompt)
                tasks.append(task)
            except DocumentError as e:
                leave_out(e)
    if not tasks:
        what = "one with loss true, after something else"
        raise DataError(f"no document asks for an image that can be read: {what}.")
    return tasks


def _task(document: Document, place: int, images: ImageConfig) -> Task:
    """The task of drawing the item at `place`; raises DocumentError for unreadable images."""
    items: list[Item] = []
    given = None
    for item in document.items[:place]:
        if isinstance(item, Image):
            given = native_pixels(item, images)
            item = dataclasses.replace(item, path=None, data=None, pixels=given)
        items.append(item)
    wanted = document.items[place]
    assert isinstance(wanted, Image)
    return Task(Document(tuple(items), id=document.id), native_pixels(wanted, images), given)


def gallery_of(
    documents: Iterable[Document],
    images: ImageConfig,
    *,
    leave_out: Callable[[DocumentError], object] = lambda error: None,
) -> list[np.ndarray]:
    """All different images of the documents, uint8[H, W, 3] as the model would see them.

    Images that cannot be read are left out (training skips their documents too).

    Args:
      leave_out: is told why an image is left out.
    """
    by_path: set[object] = set()
    found: dict[str, np.ndarray] = {}
    for item in (x for document in documents for x in document.items if isinstance(x, Image)):
        if item.path is not None and item.path in by_path:
            continue
        by_path.add(item.path)
        try:
            pixels = native_pixels(item, images)
        except DocumentError as e:
            leave_out(e)
            continue
        name = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
        found.setdefault(name, pixels)
    return list(found.values())


def run(
    sampler: Samples,
    tasks: Sequence[Task],
    gallery: Sequence[np.ndarray],
    *,
    options: SamplingOptions,
    seed: int = 0,
    batch_size: int = 32,
    say: Callable[[str], None] = lambda message: None,
) -> Retrieval:
    """Draws every task's image, in its own size, and ranks the gallery by nearness to it.

    Args:
      options: steps and guidance; the image is drawn at once, and only one.
      seed: task number n has the seed `seed` * 2**20 + n.
      say: is told about progress.
    """
    options = dataclasses.replace(options, draw_first=True, max_images=1, max_tokens=0)
    side = max(max(p.shape[:2]) for p in [*gallery, *(t.wanted for t in tasks)])
    known = np.stack([_signature(p, side) for p in gallery])
    requests = [
        Request(t.prompt, seed * 2**20 + n, dataclasses.replace(options, size=t.wanted.shape[:2]))
        for n, t in enumerate(tasks)
    ]
    judged: list[Judged] = []
    for start in range(0, len(tasks), batch_size):
        part = slice(start, start + batch_size)
        results = zip(tasks[part], sampler.sample(requests[part]), strict=True)
        judged += [judge(task, result, known, side) for task, result in results]
        near = count(j.rank == 1 for j in judged).value
        say(f"{len(judged)} of {len(tasks)} images, {near:.0%} nearest to the one asked for")
    return Retrieval(tuple(judged), len(gallery))


def judge(task: Task, result: Result, known: np.ndarray, side: int) -> Judged:
    """Ranks one drawn image.

    Args:
      known: signatures of the gallery, float32[N, S], of canvases of `side` pixels.
    """
    drawn = next((x.pixels for x in result.items if isinstance(x, Image)), None)
    if drawn is None:
        return Judged(task, None, 0, math.nan, None if task.given is None else False)
    here, wanted = _signature(drawn, side), _signature(task.wanted, side)
    reach = _distance(here, wanted)
    # Strictly nearer: the wanted image itself is in the gallery at exactly this distance.
    nearer = int((np.sqrt(((known - here) ** 2).mean(1)) < reach * (1 - 1e-6)).sum())
    given = wanted if task.given is None else _signature(task.given, side)
    changed = reach < _distance(here, given) if _distance(given, wanted) > 0 else None
    return Judged(task, drawn, nearer + 1, _psnr(drawn, task.wanted), changed)


def _signature(pixels: np.ndarray, side: int) -> np.ndarray:
    """Means over blocks, float32, on a white canvas of `side` rounded up to whole blocks."""
    extent = math.ceil(side / BLOCK) * BLOCK
    canvas = np.full((extent, extent, 3), 255, np.float32)
    canvas[: pixels.shape[0], : pixels.shape[1]] = pixels
    n = extent // BLOCK
    return canvas.reshape(n, BLOCK, n, BLOCK, 3).mean((1, 3)).ravel()


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(((a - b) ** 2).mean()))


def _psnr(drawn: np.ndarray, wanted: np.ndarray) -> float:
    if drawn.shape != wanted.shape:  # sizes are asked for, so this is another model's limit
        drawn = image_ops.resize(drawn, *wanted.shape[:2])
    error = float(np.mean((drawn.astype(np.float64) - wanted) ** 2))
    return 10 * math.log10(255.0**2 / max(error, 1e-9))


def card(judged: Judged) -> Card:
    """A case as people look at it: what was given, what was drawn, what was asked for."""
    words = " / ".join(x.text for x in judged.task.prompt.items if isinstance(x, Text))
    images = [] if judged.task.given is None else [CardImage(judged.task.given, "given")]
    if judged.drawn is not None:
        images.append(CardImage(judged.drawn, "drawn", judged.rank == 1))
    images.append(CardImage(judged.task.wanted, "asked for"))
    reason = f"the asked one is number {judged.rank}" if judged.rank else "nothing was drawn"
    return Card(words, tuple(images), "", judged.rank == 1, reason)
