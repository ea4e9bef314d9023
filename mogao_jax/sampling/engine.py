"""The sampler's programs for one model: compiled on first use, kept for all batches."""

from __future__ import annotations

import functools
from typing import Any

import jax

from mogao_jax.config.geometry import LATENT_PATCH
from mogao_jax.config.schema import MogaoConfig
from mogao_jax.models.modules import EncoderParams, Modules
from mogao_jax.models.mogao import head_table
from mogao_jax.sampling import image, prefill, text
from mogao_jax.sampling.buckets import Programs
from mogao_jax.sampling.images import Encoders
from mogao_jax.sampling.probing import Probe
from mogao_jax.tokenizer import Tokenizer


class Engine:
    """The programs of a model.

    Attributes:
      params: on the device.
      programs: counts what was compiled.
      extend, decode, draw: prefill.extend, text.decode and image.draw, jitted.
      encoders: the frozen encoders.
      allowed: bool[V] which tokens may be written.
      channels: of a VAE token (64).
    """

    def __init__(
        self,
        modules: Modules,
        params: Any,
        encoder_params: EncoderParams,
        tokenizer: Tokenizer,
        *,
        text_chunk: int,
        step_chunk: int,
        probe: Probe | None,
    ):
        self.modules, self.params = modules, jax.device_put(params)
        self.text_chunk, self.step_chunk = text_chunk, step_chunk
        self.channels = modules.config.vae.latent_channels * LATENT_PATCH**2
        self.allowed = text.allowed_tokens(tokenizer, head_table(params).shape[0])
        self.programs = programs = Programs()
        self.encoders = Encoders(modules, jax.device_put(encoder_params), programs)
        self.extend = programs.jit(functools.partial(prefill.extend, modules), donate_argnums=1)
        decode = functools.partial(
            text.decode,
            modules,
            stop_tokens=(tokenizer.im_end, tokenizer.endoftext),
            vision_start=tokenizer.vision_start,
            chunk=text_chunk,
            probe=probe,
        )
        self.decode = programs.jit(decode, donate_argnums=1)
        draw = functools.partial(image.draw, modules, probe=probe)
        self.draw = programs.jit(draw, static_argnames=("und_length", "clean_length", "solver"))

    @property
    def config(self) -> MogaoConfig:
        return self.modules.config
