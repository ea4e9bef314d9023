"""The renderer: scene -> image, anti-aliased by the covered share of each pixel.

A pixel's coverage is the area of the shape inside it: exact along x, the mean over 256 lines along
y. Colours are mixed linearly in sRGB values, c * coverage + below * (1 - coverage), rounded half
up. Coverage depends on shape and diameter alone, since centres lie on pixel corners, and is
computed once.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from mogao_jax.worlds.shapes.scene import BACKGROUNDS, COLORS, Scene

_LINES = 256  # per pixel

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


def _heart() -> tuple[tuple[float, float], ...]:
    """The curve (sin^3, cos terms) of MathWorld's "Heart Curve", filling the box."""
    t = np.arange(96) * (2 * math.pi / 96)
    x = np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    y = 2 * (y - y.min()) / (y.max() - y.min()) - 1
    return tuple(zip(x.tolist(), y.tolist(), strict=True))


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
    "diamond": ((0, -1), (1, 0), (0, 1), (-1, 0)),
    "heart": _heart(),
    "arrow": ((0, -1), (1, 0.1), (_A, 0.1), (_A, 1), (-_A, 1), (-_A, 0.1), (-1, 0.1)),
}
CIRCLES: dict[str, tuple[float, ...]] = {"circle": (1.0,), "ring": (1.0, RING_HOLE)}


def _borders(shape: str, y: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Borders met by lines at heights y: (x, side) with side +1 where the shape is right of x.

    Side is -1 where it is left of x, and 0 on lines that do not meet the border.
    """
    found = []
    if shape in CIRCLES:
        for k, radius in enumerate(CIRCLES[shape]):
            x = np.sqrt(np.maximum(radius * radius - y * y, 0))
            side = np.where(np.abs(y) < radius, 1 if k == 0 else -1, 0)  # the second is a hole
            found += [(-x, side), (x, -side)]
    else:
        corners = POLYGONS[shape]  # clockwise as seen: edges that go up have the shape on the right
        for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
            if y0 != y1:
                met = (min(y0, y1) <= y) & (y < max(y0, y1))
                found.append((x0 + (y - y0) * (x1 - x0) / (y1 - y0), met * (1 if y1 < y0 else -1)))
    return found


@functools.cache
def coverage(shape: str, diameter: int) -> np.ndarray:
    """Covered share of each pixel of the bounding square: float32[diameter, diameter], read-only.

    Raises:
      ValueError: an unknown shape, or a diameter that is not positive and even.
    """
    if shape not in (*POLYGONS, *CIRCLES) or diameter <= 0 or diameter % 2:
        raise ValueError(f"no {shape!r} of diameter {diameter}: it must be positive and even.")
    radius = diameter / 2
    y = (np.arange(diameter * _LINES) + 0.5) / _LINES / radius - 1
    right = np.arange(1, diameter + 1)
    lines = np.zeros((diameter * _LINES, diameter))
    for x, side in _borders(shape, y):
        # Share of each pixel that lies right of the border.
        lines += side[:, None] * np.clip(right - ((x + 1) * radius)[:, None], 0, 1)
    out = lines.reshape(diameter, _LINES, diameter).mean(1).astype(np.float32)
    out = np.clip(out, 0, 1)
    out.flags.writeable = False
    return out


@functools.cache
def _stamp(shape: str, diameter: int, color: str) -> tuple[np.ndarray, np.ndarray]:
    alpha = coverage(shape, diameter)[..., None]
    ink = alpha * np.asarray(COLORS[color], np.float32) + np.float32(0.5)
    return 1 - alpha, ink


def render(scene: Scene) -> np.ndarray:
    """The image of a scene: uint8[height, width, 3]. Parts outside the canvas are cut off."""
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
