"""The sampler: writes text and generates images, for batches of requests, until each is done.

    text    prefill of what is pending in the full context, then tokens in chunks (decode)
    image   prefill of what is pending in all contexts that guidance needs, then of the clean VAE
            tokens of earlier images, which only an image reads; then the flow, in chunks of
            steps; then the VAE's pixels, and what the ViT sees in them

Requests of a batch go through these phases together (scheduler.py). Every phase is one program
over a few bucketed shapes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mogao_jax.models.modules import EncoderParams, Modules
from mogao_jax.sampling.engine import Engine
from mogao_jax.sampling.programs import Probe
from mogao_jax.sampling.requests import (
    Event,
    OnEvent,
    PreparedRequest,
    Request,
    Result,
    prepare,
    token_limits,
)
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
        max_length: int | None = None,
        batch_size: int = 8,
        text_chunk: int = 16,
        step_chunk: int = 10,
        probe: Probe | None = None,
    ):
        """Makes a sampler; nothing is compiled yet.

        Args:
          modules, params, encoders, tokenizer: the model.
          max_length: text and ViT tokens that a history may have (clean VAE tokens in
            proportion, see `token_limits`); None: as a row of the training data.
          batch_size: requests that are served together.
          text_chunk: tokens written between two looks at them.
          step_chunk: steps of the solver between two reports.
          probe: is told every prediction; slow, for tests.
        """
        self.limits = token_limits(modules.config, max_length)
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

    def prepare(self, request: Request) -> PreparedRequest:
        """See `requests.prepare`; nothing is computed."""
        return prepare(request, self._config, self._tokenizer, self.limits)

    def sample(self, requests: Sequence[Request], on_event: OnEvent | None = None) -> list[Result]:
        """Serves any number of requests, in batches of one size; results in their order.

        Args:
          on_event: called with (index of the request, event) as things come.
        Raises:
          RequestError, DocumentError: as `prepare`, for any request, before anything is computed.
        """
        prepared = [self.prepare(request) for request in requests]
        num_batches = math.ceil(len(prepared) / self.batch_size)
        results: list[Result] = []
        for k in range(num_batches):  # of nearly equal sizes: fewer programs
            first, last = (len(prepared) * i // num_batches for i in (k, k + 1))

            def tell(i: int, event: Event, first: int = first) -> None:
                if on_event is not None:
                    on_event(first + i, event)

            sessions = self.open_sessions(prepared[first:last], tell)
            BatchScheduler(
                self.engine, sessions, batch_size=self.batch_size, limits=self.limits
            ).run()
            results += [session.result() for session in sessions]
        return results

    def open_sessions(
        self, requests: Sequence[PreparedRequest], on_event: OnEvent
    ) -> list[Session]:
        """Sessions of a batch, their prompts' images encoded."""
        items = [item for request in requests for item in request.document.items]
        images = [item for item in items if isinstance(item, Image)]
        pixels = [image.pixels for image in images if image.pixels is not None]
        encoded = iter(self.engine.encoders.encode(pixels))  # each session takes its own
        return [
            Session(
                request,
                encoded,
                config=self._config,
                tokenizer=self._tokenizer,
                limits=self.limits,
                tell=functools.partial(on_event, i),
            )
            for i, request in enumerate(requests)
        ]
