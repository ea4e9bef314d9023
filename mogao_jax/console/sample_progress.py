"""What is seen while `mogao sample` works: texts and image files on stdout, a bar on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TextIO

import tqdm

from mogao_jax.gallery.folder import Folder
from mogao_jax.sampling.requests import (
    Event,
    Finished,
    GeneratedImage,
    ImageProgress,
    ImageStarted,
    TextChunk,
)

_LINE_EVERY = 10.0  # seconds, where there is no terminal to draw a bar on


class Progress:
    """Shows one batch of requests, and saves images as they come.

    One request alone streams its text; of several, whole passages are printed, each with the
    request's name. Use as a context manager.

    Args:
      folder: where images are saved.
      numbers: of the documents, in the folder.
      names: printed before what belongs to a request; "" for one alone.
      num_images: images that each document already has.
      out, stream: default stdout and stderr.
    """

    def __init__(
        self,
        folder: Folder,
        numbers: Sequence[int],
        names: Sequence[str],
        num_images: Sequence[int],
        *,
        out: TextIO | None = None,
        stream: TextIO | None = None,
    ):
        self._folder, self._numbers, self._names = folder, numbers, names
        self._out, self._stream = out or sys.stdout, stream or sys.stderr
        self._passages = [""] * len(names)
        self._num_images = list(num_images)
        self._drawing: dict[int, tuple[int, int]] = {}  # request -> (step, steps)
        self._is_mid_line = False
        self._bar: tqdm.tqdm | None = None
        self._said = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._end_bar()
        for index in range(len(self._names)):
            self._flush(index)
        self._end_line()

    def show(self, index: int, event: Event) -> None:
        """To be called with every event."""
        if isinstance(event, TextChunk):
            if self._names[index]:
                self._passages[index] += event.text
            else:
                self._write(event.text)
        elif isinstance(event, ImageStarted):
            self._flush(index)
            self._end_line()
            self._drawing[index] = (0, 0)
        elif isinstance(event, ImageProgress):
            self._drawing[index] = (event.step, event.num_steps)
            self._show()
        elif isinstance(event, GeneratedImage):
            self._drawing.pop(index, None)
            if not self._drawing:
                self._end_bar()
            self._num_images[index] += 1
            path = self._folder.write_image(
                self._numbers[index], self._num_images[index], event.image
            )
            self._line(index, str(path))
        elif isinstance(event, Finished):
            self._flush(index)

    # ------------------------------------------------------------------------------------ stdout

    def _flush(self, index: int) -> None:
        passage, self._passages[index] = self._passages[index], ""
        for line in passage.strip().splitlines():
            self._line(index, line)

    def _line(self, index: int, text: str) -> None:
        self._end_line()
        name = self._names[index]
        self._write(f"{name}: {text}\n" if name else f"{text}\n")

    def _end_line(self) -> None:
        if self._is_mid_line:
            self._write("\n")

    def _write(self, text: str) -> None:
        if not text:
            return
        if self._bar is not None:
            self._bar.clear()
        # A model may write anything: no control characters to the user's terminal.
        text = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
        encoding = self._out.encoding or "utf-8"
        self._out.write(text.encode(encoding, "replace").decode(encoding))
        self._out.flush()
        self._is_mid_line = not text.endswith("\n")

    # ------------------------------------------------------------------------------------ stderr

    def _show(self) -> None:
        step = min(s for s, _ in self._drawing.values())
        total = max(n for _, n in self._drawing.values())
        count = len(self._drawing)
        what = "drawing" if count == 1 else f"drawing {count} images"
        if not self._stream.isatty():
            if step < total and time.monotonic() - self._said > _LINE_EVERY:
                self._said = time.monotonic()
                print(f"{what}: step {step} of {total}", file=self._stream)
            return
        if self._bar is None:
            self._bar = tqdm.tqdm(file=self._stream, leave=False, dynamic_ncols=True, unit="step")
        self._bar.set_description_str(what, refresh=False)
        self._bar.total, self._bar.n = total, step
        self._bar.refresh()

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
