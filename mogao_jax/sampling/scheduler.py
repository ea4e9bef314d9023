"""What happens to a batch of sessions: its cache, and the phases that work on it.

Every phase gathers numpy on the host, runs a program, and hands the outcome to the sessions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import jax
import numpy as np

from mogao_jax.config.geometry import VAE_GRID
from mogao_jax.ops.attention.parts import Parts
from mogao_jax.sampling import image, kv_cache, prefill, text
from mogao_jax.sampling.buckets import all_or_few, fine, halved, power
from mogao_jax.sampling.engine import Engine
from mogao_jax.sampling.history import CachedSequence, TokenSpan
from mogao_jax.sampling.lengths import Limits
from mogao_jax.sampling.requests import PictureProgress
from mogao_jax.sampling.session import Mode, Session
from mogao_jax.sequence.batch import CONTEXTS, EMPTY, FULL, IMAGE_ONLY
from mogao_jax.sequence.cursor import Cursor

MIN_CAPACITY = 256  # und tokens of the cache; it doubles as histories grow
MIN_CLEAN = 64  # clean tokens of the cache, if there are any
MIN_LOOK = 64  # und tokens that drawing looks at
MIN_PICTURE = 4  # tokens of the largest picture that is drawn


class BatchScheduler:
    """Sessions that are served together, and their cache: a row per session and context."""

    def __init__(
        self, engine: Engine, sessions: Sequence[Session], *, batch_size: int, limits: Limits
    ):
        """Rows are computed for `batch_size` sessions, or for it halved while all of them fit.

        Args:
          batch_size: the most sessions of any batch.
          limits: the most tokens of a history: up to a power of two, the largest cache.
        """
        self._engine, self._sessions = engine, sessions
        self._size = halved(len(sessions), batch_size)
        self._least = {
            "und": min(MIN_CAPACITY, power(limits.und, 1)),
            "clean": min(MIN_CLEAN, power(limits.clean, 1)),
        }
        num_contexts = len(CONTEXTS) if any(s.may_draw for s in sessions) else 1
        self._num_rows = self._size * num_contexts
        self._cache = Parts()
        for i, session in enumerate(sessions):
            session.history.full.slot = self._slot(FULL, i)
            session.history.image_only.slot = self._slot(IMAGE_ONLY, i)

    def _slot(self, context: int, session: int) -> int:
        return context * self._size + session

    def run(self) -> None:
        """Until all sessions are done."""
        for session in self._sessions:
            session.check_limits()
        while any(s.mode is not Mode.DONE for s in self._sessions):
            if any(s.mode is Mode.WRITING for s in self._sessions):
                self._write()
            else:
                drawing = [i for i, s in enumerate(self._sessions) if s.mode is Mode.DRAWING]
                for solver in ("euler", "heun"):
                    self._draw(
                        [i for i in drawing if self._sessions[i].options.solver == solver], solver
                    )

    # ----------------------------------------------------------------------------------- cache

    def _reserve(
        self, contexts: Sequence[CachedSequence], *, clean: bool = False, num_new: int = 0
    ) -> None:
        """Makes room for what is pending in some contexts, and for new text tokens."""
        config = self._engine.config.model
        und = max(c.und_length for c in contexts) + num_new
        num_clean = max(c.clean_length(waiting=clean) for c in contexts)
        for name, needed in (("und", und), ("clean", num_clean)):
            part = getattr(self._cache, name)
            if needed > kv_cache.capacity_of(part):
                capacity = power(needed, self._least[name])
                part = kv_cache.grow(part, config, self._num_rows, capacity)
                self._cache = self._cache._replace(**{name: part})

    def _rows(self, contexts: Sequence[CachedSequence], num_rows: int) -> np.ndarray:
        """Rows of the cache, int32[num_rows]; padding lies beyond it."""
        rows = np.full(num_rows, self._num_rows, np.int32)
        rows[: len(contexts)] = [c.slot for c in contexts]
        return rows

    def _compute(
        self,
        contexts: Sequence[CachedSequence],
        num_rows: int,
        take: Callable[[CachedSequence], list[TokenSpan]],
    ) -> None:
        """Puts pieces into the cache, turn by turn, until `take` gives no more of any context."""
        engine = self._engine
        rows = self._rows(contexts, num_rows)
        while any(pieces := [take(c) for c in contexts]):
            new = prefill.assemble(
                contexts, pieces, num_rows, engine.encoders.feature_shape, engine.channels
            )
            self._cache = engine.extend(engine.params, self._cache, rows, new)

    def _compute_all(self, of_pictures: Sequence[dict[int, CachedSequence]]) -> None:
        """Puts all that is pending into the cache, clean tokens that wait apart included.

        Full contexts are computed apart from the others, which are much shorter.
        """
        groups: tuple[list[CachedSequence], list[CachedSequence]] = ([], [])
        for contexts in of_pictures:
            for name, context in contexts.items():
                groups[name != FULL].append(context)
        everything = [*groups[0], *groups[1]]
        self._reserve(everything, clean=True)
        size = all_or_few(len(of_pictures), self._size)

        def rows(contexts: Sequence[CachedSequence]) -> int:
            return size * math.ceil(len(contexts) / len(of_pictures))

        for group in groups:
            self._compute(group, rows(group), _pending)
        waiting = [c for c in everything if c.pending_clean]
        self._compute(waiting, rows(waiting), lambda c: c.take_clean(prefill.MAX_TOKENS))

    # ------------------------------------------------------------------------------------ text

    def _write(self) -> None:
        """Text, until nobody is writing."""
        engine = self._engine
        while writing := [s for s in self._sessions if s.mode is Mode.WRITING]:
            contexts = [s.history.full for s in writing]
            num_rows = all_or_few(len(writing), self._size)
            self._reserve(contexts)
            self._compute(contexts, num_rows, lambda c: _pending(c, keep_last=True))
            most = max(s.token_limit for s in writing)
            self._reserve(contexts, num_new=min(engine.text_chunk, most))
            start, choice = _text_state(writing, num_rows)
            self._cache, chosen = engine.decode(
                engine.params,
                self._cache,
                self._rows(contexts, num_rows),
                start,
                choice,
                engine.allowed,
            )
            for session, tokens in zip(writing, np.asarray(chosen), strict=False):
                written = [int(t) for t in tokens if t >= 0]
                session.write(written)
                session.history.full.wrote(len(written))

    # --------------------------------------------------------------------------------- drawing

    def _draw(self, which: Sequence[int], solver: str) -> None:
        """One picture of each of these sessions."""
        if not which:
            return
        engine = self._engine
        sessions = [self._sessions[i] for i in which]
        sizes = [s.size for s in sessions]
        grids = [(h // VAE_GRID, w // VAE_GRID) for h, w in sizes]
        num_tokens = [h * w for h, w in grids]
        contexts, weights = zip(*(s.start_picture() for s in sessions), strict=True)
        for i, of_picture in zip(which, contexts, strict=True):
            if EMPTY in of_picture:
                of_picture[EMPTY].slot = self._slot(EMPTY, i)
        everything = [c for of_picture in contexts for c in of_picture.values()]
        self._compute_all(contexts)

        num_pictures = self._size
        most_tokens = max(MIN_PICTURE, fine(max(num_tokens)))
        x = np.zeros((num_pictures, most_tokens, engine.channels), np.float32)
        times = np.ones((max(s.options.num_steps for s in sessions) + 1, num_pictures), np.float32)
        for i, (session, n) in enumerate(zip(sessions, num_tokens, strict=True)):
            o = session.options
            x[i, :n] = image.noise(session.request.seed, session.picture_index, n, x.shape[2])
            times[: o.num_steps + 1, i] = image.time_grid(
                o.num_steps, n, engine.config.objective, o.timestep_shift
            )
        make_lines = functools.partial(
            image.build_guidance_batch,
            contexts,
            intervals=[s.options.guidance_interval for s in sessions],
            grids=grids,
            num_pictures=num_pictures,
            num_tokens=x.shape[1],
            nowhere=self._num_rows,
        )
        x = self._follow(x, times, make_lines, weights, sessions, everything, solver)
        latents = [x[i, :n] for i, n in enumerate(num_tokens)]
        pixels = engine.encoders.decode(latents, sizes)
        for session, picture in zip(sessions, pixels, strict=True):
            session.finish_picture(picture)
        going_on = [i for i, s in enumerate(sessions) if s.mode is not Mode.DONE]
        seen = engine.encoders.read([pixels[i] for i in going_on], [latents[i] for i in going_on])
        for i, drawn in zip(going_on, seen, strict=True):
            sessions[i].resume(drawn)

    def _follow(
        self,
        x,
        times,
        make_lines,
        weights,
        sessions,
        contexts: Sequence[CachedSequence],
        solver: str,
    ) -> np.ndarray:
        """Runs the solver over all steps, in chunks, and reports."""
        engine = self._engine
        und = power(max(c.num_und for c in contexts), MIN_LOOK)
        clean = max(c.num_clean for c in contexts)
        plain = [{FULL: 1.0}] * len(sessions)
        intervals = [s.options.guidance_interval for s in sessions]
        guided = _guided_steps(times, weights, intervals)
        made: dict[bool, image.GuidanceBatch] = {}
        done = 0
        for start, stop in _chunks(guided, engine.step_chunk):
            is_guided = bool(guided[start])
            if is_guided not in made:
                w = weights if is_guided else plain
                made[is_guided] = make_lines(
                    weights=w, num_lines=halved(len(w), self._size) * max(map(len, w))
                )
            chunk = np.ones((engine.step_chunk + 1, times.shape[1]), np.float32)
            chunk[: stop - start + 1] = times[start : stop + 1]
            x = engine.draw(
                engine.params,
                self._cache,
                x,
                chunk,
                np.int32(stop - start),
                made[is_guided],
                und_length=min(und, kv_cache.capacity_of(self._cache.und)),
                clean_length=power(clean, self._least["clean"]) if clean else 0,
                solver=solver,
            )
            jax.block_until_ready(x)
            for session in sessions:
                num_steps = session.options.num_steps
                if done < num_steps:
                    session.tell(PictureProgress(min(stop, num_steps), num_steps))
            done = stop
        return np.asarray(x)


def _pending(context: CachedSequence, keep_last: bool = False) -> list[TokenSpan]:
    return context.take_pending(prefill.MAX_TOKENS, keep_last=keep_last)


def _guided_steps(
    times: np.ndarray,
    weights: Sequence[dict[int, float]],
    intervals: Sequence[tuple[float, float]],
) -> np.ndarray:
    """Whether any picture needs more than the full context, bool[num_steps].

    Args:
      times: float32[num_steps + 1, R]; a step is judged by both of its ends.
    """
    guided = np.zeros(len(times) - 1, bool)
    for i, (w, (low, high)) in enumerate(zip(weights, intervals, strict=True)):
        if w != {FULL: 1.0}:
            inside = (times[:, i] >= np.float32(low)) & (times[:, i] <= np.float32(high))
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


def _text_state(
    sessions: Sequence[Session], num_rows: int
) -> tuple[text.DecodeState, text.SamplingParams]:
    """Where sessions stand, and how they choose; rows beyond them do nothing."""
    token, order, t, length, limit = (np.zeros(num_rows, np.int32) for _ in range(5))
    state = text.DecodeState(token, Cursor(order, t), length, limit)
    choice = text.SamplingParams(
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
        length[i], limit[i] = full.num_und, session.token_limit
        choice.key[i] = text.seed_key(session.request.seed)
        choice.temperature[i], choice.top_p[i], choice.top_k[i] = o.temperature, o.top_p, o.top_k
        choice.may_draw[i] = session.may_draw
    return state, choice
