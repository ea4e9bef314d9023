"""The scheduler: a batch of sessions, their cache, and the phases that work on it.

Sessions go through phases together. Those in text write until every one of them is done or has
paused at <|vision_start|>; only then do those that paused generate their images, all at once: a
step of the flow costs far more than a token, and costs least per image in a full batch.

Every phase gathers numpy on the host, runs a program, and hands the outcome to the sessions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import numpy as np

from mogao_jax.config.geometry import VAE_GRID
from mogao_jax.models import cache as kv_cache
from mogao_jax.ops.attention.parts import Parts
from mogao_jax.sampling import guided_flow
from mogao_jax.sampling.decode import DecodeState, SamplingParams, seed_key
from mogao_jax.sampling.engine import Engine
from mogao_jax.sampling.history import CachedSequence, TokenSpan, take
from mogao_jax.sampling.prefill import MAX_TOKENS, build_prefill_batch
from mogao_jax.sampling.programs import (
    batch_bucket,
    halve_while_fits,
    round_up_bucket,
    round_up_pow2,
)
from mogao_jax.sampling.requests import ImageProgress, Limits
from mogao_jax.sampling.session import Mode, Session
from mogao_jax.sequence.batch import CONTEXTS, EMPTY, FULL, IMAGE_ONLY
from mogao_jax.sequence.cursor import Cursor

MIN_CAPACITY = 256  # und tokens of the cache; it doubles as histories grow
MIN_CLEAN = 64  # clean tokens of the cache, if there are any
MIN_READ = 64  # und tokens of the cache that a step of the flow reads
MIN_IMAGE = 4  # tokens of the largest image
Solver = Literal["euler", "heun"]
Contexts = dict[int, CachedSequence]  # of one image: {FULL, IMAGE_ONLY or EMPTY: its tokens}


class BatchScheduler:
    """Sessions that are served together, and their cache: a row per session and context.

    Attributes:
      cache: Parts of PartCache; its parts are allocated when first needed.
    """

    def __init__(
        self, engine: Engine, sessions: Sequence[Session], *, batch_size: int, limits: Limits
    ):
        """Rows are computed for `batch_size` sessions, or for it halved while all of them fit.

        Args:
          batch_size: the most sessions of any batch.
          limits: the most tokens of a history: up to a power of two, the largest cache.
        """
        self._engine, self._sessions = engine, sessions
        self._size = halve_while_fits(len(sessions), batch_size)
        self._least = {
            "und": min(MIN_CAPACITY, round_up_pow2(limits.und, 1)),
            "clean": min(MIN_CLEAN, round_up_pow2(limits.clean, 1)),
        }
        num_contexts = len(CONTEXTS) if any(s.may_draw for s in sessions) else 1
        self._num_rows = self._size * num_contexts
        self.cache = Parts()
        for i, session in enumerate(sessions):
            session.history.full.slot = self._slot(FULL, i)
            session.history.image_only.slot = self._slot(IMAGE_ONLY, i)

    def _slot(self, context: int, session: int) -> int:
        # Rows of the full contexts first: text needs no others, and a batch of text has no others.
        return context * self._size + session

    def run(self) -> None:
        """Serves all sessions until they are done."""
        for session in self._sessions:
            session.check_limits()
        while any(s.mode is not Mode.DONE for s in self._sessions):
            if any(s.mode is Mode.TEXT for s in self._sessions):
                self._write_text()
                continue
            waiting = [i for i, s in enumerate(self._sessions) if s.mode is Mode.IMAGE]
            solvers: tuple[Solver, ...] = ("euler", "heun")
            for solver in solvers:  # a program each, so a batch each
                which = [i for i in waiting if self._sessions[i].options.solver == solver]
                if which:
                    self._generate_images(which, solver)

    # --------------------------------------------------------------------------------- prefill

    def _reserve(
        self, contexts: Sequence[CachedSequence], *, clean: bool = False, num_new: int = 0
    ) -> None:
        """Makes room for what is pending in some contexts, and for new text tokens."""
        config = self._engine.config.model
        und = max(c.und_length for c in contexts) + num_new
        num_clean = max(c.clean_length(waiting=clean) for c in contexts)
        for name, needed in (("und", und), ("clean", num_clean)):
            part = getattr(self.cache, name)
            if needed > kv_cache.capacity_of(part):
                capacity = round_up_pow2(needed, self._least[name])
                part = kv_cache.grow(part, config, self._num_rows, capacity)
                self.cache = self.cache._replace(**{name: part})

    def _rows(self, contexts: Sequence[CachedSequence], num_rows: int) -> np.ndarray:
        """Rows of the cache, int32[num_rows]; padding lies beyond it."""
        rows = np.full(num_rows, self._num_rows, np.int32)
        rows[: len(contexts)] = [c.slot for c in contexts]
        return rows

    def _prefill(
        self,
        contexts: Sequence[CachedSequence],
        num_rows: int,
        next_spans: Callable[[CachedSequence], list[TokenSpan]],
    ) -> None:
        """Puts spans into the cache, turn by turn, until there are no more of any context."""
        engine = self._engine
        rows = self._rows(contexts, num_rows)
        while any(spans := [next_spans(c) for c in contexts]):
            new = build_prefill_batch(
                contexts, spans, num_rows, engine.encoders.feature_shape, engine.channels
            )
            self.cache = engine.prefill(engine.params, self.cache, rows, new)

    def _prefill_for_images(self, of_images: Sequence[Contexts]) -> None:
        """Puts all that is pending into the cache, clean tokens that wait apart included."""
        # Full contexts apart from the others, which are much shorter: together, these would be
        # padded to their length.
        full = [c for contexts in of_images for name, c in contexts.items() if name == FULL]
        reduced = [c for contexts in of_images for name, c in contexts.items() if name != FULL]
        everything = [*full, *reduced]
        self._reserve(everything, clean=True)
        size = batch_bucket(len(of_images), self._size)

        def num_rows(contexts: Sequence[CachedSequence]) -> int:
            return size * math.ceil(len(contexts) / len(of_images))

        for group in (full, reduced):
            self._prefill(group, num_rows(group), lambda c: take(c.pending, MAX_TOKENS))
        # Clean tokens read ViT tokens of their own image and of earlier ones: these come first.
        waiting = [c for c in everything if c.pending_clean]
        self._prefill(waiting, num_rows(waiting), lambda c: take(c.pending_clean, MAX_TOKENS))

    # ------------------------------------------------------------------------------------ text

    def _write_text(self) -> None:
        """Text, until no session is in it."""
        engine = self._engine
        while writing := [s for s in self._sessions if s.mode is Mode.TEXT]:
            contexts = [s.history.full for s in writing]
            num_rows = batch_bucket(len(writing), self._size)
            self._reserve(contexts)
            # The last token stays pending: the decode loop computes it, for the next one's logits.
            self._prefill(contexts, num_rows, lambda c: take(c.pending, MAX_TOKENS, keep=1))
            most = max(s.token_limit for s in writing)
            self._reserve(contexts, num_new=min(engine.text_chunk, most))
            start, choice = _decode_state(writing, self._rows(contexts, num_rows))
            self.cache, chosen = engine.decode(
                engine.params, self.cache, start, choice, engine.allowed
            )
            for session, tokens in zip(writing, np.asarray(chosen), strict=False):
                written = [int(t) for t in tokens if t >= 0]
                session.write(written)
                session.history.full.wrote(len(written))

    # ---------------------------------------------------------------------------------- images

    def _generate_images(self, which: Sequence[int], solver: Solver) -> None:
        """One image of each of these sessions."""
        engine = self._engine
        sessions = [self._sessions[i] for i in which]
        sizes = [s.size for s in sessions]
        contexts, weights = zip(*(s.start_image() for s in sessions), strict=True)
        for i, of_image in zip(which, contexts, strict=True):
            if EMPTY in of_image:
                of_image[EMPTY].slot = self._slot(EMPTY, i)
        self._prefill_for_images(contexts)
        latents = self._integrate(sessions, contexts, weights, solver)
        pixels = engine.encoders.decode(latents, sizes)
        for session, image in zip(sessions, pixels, strict=True):
            session.finish_image(image)
        going_on = [i for i, s in enumerate(sessions) if s.mode is not Mode.DONE]
        seen = engine.encoders.read([pixels[i] for i in going_on], [latents[i] for i in going_on])
        for i, encoded in zip(going_on, seen, strict=True):
            sessions[i].resume(encoded)

    def _integrate(
        self,
        sessions: Sequence[Session],
        contexts: Sequence[Contexts],
        weights: Sequence[dict[int, float]],
        solver: Solver,
    ) -> list[np.ndarray]:
        """Latents float32[tokens, 64] of each session's image: the flow over all its steps."""
        engine = self._engine
        grids = [(h // VAE_GRID, w // VAE_GRID) for h, w in (s.size for s in sessions)]
        num_tokens = [h * w for h, w in grids]
        most_tokens = max(MIN_IMAGE, round_up_bucket(max(num_tokens)))
        x = np.zeros((self._size, most_tokens, engine.channels), np.float32)
        for i, (s, n) in enumerate(zip(sessions, num_tokens, strict=True)):
            x[i, :n] = guided_flow.noise(s.request.seed, s.image_index, n, engine.channels)
        timesteps = self._timesteps(sessions, num_tokens)
        intervals = [s.options.guidance_interval for s in sessions]
        guided = _guided_steps(timesteps, weights, intervals)
        build_batch = functools.partial(
            guided_flow.build_guidance_batch,
            contexts,
            intervals=intervals,
            grids=grids,
            num_images=self._size,
            num_tokens=most_tokens,
            pad_row=self._num_rows,
        )
        batches: dict[bool, guided_flow.GuidanceBatch] = {}
        # In chunks of steps, to report between them; each either guided or plain, since a plain
        # step needs one context of three.
        for start, stop in _chunks(guided, engine.step_chunk):
            is_guided = bool(guided[start])
            if is_guided not in batches:
                w = weights if is_guided else [{FULL: 1.0}] * len(sessions)
                num_lines = halve_while_fits(len(w), self._size) * max(map(len, w))
                batches[is_guided] = build_batch(weights=w, num_lines=num_lines)
            chunk = np.ones((engine.step_chunk + 1, self._size), np.float32)
            chunk[: stop - start + 1] = timesteps[start : stop + 1]
            x = engine.integrate_flow(
                engine.params,
                self.cache,
                x,
                chunk,
                np.int32(stop - start),
                batches[is_guided],
                settings=self._flow_settings(contexts, solver),
            )
            jax.block_until_ready(x)
            for session in sessions:
                num_steps = session.options.num_steps
                if start < num_steps:
                    session.tell(ImageProgress(min(stop, num_steps), num_steps))
        latents = np.asarray(x)
        return [latents[i, :n] for i, n in enumerate(num_tokens)]

    def _timesteps(self, sessions: Sequence[Session], num_tokens: Sequence[int]) -> np.ndarray:
        """float32[num_steps + 1, R]; images of fewer steps rest at t = 1 from their end on."""
        most = max(s.options.num_steps for s in sessions)
        timesteps = np.ones((most + 1, self._size), np.float32)
        for i, (o, n) in enumerate(zip((s.options for s in sessions), num_tokens, strict=True)):
            timesteps[: o.num_steps + 1, i] = guided_flow.time_grid(
                o.num_steps, n, self._engine.config.objective, o.timestep_shift
            )
        return timesteps

    def _flow_settings(
        self, of_images: Sequence[Contexts], solver: Solver
    ) -> guided_flow.FlowSettings:
        """How much of the cache the steps read: the longest history, in a few sizes."""
        contexts = [c for contexts in of_images for c in contexts.values()]
        und = round_up_pow2(max(c.written["und"] for c in contexts), MIN_READ)
        clean = max(c.written["clean"] for c in contexts)
        return guided_flow.FlowSettings(
            und_length=min(und, kv_cache.capacity_of(self.cache.und)),
            clean_length=round_up_pow2(clean, self._least["clean"]) if clean else 0,
            solver=solver,
        )


def _guided_steps(
    timesteps: np.ndarray,
    weights: Sequence[dict[int, float]],
    intervals: Sequence[tuple[float, float]],
) -> np.ndarray:
    """Whether any image needs more than the full context, bool[num_steps].

    A step is judged by both of its ends in timesteps, float32[num_steps + 1, R].
    """
    guided = np.zeros(len(timesteps) - 1, bool)
    for i, (w, (low, high)) in enumerate(zip(weights, intervals, strict=True)):
        if w != {FULL: 1.0}:
            t = timesteps[:, i]
            inside = (t >= np.float32(low)) & (t <= np.float32(high))
            guided |= inside[:-1] | inside[1:]
    return guided


def _chunks(guided: np.ndarray, size: int) -> list[tuple[int, int]]:
    """Ranges of steps, none longer than `size`, none with both guided and plain steps."""
    ranges = []
    start = 0
    for i in range(1, len(guided) + 1):
        if i == len(guided) or guided[i] != guided[start] or i - start == size:
            ranges.append((start, i))
            start = i
    return ranges


def _decode_state(
    sessions: Sequence[Session], rows: np.ndarray
) -> tuple[DecodeState, SamplingParams]:
    """Where sessions stand, and how they choose; rows beyond them do nothing."""
    num_rows = len(rows)
    token, order, t, length, limit = (np.zeros(num_rows, np.int32) for _ in range(5))
    choice = SamplingParams(
        key=np.zeros((num_rows, 2), np.uint32),
        temperature=np.zeros(num_rows, np.float32),
        top_p=np.ones(num_rows, np.float32),
        top_k=np.zeros(num_rows, np.int32),
        may_draw=np.zeros(num_rows, bool),
    )
    for i, session in enumerate(sessions):
        o, full = session.options, session.history.full
        (last,) = full.pending
        token[i], order[i], t[i] = last.token, last.placed.order[0], last.placed.positions[0, 0]
        length[i], limit[i] = full.written["und"], session.token_limit
        choice.key[i] = seed_key(session.request.seed)
        choice.temperature[i], choice.top_p[i], choice.top_k[i] = o.temperature, o.top_p, o.top_k
        choice.may_draw[i] = session.may_draw
    return DecodeState(rows, token, Cursor(order, t), length, limit), choice
