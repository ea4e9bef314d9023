"""A loaded model as one uses it from Python:

model = mogao_jax.load("demo")
for item in model.generate("a red circle left of a blue square", seed=3):
    if isinstance(item, str):
        print(item, end="")               # text, as it comes
    else:
        show(item.pixels)                 # an image, when it is done: uint8[H, W, 3]
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Unpack

from mogao_jax.config.schema import MogaoConfig
from mogao_jax.sampling.loading import Model
from mogao_jax.sampling.options import OptionFields, make_options
from mogao_jax.sampling.requests import (
    Event,
    GeneratedImage,
    OnEvent,
    PreparedRequest,
    Request,
    Result,
    TextChunk,
    as_document,
    prepare,
    token_limits,
)
from mogao_jax.sequence.document import Document, Image
from mogao_jax.tokenizer import Tokenizer

if TYPE_CHECKING:
    from mogao_jax.sampling.sampler import Sampler


class Pipeline:
    """A model with a sampler. Calls from several threads are served one after another.

    Attributes:
      model: what was loaded (parameters, step, where from).
      limits: tokens that a document may have.
    """

    def __init__(self, model: Model, *, batch_size: int = 8, max_length: int | None = None):
        """Serves `batch_size` requests together; `max_length`: see `mogao_jax.load`."""
        self.model = model
        self.limits = token_limits(model.config, max_length)
        self._sampler = make_sampler(model, batch_size, max_length)
        self._lock = threading.Lock()

    @property
    def config(self) -> MogaoConfig:
        return self.model.config

    @property
    def tokenizer(self) -> Tokenizer:
        return self.model.tokenizer

    @property
    def num_compilations(self) -> int:
        """Programs compiled so far."""
        return self._sampler.num_compilations

    def generate(
        self, prompt: Document | str, *, seed: int = 0, **options: Unpack[OptionFields]
    ) -> Stream:
        """Goes on with a document, or answers a text.

        Args:
          prompt: a document, or what a user says.
          seed: the same seed gives the same output.
          **options: fields of SamplingOptions; the others are as `config.sampling` has them.
        Returns:
          An iterator of pieces of text (str) and images (Image), as they come; it has the whole
          `result` when it has ended.
        Raises:
          RequestError, DocumentError: before anything is computed.
        """
        request = Request(as_document(prompt), seed, make_options(options, self.config))
        return Stream(self, self.prepare(request))

    def sample(self, requests: Sequence[Request], on_event: OnEvent | None = None) -> list[Result]:
        """Serves requests in batches; `on_event(index, event)` is told what happens meanwhile."""
        prepared = [self.prepare(request) for request in requests]
        with self._lock:
            return self._sampler.sample(prepared, on_event)

    def prepare(self, request: Request) -> PreparedRequest:
        """See `requests.prepare`; nothing is computed."""
        return prepare(request, self.config, self.tokenizer, self.limits)


def make_sampler(model: Model, batch_size: int, max_length: int | None = None) -> Sampler:
    """The sampler of a model; `max_length`: see `mogao_jax.load`."""
    from mogao_jax.sampling.sampler import Sampler

    parts = (model.modules, model.params, model.encoders, model.tokenizer)
    return Sampler(*parts, max_length=max_length, batch_size=batch_size)


class _Abandoned(Exception):
    """Nobody waits for the output any more."""


class Stream(Iterator["str | Image"]):
    """What a generation yields, while a thread computes it.

    The thread ends soon after the stream was closed, dropped or interrupted: at its next event.

    Attributes:
      result: the whole Result when the stream has ended, None before.
    """

    def __init__(self, generator: Pipeline, request: Request):
        self.result: Result | None = None
        self._queue: queue.SimpleQueue[str | Image | Result | BaseException | None] = (
            queue.SimpleQueue()
        )
        self._stop = threading.Event()
        # The thread knows nothing of the stream itself, so that a dropped one is collected.
        arguments = (generator, request, self._queue, self._stop)
        self._thread = threading.Thread(target=_work, args=arguments, name="mogao-generate")
        self._ended = False
        self._thread.start()

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> str | Image:
        if self._ended:
            raise StopIteration
        try:
            piece = self._queue.get()
        except BaseException:  # interrupted while waiting
            self.close()
            raise
        if isinstance(piece, (str, Image)):
            return piece
        self._ended = True
        self._thread.join()
        if isinstance(piece, BaseException):
            raise piece
        self.result = piece
        raise StopIteration

    def close(self) -> None:
        """Ends the generation; may be called at any time."""
        self._ended = True
        self._stop.set()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        self._stop.set()


def _work(
    generator: Pipeline, request: Request, out: queue.SimpleQueue, stop: threading.Event
) -> None:
    def on_event(index: int, event: Event) -> None:
        # A program that comes to its end waits for its threads: the main one is gone by then.
        if stop.is_set() or not threading.main_thread().is_alive():
            raise _Abandoned
        if isinstance(event, TextChunk) and event.text:
            out.put(event.text)
        elif isinstance(event, GeneratedImage):
            out.put(event.image)

    try:
        with generator._lock:
            if stop.is_set():
                raise _Abandoned
            out.put(generator._sampler.sample([request], on_event)[0])
    except _Abandoned:
        out.put(None)
    except BaseException as e:  # noqa: BLE001  (raised again where the stream is read)
        out.put(e)
