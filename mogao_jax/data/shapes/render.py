"""The renderer: scene -> picture, anti-aliased by the covered share of each pixel.

A shape is a set of points given by where it is entered and left along a horizontal line. A
pixel's coverage is the area of the shape inside it: exact along x, the mean over 64 lines along
y. Colours are mixed linearly in sRGB values, c * coverage + below * (1 - coverage), rounded half
up. Coverage depends on shape and diameter alone, since centres lie on pixel corners, and is
computed once.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from mogao_jax.data.shapes.scene import BACKGROUNDS, COLORS, SHAPES, Scene

_LINES = 64  # per pixel

RING_HOLE = 0.5  # inner radius over outer radius
CROSS_ARM = 0.36  # half of an arm's width over half of the diameter
STAR_INNER = 0.42  # radius of the inner corners over that of the points


def _star() -> tuple[tuple[float, float], ...]:
    corners = []
    for k in range(10):
        radius = 1.0 if k % 2 == 0 else STAR_INNER
        angle = math.pi * k / 5
        corners.append((radius * math.sin(angle), -radius * math.cos(angle)))
    # The points of a regular star lie on a circle but leave room below: fill the box.
    low = max(y for _, y in corners)
    wide = max(x for x, _ in corners)
    return tuple((x / wide, (y + 1) * 2 / (low + 1) - 1) for x, y in corners)


_A = CROSS_ARM

# Corners in the box [-1, 1] x [-1, 1], y down.
POLYGONS: dict[str, tuple[tuple[float, float], ...]] = {
    "square": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
    "triangle": ((0, -1), (1, 1), (-1, 1)),
    "cross": (
        *((-_A, -1), (_A, -1), (_A, -_A), (1, -_A), (1, _A), (_A, _A)),
        *((_A, 1), (-_A, 1), (-_A, _A), (-1, _A), (-1, -_A), (-_A, -_A)),
    ),
    "star": _star(),
}
CIRCLES: dict[str, tuple[float, ...]] = {"circle": (1.0,), "ring": (1.0, RING_HOLE)}


def _crossings(shape: str, y: float) -> list[float]:
    """Sorted x where the line at height y enters and leaves the shape, in turn."""
    found: list[float] = []
    if shape in CIRCLES:
        for radius in CIRCLES[shape]:
            if abs(y) < radius:
                x = math.sqrt(radius * radius - y * y)
                found += [-x, x]
    else:
        corners = POLYGONS[shape]
        for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
            if (y0 <= y) != (y1 <= y):
                found.append(x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return sorted(found)


@functools.cache
def coverage(shape: str, diameter: int) -> np.ndarray:
    """Covered share of each pixel of the bounding square: float32[diameter, diameter], read-only.

    Raises:
      ValueError: an unknown shape, or a diameter that is not positive and even.
    """
    if shape not in SHAPES or diameter <= 0 or diameter % 2:
        raise ValueError(f"no {shape!r} of diameter {diameter}: it must be positive and even.")
    radius = diameter / 2
    right = np.arange(1, diameter + 1, dtype=np.float64)
    rows = np.zeros((diameter * _LINES, diameter))
    for line in range(diameter * _LINES):
        y = (line + 0.5) / _LINES
        for k, x in enumerate(_crossings(shape, y / radius - 1)):
            covered = np.clip(right - (x + 1) * radius, 0, 1)  # of each pixel, right of x
            rows[line] += -covered if k % 2 else covered
    out = rows.reshape(diameter, _LINES, diameter).mean(1).astype(np.float32)
    out = np.clip(out, 0, 1)
    out.flags.writeable = False
    return out


@functools.cache
def _stamp(shape: str, diameter: int, color: str) -> tuple[np.ndarray, np.ndarray]:
    alpha = coverage(shape, diameter)[..., None]
    ink = alpha * np.asarray(COLORS[color], np.float32) + np.float32(0.5)
    return 1 - alpha, ink


def render(scene: Scene) -> np.ndarray:
    """The picture of a scene: uint8[height, width, 3]. Parts outside the canvas are cut off."""
    out = np.empty((scene.height, scene.width, 3), np.uint8)
    out[:] = BACKGROUNDS[scene.background]
    for o in scene.objects:
        keep, ink = _stamp(o.shape, o.diameter, o.color)
        top, left = o.cy - o.diameter // 2, o.cx - o.diameter // 2
        y0, x0 = max(top, 0), max(left, 0)
        y1 = max(min(top + o.diameter, scene.height), y0)
        x1 = max(min(left + o.diameter, scene.width), x0)
        part = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
        below = out[y0:y1, x0:x1]
        below[:] = (below * keep[part] + ink[part]).astype(np.uint8)
    return out
