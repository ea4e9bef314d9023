"""A sampler that computes nothing: a sentence, an image, a sentence, all by request and seed."""

from __future__ import annotations

import dataclasses
import time

import numpy as np

from mogao_jax.sampling.requests import (
    Finished,
    GeneratedImage,
    ImageProgress,
    ImageStarted,
    Result,
    TextChunk,
)
from mogao_jax.sequence.document import Image, Text


class FakeSampler:
    """What it was asked is in `batches`.

    Attributes:
      delay: seconds per step of the solver.
      fail_at: raises at this step of the solver.
      script: texts before and after the image.
    """

    def __init__(self, *, delay: float = 0.0, fail_at: int = -1, script=("look: ", "that is all.")):
        self.batches: list = []
        self.num_compilations = 0
        self.delay, self.fail_at, self.script = delay, fail_at, script
        self.steps_done = 0

    def sample(self, requests, on_event=None):
        self.batches.append(list(requests))
        self.num_compilations = 5
        tell = on_event or (lambda index, event: None)
        return [self.serve_one(i, r, tell) for i, r in enumerate(requests)]

    def serve_one(self, index, request, tell):
        options, items = request.options, []

        def write(text):
            for word in text.split(" "):
                tell(index, TextChunk(word + " "))
            items.append(Text(text + " ", role="assistant"))

        if not options.draw_first:
            write(self.script[0])
        if options.allow_images:
            height, width = options.size or (32, 32)
            tell(index, ImageStarted((height, width)))
            for step in range(options.num_steps):
                if step == self.fail_at:
                    raise RuntimeError("the fake failed")
                time.sleep(self.delay)
                self.steps_done += 1
                tell(index, ImageProgress(step + 1, options.num_steps))
            pixels = np.full((height, width, 3), request.seed % 256, np.uint8)
            items.append(Image(pixels=pixels, role="assistant"))
            tell(index, GeneratedImage(items[-1]))
        write(self.script[1])
        document = dataclasses.replace(
            request.document, items=(*request.document.items, *items), complete=True
        )
        result = Result(tuple(items), "end", document)
        tell(index, Finished(result))
        return result
