"""The sampler: writes and draws, for a batch of requests, until each has come to its end.

Requests go through phases together (phases.py): those in text write until all of them have paused
at <|vision_start|> or are done; then those that paused draw their pictures together; and so on.

    text      prefill of what is pending in the full context, then tokens in chunks
    drawing   prefill of what is pending in all contexts that guidance needs, then the clean VAE
              tokens of earlier pictures, which only a picture reads; then the flow, in chunks of
              steps; then the VAE's pixels, and what the ViT sees in them

Every phase is one program over a few bucketed shapes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mogao_jax.config.schema import MogaoConfig
from mogao_jax.errors import RequestError
from mogao_jax.images import native_pixels
from mogao_jax.models.modules import EncoderParams, Modules
from mogao_jax.sampling import lengths, prompts
from mogao_jax.sampling.engine import Engine
from mogao_jax.sampling.probing import Probe
from mogao_jax.sampling.requests import Event, OnEvent, Request, Result
from mogao_jax.sampling.scheduler import BatchScheduler
from mogao_jax.sampling.session import Session
from mogao_jax.sequence.document import Image
from mogao_jax.tokenizer import Tokenizer


class Sampler:
    """Samples from a model. Not to be used from several threads at once.

    Attributes:
      engine: the compiled programs.
      limits: tokens that a history may have.
      batch_size: see below.
    """

    def __init__(
        self,
        modules: Modules,
        params: Any,
        encoders: EncoderParams,
        tokenizer: Tokenizer,
        *,
        max_context: int | None = None,
        batch_size: int = 8,
        text_chunk: int = 16,
        step_chunk: int = 10,
        probe: Probe | None = None,
    ):
        """Makes a sampler; nothing is compiled yet.

        Args:
          modules, params, encoders, tokenizer: the model.
          max_context: text and ViT tokens that a history may have (clean VAE tokens in
            proportion, see `lengths.context_limits`); None: as a row of the training data.
          batch_size: requests that are served together.
          text_chunk: tokens written between two looks at them.
          step_chunk: steps of the solver between two reports.
          probe: is told every prediction; slow, for tests.
        """
        self.limits = lengths.context_limits(modules.config, max_context)
        self.batch_size = batch_size
        self._config, self._tokenizer = modules.config, tokenizer
        self.engine = Engine(
            modules,
            params,
            encoders,
            tokenizer,
            text_chunk=text_chunk,
            step_chunk=step_chunk,
            probe=probe,
        )

    @property
    def num_compilations(self) -> int:
        """Programs compiled so far: one for each phase and combination of shapes."""
        return self.engine.programs.num_compilations

    @property
    def allowed(self) -> np.ndarray:
        """Which tokens may be written, bool[V]; more can be forbidden here."""
        return self.engine.allowed

    def sample(self, requests: Sequence[Request], on_event: OnEvent | None = None) -> list[Result]:
        """Serves any number of requests, in batches of one size; results in their order.

        Args:
          on_event: called with (index of the request, event) as things come.
        Raises:
          RequestError: options or a seed that cannot be; before anything is computed.
          DocumentError: a prompt with a picture that cannot be read, or too long; before its
            batch is computed.
        """
        for request in requests:
            _check(request, self._config)
        num_batches = math.ceil(len(requests) / self.batch_size)
        results: list[Result] = []
        for k in range(num_batches):  # of nearly equal sizes: fewer programs
            first, last = (len(requests) * i // num_batches for i in (k, k + 1))
            sessions = self._open(requests[first:last], first, on_event)
            BatchScheduler(
                self.engine, sessions, batch_size=self.batch_size, limits=self.limits
            ).run()
            results += [session.result() for session in sessions]
        return results

    def _open(
        self, requests: Sequence[Request], first: int, on_event: OnEvent | None
    ) -> list[Session]:
        """Sessions of a batch, their prompts' pictures encoded."""
        pixels = [
            [native_pixels(item, self._config.images) for item in _pictures(request)]
            for request in requests
        ]
        encoded = iter(self.engine.encoders.encode([p for group in pixels for p in group]))
        return [
            Session(
                request,
                [next(encoded) for _ in group],
                config=self._config,
                tokenizer=self._tokenizer,
                limits=self.limits,
                tell=functools.partial(on_event or _ignore, first + i),
            )
            for i, (request, group) in enumerate(zip(requests, pixels, strict=True))
        ]


def _pictures(request: Request) -> list[Image]:
    return [item for item in request.document.items if isinstance(item, Image)]


def _check(request: Request, config: MogaoConfig) -> None:
    prompts.check_options(request.options, config)
    seed = request.seed
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise RequestError(f"seed is {seed!r}; it must be a whole number, 0 or more.")


def _ignore(index: int, event: Event) -> None:
    pass
