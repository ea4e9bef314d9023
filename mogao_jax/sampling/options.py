"""What one may ask of the sampler, per request."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
    """Options of one request. `sampling.prompts.check_options` judges them.

    Attributes:
      num_steps: of the ODE solver, per picture.
      solver: euler (one prediction per step) or heun (two).
      guidance_scale: gamma of docs/method.md section 6.
      image_guidance_scale: gamma_img.
      guidance_interval: (low, high), the t in which guidance applies; elsewhere the plain
        prediction is followed. t = 1 is data.
      timestep_shift: of the solver's time grid; None: as the config's objective has it.
      temperature: of text; 0 is greedy.
      top_p: share of the probability that text is drawn from.
      top_k: number of tokens that text is drawn from; 0: all.
      size: (height, width) of pictures, multiples of 16; None: that of the document's last image,
        or the largest square that the config allows.
      max_images: pictures drawn before the sampler stops.
      max_tokens: text tokens written, in all, before it stops.
      draw_first: begin with a picture.
      allow_images: False: never draw.
    """

    num_steps: int = 50
    solver: Literal["euler", "heun"] = "euler"
    guidance_scale: float = 7.5
    image_guidance_scale: float = 1.5
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    timestep_shift: float | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    size: tuple[int, int] | None = None
    max_images: int = 16
    max_tokens: int = 512
    draw_first: bool = False
    allow_images: bool = True

    @property
    def may_draw(self) -> bool:
        """Whether a picture may come of it."""
        return self.allow_images and self.max_images > 0
