"""The inputs of an image that is about to be generated: its histories and its noise.

The sampler's own values, laid out for one request without padding: what it is compared with needs
none.

Axes: J contexts, U und tokens of the longest, C clean VAE tokens, N tokens of the image.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from mogao_jax.config.geometry import VAE_GRID
from mogao_jax.config.schema import ModelConfig
from mogao_jax.models import cache as kv_cache
from mogao_jax.models.mogao import Mogao, MogaoInputs
from mogao_jax.ops.attention.parts import Parts
from mogao_jax.sampling import guided_flow, prefill
from mogao_jax.sampling.loading import Model
from mogao_jax.sampling.prefill import NewTokens
from mogao_jax.sampling.requests import Request
from mogao_jax.sampling.sampler import Sampler


@dataclasses.dataclass(frozen=True, eq=False)
class FlowInputs:
    """One image before its first step."""

    histories: NewTokens  # all tokens of each context, a row per context in the order of `lines`
    lines: guided_flow.GuidanceBatch  # the image in each context; R = 1
    per_token: int  # the ViT's features per token
    x: np.ndarray  # float32[1, N, C] noise
    times: np.ndarray  # float32[num_steps + 1]
    size: tuple[int, int]  # (height, width) in pixels

    def one_context(self, index: int) -> tuple[NewTokens, guided_flow.GuidanceBatch]:
        """One context without padding to the longest: rows of one."""
        lines = self.lines._replace(index=(), weights=(), interval=())
        history, lines = jax.tree.map(lambda a: a[index : index + 1], (self.histories, lines))
        return without_padding(history, self.per_token), lines


def flow_inputs(model: Model, sampler: Sampler, request: Request) -> FlowInputs:
    """The inputs of a request's first image; the images of its prompt are encoded.

    The request must begin with an image (draw_first).
    """
    engine, options, config = sampler.engine, request.options, model.config
    (session,) = sampler.open_sessions([sampler.prepare(request)], lambda index, event: None)
    contexts, weights = session.start_image()
    for slot, context in enumerate(contexts.values()):
        context.slot = slot
    histories = prefill.build_prefill_batch(
        list(contexts.values()),
        [[*c.pending, *c.pending_clean] for c in contexts.values()],
        len(contexts),
        engine.encoders.feature_shape,
        engine.channels,
    )
    grid = session.size[0] // VAE_GRID, session.size[1] // VAE_GRID
    n = grid[0] * grid[1]
    lines = guided_flow.build_guidance_batch(
        [contexts],
        [weights],
        [options.guidance_interval],
        [grid],
        num_images=1,
        num_lines=len(contexts),
        num_tokens=n,
        pad_row=len(contexts),
    )
    x = guided_flow.noise(request.seed, session.image_index, n, engine.channels)[None]
    times = guided_flow.time_grid(options.num_steps, n, config.objective, options.timestep_shift)
    per_token = engine.encoders.feature_shape[0]
    histories = without_padding(histories, per_token)
    return FlowInputs(histories, lines, per_token, x, times, session.size)


def without_padding(new: NewTokens, per_token: int) -> NewTokens:
    """Rows as long as the longest of them."""
    num_und, num_clean = (int((m.segment > 0).sum(1).max(initial=0)) for m in new.meta[:2])
    num_vit = int((new.vit_index >= 0).sum(1).max(initial=0))

    def cut(parts: Parts) -> Parts:
        und = jax.tree.map(lambda a: a[:, :num_und], parts.und)
        return Parts(und, jax.tree.map(lambda a: a[:, :num_clean], parts.clean))

    return NewTokens(
        tokens=new.tokens[:, :num_und],
        vit_index=new.vit_index[:, :num_und],
        features=new.features[:, : num_vit * per_token],
        latents=new.latents[:, :num_clean],
        meta=cut(new.meta),
        positions=cut(new.positions),
        destination=cut(new.destination),
    )


def uncached_inputs(
    model: Mogao, history: NewTokens, lines: guided_flow.GuidanceBatch, x: jax.Array, t: jax.Array
) -> MogaoInputs:
    """Histories and the noised tokens x[J, N, C] at t[J], for one forward pass without a cache."""
    return guided_flow.noised_inputs(model, x, t, lines)._replace(
        tokens=history.tokens,
        vit_index=history.vit_index,
        vit_features=history.features,
        clean_latents=history.latents,
        meta=Parts(history.meta.und, history.meta.clean, lines.meta),
        positions=Parts(history.positions.und, history.positions.clean, lines.positions),
    )


def empty_cache(config: ModelConfig, histories: NewTokens) -> Parts:
    """Room for exactly these histories, a row each."""
    num_rows, num_und = histories.tokens.shape
    lengths = num_und, histories.latents.shape[1]
    return Parts(*(kv_cache.allocate(config, num_rows, length) for length in lengths))
