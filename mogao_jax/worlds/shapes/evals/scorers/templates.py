"""The world's own shapes as soft masks, and how well a piece of an image fits each of them.

A mask of coverage (0 background, 1 object) is compared with every shape, at diameters around its
own extent, at half-pixel steps of place and at a few widths of blur, so that an image that is a
little soft, off or too small is still recognised as what it is nearest to. Shapes that the world
does not have compete too, so that a diamond is not taken for the circle it resembles.

The measure is 2 a.b / (a.a + b.b) = 1 - |a - b|^2 / (|a|^2 + |b|^2): 1 for equal masks, and less
for any difference, in level too. Over all places it is one matrix product.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from mogao_jax.worlds.shapes.render import CROSS_ARM, coverage
from mogao_jax.worlds.shapes.scene import SHAPES, World

REACH = 1  # places tried around the guess, in whole pixels each way
BLURS = (0.0, 0.7, 1.2)  # pixels of standard deviation
LEAST, MOST = 0.7, 1.37  # of the small diameter, and of the large one: others are no object
_STACK = 8  # masks per matrix product; a divisor of their number
_FINE = 8  # samples per pixel and axis of the shapes that the world does not have
_LONG = 1.16  # half of a stretched shape's length over half of its square's side


@dataclasses.dataclass(frozen=True)
class Fit:
    """How well a mask fits a shape: its best diameter and centre (cx, cy) in pixels."""

    score: float
    shape: str
    diameter: int
    cx: float
    cy: float


@dataclasses.dataclass(frozen=True)
class _Bank:
    """Masks of one diameter: float32[T, side * side], their squared norms, and what they are."""

    masks: np.ndarray
    energy: np.ndarray
    labels: tuple[tuple[str, float, float], ...]  # shape, dx, dy


def fit(mask: np.ndarray, extent: int, cx: int, cy: int, world: World) -> list[Fit]:
    """The best fit of each shape (of the world, SHAPES and OTHERS) to a mask, best first.

    Args:
      mask: float32[H, W] in [0, 1], zero wherever the object is not.
      extent: the longer side in pixels of its bounding box, faint edges included.
      cx, cy: about the centre of that box, a corner between pixels.
      world: whose shapes and sizes are allowed; [] if no size comes near the extent.
    """
    best: dict[str, Fit] = {}
    low, high = LEAST * world.small, MOST * world.large
    for diameter in range(2 * (extent // 2) - 4, extent + 4, 2):
        if not low <= diameter <= high:
            continue
        for found in _fit_diameter(mask, _bank(diameter, world.shapes), diameter, cx, cy):
            if found.shape not in best or found.score > best[found.shape].score:
                best[found.shape] = found
    return sorted(best.values(), key=lambda f: -f.score)


def _fit_diameter(mask: np.ndarray, bank: _Bank, diameter: int, cx: int, cy: int) -> list[Fit]:
    side = _side(diameter)
    steps = 2 * REACH + 1
    # The window around a corner (x, y) starts at (x, y) - side // 2.
    top, left = cy - side // 2 - REACH, cx - side // 2 - REACH
    flat = _cut(mask, top, left, side + 2 * REACH, side).reshape(steps * steps, side * side)
    energy = np.einsum("ij,ij->i", flat, flat)
    # As a stack of small products, which BLAS does not spread over threads (they would wait for
    # each other much longer than they work).
    product = (bank.masks.reshape(-1, _STACK, side * side) @ flat.T).reshape(-1, steps * steps)
    score = 2 * product / (bank.energy[:, None] + energy + 1e-9)  # [T, places]
    place = score.argmax(1)
    found = []
    for t, (shape, dx, dy) in enumerate(bank.labels):
        row, column = divmod(int(place[t]), steps)
        x, y = cx - REACH + column + dx, cy - REACH + row + dy
        found.append(Fit(float(score[t, place[t]]), shape, diameter, x, y))
    return found


def _cut(mask: np.ndarray, top: int, left: int, extent: int, side: int) -> np.ndarray:
    """All windows of a side inside a square of the mask, which counts as 0 outside its bounds."""
    part = np.zeros((extent, extent), np.float32)
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + extent, mask.shape[0]), min(left + extent, mask.shape[1])
    if y0 < y1 and x0 < x1:
        part[y0 - top : y1 - top, x0 - left : x1 - left] = mask[y0:y1, x0:x1]
    return np.lib.stride_tricks.sliding_window_view(part, (side, side))


def size_name(diameter: float, world: World) -> str:
    """The size that a diameter is nearest to, in proportion."""
    return "small" if diameter**2 <= world.small * world.large else "large"


def _side(diameter: int) -> int:
    return diameter + 8  # room for blur, and to see what sticks out


# Regions of the box [-1, 1] x [-1, 1] (some reach out of it) that are none of the world's shapes
# but come near one.
OTHERS = {
    "diamond": lambda x, y: np.abs(x) + np.abs(y) < 1,
    "saltire": lambda x, y: (
        (np.abs(x + y) < np.sqrt(2) * CROSS_ARM) & (np.abs(x - y) < np.sqrt(2))
        | (np.abs(x - y) < np.sqrt(2) * CROSS_ARM) & (np.abs(x + y) < np.sqrt(2))
    ),
    "wide rectangle": lambda x, y: (np.abs(x) < _LONG) & (np.abs(y) < 1 / _LONG),
    "tall rectangle": lambda x, y: (np.abs(y) < _LONG) & (np.abs(x) < 1 / _LONG),
    "wide ellipse": lambda x, y: (x / _LONG) ** 2 + (y * _LONG) ** 2 < 1,
    "tall ellipse": lambda x, y: (y / _LONG) ** 2 + (x * _LONG) ** 2 < 1,
}


@functools.lru_cache(maxsize=64)
def _bank(diameter: int, shapes: tuple[str, ...]) -> _Bank:
    side = _side(diameter)
    start = (side - diameter) // 2
    masks, labels = [], []
    known = dict.fromkeys((*SHAPES, *shapes))
    for shape in (*known, *(other for other in OTHERS if other not in known)):
        if shape not in known:
            sharp = _drawn(shape, diameter, side)
        else:
            sharp = np.zeros((side, side), np.float32)
            sharp[start : start + diameter, start : start + diameter] = coverage(shape, diameter)
        for sigma in BLURS if shape in known else BLURS[1:2]:
            soft = blurred(sharp, sigma)
            for dy in (0.0, 0.5):
                for dx in (0.0, 0.5):
                    masks.append(_shifted(soft, dy, dx).ravel())
                    labels.append((shape, dx, dy))
    bank = np.stack(masks)
    return _Bank(bank, np.einsum("ij,ij->i", bank, bank), tuple(labels))


def _drawn(shape: str, diameter: int, side: int) -> np.ndarray:
    at = ((np.arange(side * _FINE) + 0.5) / _FINE - side / 2) / (diameter / 2)
    inside = OTHERS[shape](at[None, :], at[:, None]).astype(np.float32)
    return inside.reshape(side, _FINE, side, _FINE).mean((1, 3))


def _shifted(mask: np.ndarray, dy: float, dx: float) -> np.ndarray:
    """Moved down and right by a part of a pixel (its neighbours' weighted mean)."""
    mask = (1 - dy) * mask + dy * np.roll(mask, 1, 0)
    return ((1 - dx) * mask + dx * np.roll(mask, 1, 1)).astype(np.float32)


def blurred(values: np.ndarray, sigma: float) -> np.ndarray:
    """A Gaussian blur along the first two axes, edges continued; float32."""
    values = np.asarray(values, np.float32)
    if sigma <= 0:
        return values
    radius = max(1, int(np.ceil(3 * sigma)))
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).astype(np.float32)
    for axis in (0, 1):
        pad = [(radius, radius) if a == axis else (0, 0) for a in range(values.ndim)]
        wide = np.pad(values, pad, mode="edge")
        out = np.zeros_like(values)
        for k, weight in enumerate(kernel):
            out += weight * np.take(wide, range(k, k + values.shape[axis]), axis)
        values = out
    return values
