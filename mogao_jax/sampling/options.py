"""What one may ask of the sampler, per request: the options, and what is wrong with them.

Every refusal is a RequestError that names the value and the remedy.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypedDict

from mogao_jax.config.geometry import VAE_GRID
from mogao_jax.config.schema import ImageConfig, MogaoConfig
from mogao_jax.errors import RequestError

MAX_STEPS = 10_000
MAX_GUIDANCE = 1000
MAX_COUNT = 2**31 - 1  # of tokens, images and the like: they become int32
# Beyond these, float32 has nothing left: time grids become NaN, or all logits equal or infinite.
TEMPERATURES = (1e-3, 1e3)  # besides 0
SHIFTS = (1e-3, 1e3)
_AREA_WEIGHT = 0.25  # a size of half the area is as bad as one that is 19% too wide


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
    """Options of one request. `check_options` judges them.

    Attributes:
      num_steps: of the ODE solver, per image.
      solver: euler (one prediction per step) or heun (two).
      guidance_scale: gamma of docs/method.md section 6.
      image_guidance_scale: gamma_img.
      guidance_interval: (low, high), the t in which guidance applies; elsewhere the plain
        prediction is followed. t = 1 is data.
      timestep_shift: of the solver's time grid; None: as the config's objective has it.
      temperature: of text; 0 is greedy.
      top_p: share of the probability that text is drawn from.
      top_k: number of tokens that text is drawn from; 0: all.
      size: (height, width) of images, multiples of 16; None: that of the document's last image,
        or the largest square that the config allows.
      max_images: images generated before the sampler stops.
      max_tokens: text tokens written, in all, before it stops.
      draw_first: begin with an image.
      allow_images: False: write text alone.
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
        """Whether an image may be generated."""
        return self.allow_images and self.max_images > 0


class OptionFields(TypedDict, total=False):
    """`SamplingOptions` as keyword arguments; a test holds the two together."""

    num_steps: int
    solver: Literal["euler", "heun"]
    guidance_scale: float
    image_guidance_scale: float
    guidance_interval: tuple[float, float]
    timestep_shift: float | None
    temperature: float
    top_p: float
    top_k: int
    size: tuple[int, int] | None
    max_images: int
    max_tokens: int
    draw_first: bool
    allow_images: bool


def make_options(fields: Mapping[str, Any], config: MogaoConfig) -> SamplingOptions:
    """SamplingOptions of the given fields; the others are what the model's config recommends."""
    known = [f.name for f in dataclasses.fields(SamplingOptions)]
    for name in fields:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}."
            raise RequestError(f"there is no option {name!r}; {hint}")
    return SamplingOptions(**(dataclasses.asdict(config.sampling) | dict(fields)))


# Numbers that options may be: whole ones from and to; others by a test, with its name in words.
_WHOLE = {
    "num_steps": (1, MAX_STEPS),
    "max_images": (0, MAX_COUNT),
    "max_tokens": (0, MAX_COUNT),
    "top_k": (0, MAX_COUNT),
}
_GUIDANCE = (f"from 0 to {MAX_GUIDANCE}", lambda x: 0 <= x <= MAX_GUIDANCE)
_NUMBERS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "guidance_scale": _GUIDANCE,
    "image_guidance_scale": _GUIDANCE,
    "temperature": (
        "0 (the likeliest token), or from {:g} to {:g}".format(*TEMPERATURES),
        lambda x: x == 0 or TEMPERATURES[0] <= x <= TEMPERATURES[1],
    ),
    "top_p": ("above 0 and at most 1", lambda x: 0 < x <= 1),
    "timestep_shift": ("from {:g} to {:g}".format(*SHIFTS), lambda x: SHIFTS[0] <= x <= SHIFTS[1]),
}


def check_options(options: SamplingOptions, config: MogaoConfig) -> None:
    """Raises RequestError for a value that cannot be, or a size that the model cannot generate."""
    _check_numbers(options)
    if options.solver not in ("euler", "heun"):
        raise RequestError(f"solver is {shown(options.solver)}; choose euler or heun.")
    if not _is_interval(options.guidance_interval):
        raise RequestError(
            f"guidance_interval is {shown(options.guidance_interval)}; it must be (low, high) with "
            "0 <= low < high <= 1. For no guidance, set guidance_scale and image_guidance_scale "
            "to 1."
        )
    if options.draw_first and not options.may_draw:
        raise RequestError(
            "draw_first asks for an image, and allow_images or max_images forbids it; drop one."
        )
    if options.size is not None:
        check_size(options.size, config.images)


def _check_numbers(options: SamplingOptions) -> None:
    for name, (least, most) in _WHOLE.items():
        value = getattr(options, name)
        if not is_whole(value) or not least <= value <= most:
            raise RequestError(
                f"{name} is {shown(value)}; it must be a whole number, from {least} to {most}."
            )
    for name, (wanted, holds) in _NUMBERS.items():
        value = getattr(options, name)
        if name == "timestep_shift" and value is None:
            continue
        # Compared as it is: whole numbers of any size are no floats yet. NaN fails every bound.
        if not (is_whole(value) or isinstance(value, float)) or not holds(value):
            raise RequestError(f"{name} is {shown(value)}; it must be a number, {wanted}.")


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number. True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_interval(value: Any) -> bool:
    """Whether it is (low, high) with 0 <= low < high <= 1."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        return False
    numbers = all(isinstance(x, (int, float)) for x in value)
    return numbers and 0 <= value[0] < value[1] <= 1  # nan is not


def shown(value: Any) -> str:
    """The value for a message: Python refuses to print whole numbers of thousands of digits."""
    try:
        text = repr(value)
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_size(size: tuple[int, int], images: ImageConfig) -> None:
    """Raises RequestError unless images of (height, width) can be generated; names the nearest."""
    is_pair = isinstance(size, (tuple, list)) and len(size) == 2
    if not is_pair or not all(map(is_whole, size)):
        raise RequestError(f"size is {shown(size)}; it must be two whole numbers: (height, width).")
    height, width = size
    name = f"{shown(height)}x{shown(width)}"
    if height < 1 or width < 1:
        raise RequestError(f"size {name} has no pixels; sides are multiples of {VAE_GRID}.")
    # A side of any length is judged, not computed with.
    largest = fitting_size(min(height, MAX_COUNT), min(width, MAX_COUNT), images)
    if max(size) > images.max_side or height * width > images.max_pixels:
        raise RequestError(
            f"size {name} is over what this model generates ({images.max_pixels} pixels, "
            f"sides up to {images.max_side}); the largest of this shape is "
            f"{largest[0]}x{largest[1]}."
        )
    nearest = [max(1, round(x / VAE_GRID)) * VAE_GRID for x in size]
    if [height, width] != nearest:
        near = largest if nearest[0] * nearest[1] > images.max_pixels else nearest
        raise RequestError(
            f"size {height}x{width} is off the grid: sides are multiples of {VAE_GRID}; the "
            f"nearest is {near[0]}x{near[1]}."
        )


def fitting_size(height: float, width: float, images: ImageConfig) -> tuple[int, int]:
    """The (height, width) on the grid that comes closest to a shape without giving up much area."""
    longest, cells = images.max_side // VAE_GRID, images.max_pixels // VAE_GRID**2

    def badness(size: tuple[int, int]) -> float:
        h, w = size
        stretch = abs(math.log(h / w) - math.log(height / width))
        return stretch + _AREA_WEIGHT * math.log(cells / (h * w))

    sides = range(1, longest + 1)
    h, w = min(((h, w) for h in sides for w in sides if h * w <= cells), key=badness)
    return h * VAE_GRID, w * VAE_GRID
