"""The sampler's programs for one model: compiled on first use, kept for all batches."""

from __future__ import annotations

import functools
from typing import Any

import jax

from mogao_jax.config.geometry import LATENT_PATCH
from mogao_jax.config.schema import MogaoConfig
from mogao_jax.models.modules import EncoderParams, Modules
from mogao_jax.models.mogao import head_table
from mogao_jax.sampling.decode import allowed_tokens, decode
from mogao_jax.sampling.encoders import Encoders
from mogao_jax.sampling.guided_flow import integrate_flow
from mogao_jax.sampling.prefill import prefill
from mogao_jax.sampling.programs import Probe, Programs
from mogao_jax.tokenizer import Tokenizer


class Engine:
    """The programs of a model.

    Attributes:
      params: on the device.
      programs: counts what was compiled.
      prefill, decode, integrate_flow: the functions of these names, jitted.
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
        self.allowed = allowed_tokens(tokenizer, head_table(params).shape[0])
        self.programs = programs = Programs()
        self.encoders = Encoders(modules, jax.device_put(encoder_params), programs)
        bind = functools.partial
        self.prefill = programs.jit(bind(prefill, modules), donate_argnums=1)
        decoding = bind(decode, modules, tokenizer=tokenizer, chunk=text_chunk, probe=probe)
        self.decode = programs.jit(decoding, donate_argnums=1)
        integrating = bind(integrate_flow, modules, probe=probe)
        self.integrate_flow = programs.jit(integrating, static_argnames="settings")

    @property
    def config(self) -> MogaoConfig:
        return self.modules.config
