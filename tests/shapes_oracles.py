"""Samplers that know the truth, or that are wrong in a known way."""

from __future__ import annotations

import dataclasses

import numpy as np

from mogao_jax.sampling.requests import Result
from mogao_jax.sequence.document import Document, Image, Text
from mogao_jax.worlds.shapes.world import ShapesSource


def whole(request) -> tuple[Document, int]:
    """The held-out document of a request, and how many of its items are the prompt."""
    _, task, split, seed, index = request.document.id.split("/")
    document = ShapesSource(task, int(seed), split)[int(index)]
    return document, len(request.document.items)


@dataclasses.dataclass
class Oracle:
    """Returns the truth; `spoil(items, request)` may change it."""

    requests: list = dataclasses.field(default_factory=list)

    def spoil(self, items, request):
        return items, "end"

    def sample(self, requests, on_event=None):
        self.requests += requests
        results = []
        for request in requests:
            document, given = whole(request)
            items, stop = self.spoil(document.items[given:], request)
            drawn = sum(isinstance(i, Image) for i in items)
            if stop == "end" and drawn >= request.options.max_images:
                stop = "max_images"
            made = Document((*request.document.items, *items), id=document.id)
            results.append(Result(tuple(items), stop, made))
        return results


class Silent(Oracle):
    """Says nothing and draws nothing."""

    def spoil(self, items, request):
        return (), "end"


class Blank(Oracle):
    """Right texts without their last letters, and white images."""

    def spoil(self, items, request):
        white = np.full((64, 64, 3), 255, np.uint8)
        return tuple(
            Text(i.text[:-3], i.role) if isinstance(i, Text) else Image(pixels=white, role=i.role)
            for i in items
        ), "end"


class Repeating(Oracle):
    """Right texts; every image is the last one there was."""

    def spoil(self, items, request):
        last = [i for i in request.document.items if isinstance(i, Image)][-1:]
        out = []
        for item in items:
            if isinstance(item, Image):
                item = last[-1] if last else item
                last = [item]
            out.append(item)
        return tuple(out), "end"


class Endless(Oracle):
    """The truth, cut off by a limit before its end."""

    def spoil(self, items, request):
        return items, "max_tokens"
