"""Reads the scene back from an image's pixels, which may be soft, noisy and off in colour.

The background is measured where the image looks like one. Every pixel is explained as a mixture
of it with the object colour that leaves the least residual; pixels that are mostly object make
connected pieces; a piece's colour is that of its inside; and the piece's soft mask is fitted with
the world's own shapes. Whatever is not explained so makes the image unclear: a piece that fits
no shape (two objects grown together, half an object, a blot), a colour between the world's, and
anything left besides the objects.

Limits, and why they are where they are:

- MIN_FIT: what the autoencoder makes of true images fits with 0.99, soft or noisy ones with 0.98;
  images bent by half a pixel on average, whose shapes a person still names, with 0.93 to 0.97.
  Two objects grown together, half an object or an L stay below 0.9. Shapes that come near one of
  ours and are none (templates.OTHERS) compete with it instead.
- MAX_COLOR_DISTANCE: half of the least distance of two object colours in RGB is 52; a piece takes
  the nearest colour unless it is further from it than that, and a bit.
- SPECK: pieces under a twelfth of the smallest object (a star of 70 pixels of area, so 6 pixels)
  are dots such as decoders leave; nobody would count one as an object.
- LEFT_OVER_DISTANCE: backgrounds are 46 apart at least, so that a patch of another one is seen, and
  so is a faint object.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from mogao_jax.worlds.shapes.evals.scorers import templates
from mogao_jax.worlds.shapes.scene import (
    BACKGROUND_NAMES,
    BACKGROUNDS,
    COLOR_NAMES,
    COLORS,
    DEFAULT_WORLD,
    SHAPES,
    Object,
    Scene,
    World,
)

MIN_FIT = 0.92
MIN_LEAD = 0.004  # of the best shape over the second
MAX_COLOR_DISTANCE = 60.0  # of pixels from mixtures of colour and background, in RGB values
MAX_BACKGROUND_DISTANCE = 40.0
MIN_BACKGROUND = 0.15  # share of the image that must look like a background
SPECK = 1 / 12  # of the smallest object's area
MAX_MIXED = 0.12  # share of a piece that may be of another colour than its inside
LEFT_OVER_DISTANCE = 36.0  # from the background, of a pixel (3x3 mean) outside the objects
MAX_LEFT_OVER = 0.25  # area of such pixels, over the smallest object's area

SMALLEST_AREA = 0.355  # of its bounding square: the star's share, the least of all shapes
_COLORS = np.asarray(list(COLORS.values()), np.float32)
_BACKGROUNDS = np.asarray(list(BACKGROUNDS.values()), np.float32)


@dataclasses.dataclass(frozen=True)
class Reading:
    """What an image shows.

    Attributes:
      scene: all that was recognised; objects from top to bottom of the canvas, then left to right,
        with the world's diameters and whole-pixel centres; background "" if it is none of ours.
      problems: what could not be explained, in words; empty if the image is clear.
      fits: of each object, 1 being perfect.
    """

    scene: Scene
    problems: tuple[str, ...] = ()
    fits: tuple[float, ...] = ()

    @property
    def clear(self) -> bool:
        return not self.problems


def read_image(pixels: np.ndarray, world: World = DEFAULT_WORLD) -> Reading:
    """The scene of an image.

    Args:
      pixels: uint8[H, W, 3].
      world: whose sizes the objects have.
    """
    values = pixels.astype(np.float32)
    height, width = values.shape[:2]
    smallest = SMALLEST_AREA * world.small**2
    ground, name, problems = _background(values)
    if ground is None:
        return Reading(Scene(height, width, "", ()), tuple(problems))
    alpha = _foreground(values, ground)
    objects: list[tuple[Object, float]] = []
    covered = np.zeros((height, width), bool)
    solid = alpha > 0.5
    for piece in pieces(solid):
        if alpha[piece].sum() < SPECK * smallest:
            continue
        found, problem = _read_piece(values, ground, piece, solid, world)
        if not found:
            problems.append(problem)
        objects += found
        covered |= piece
    problems += _left_over(values, ground, _grown(covered, 3), smallest)
    objects.sort(key=lambda of: (of[0].cy, of[0].cx))
    scene = Scene(height, width, name, tuple(o for o, _ in objects))
    return Reading(scene, tuple(problems), tuple(f for _, f in objects))


def _background(values: np.ndarray) -> tuple[np.ndarray | None, str, list[str]]:
    """Its measured colour (None: there is no background), its name ("" if none), and problems."""
    flat = values.reshape(-1, 3)
    nearest = _nearest(flat, np.concatenate([_BACKGROUNDS, _COLORS]))
    near = nearest < len(_BACKGROUNDS)
    if near.mean() < MIN_BACKGROUND:
        return None, "", ["no background"]
    # The most common one, so that soft edges of objects do not count.
    common = int(np.bincount(nearest[near]).argmax())
    measured = np.median(flat[nearest == common], 0)
    number = int(_nearest(measured[None], _BACKGROUNDS)[0])
    if np.linalg.norm(measured - _BACKGROUNDS[number]) > MAX_BACKGROUND_DISTANCE:
        return measured, "", ["a background of no known color"]
    return measured, BACKGROUND_NAMES[number], []


def _nearest(values: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Index of the nearest colour: values float[N, 3] -> int[N]."""
    return ((palette**2).sum(1) - 2 * (values @ palette.T)).argmin(1)


def _residuals(values: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """Distance of values float[..., 3] from their best mixture with each colour, [..., colours]."""
    offset, lines = values - ground, _COLORS - ground
    along, squared = offset @ lines.T, (lines**2).sum(1)
    share = np.clip(along / squared, 0, 1)
    rest = (offset**2).sum(-1, keepdims=True) - share * (2 * along - share * squared)
    return np.sqrt(np.maximum(rest, 0))


def _foreground(values: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """How much of each pixel is object, by the colour that explains it best: [H, W] in [0, 1]."""
    lines = _COLORS - ground
    line = lines[_residuals(values, ground).argmin(-1)]
    return np.clip(((values - ground) * line).sum(-1) / (line**2).sum(-1), 0, 1)


def pieces(mask: np.ndarray) -> list[np.ndarray]:
    """Connected pieces of a mask, by the four direct neighbours: a bool[H, W] each."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    padded = np.pad(labels, 1)
    inner = padded[1:-1, 1:-1]
    while True:  # the largest number spreads: at most as many rounds as the longest way inside
        spread = inner.copy()
        for near in (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]):
            np.maximum(spread, near, out=spread)
        spread *= mask
        if np.array_equal(spread, inner):
            return [inner == number for number in np.unique(inner) if number]
        inner[:] = spread


def _read_piece(
    values: np.ndarray,
    ground: np.ndarray,
    piece: np.ndarray,
    solid: np.ndarray,
    world: World,
    split: bool = True,
) -> tuple[list[tuple[Object, float]], str]:
    """The object of a piece, or several of different colours that touch; or else the problem.

    `solid`: all pixels that are mostly object.
    """
    residuals = _residuals(values[piece], ground)
    if np.median(residuals.min(1)) > MAX_COLOR_DISTANCE:
        return [], "something of no known color"
    color = int(np.bincount(residuals.argmin(1)).argmax())
    share, rest = _mixture(values, ground, color)
    if ((rest > MAX_COLOR_DISTANCE) & piece).sum() > MAX_MIXED * piece.sum():
        parts = _split(values, ground, piece, solid, world) if split else []
        return parts, "" if parts else "something of several colors"
    foreign = _grown(solid & ~piece, 1)
    return _fitted(share * (_grown(piece, 2) & (piece | ~foreign)), COLOR_NAMES[color], world)


def _fitted(mask: np.ndarray, name: str, world: World) -> tuple[list[tuple[Object, float]], str]:
    """The object of this color that a soft mask shows, or else the problem."""
    rows, columns = np.flatnonzero((mask > 0.25).any(1)), np.flatnonzero((mask > 0.25).any(0))
    cy, cx = int(rows[0] + rows[-1] + 1) // 2, int(columns[0] + columns[-1] + 1) // 2
    extent = int(max(rows[-1] - rows[0], columns[-1] - columns[0])) + 1
    fits = templates.fit(mask, extent, cx, cy, world)
    known = {*SHAPES, *world.shapes}
    if not fits or fits[0].score < MIN_FIT or fits[0].shape not in known:
        return [], f"something {name} that is no shape of ours"
    best, second = fits[0], next(f for f in fits[1:] if f.shape in known)
    if best.score - second.score < MIN_LEAD:
        return [], f"something {name} between {best.shape} and {second.shape}"
    size = templates.size_name(best.diameter, world)
    found = Object(best.shape, name, size, world.diameter(size), round(best.cx), round(best.cy))
    return [(found, best.score)], ""


def _mixture(values: np.ndarray, ground: np.ndarray, color: int) -> tuple[np.ndarray, np.ndarray]:
    """Share of a colour over the background in every pixel, and the distance that remains."""
    line = _COLORS[color] - ground
    offset = values - ground
    share = np.clip(offset @ line / (line @ line), 0, 1)
    return share, np.sqrt(((offset - share[..., None] * line) ** 2).sum(-1))


def _split(
    values: np.ndarray, ground: np.ndarray, piece: np.ndarray, solid: np.ndarray, world: World
) -> list[tuple[Object, float]]:
    """Objects of different colours that touch each other, told apart by colour; [] if one fails."""
    nearest = _residuals(values, ground).argmin(-1)
    least = SPECK * SMALLEST_AREA * world.small**2
    found: list[tuple[Object, float]] = []
    for color in np.unique(nearest[piece]):
        for part in pieces(piece & (nearest == color)):
            if part.sum() >= least:
                objects, _ = _read_piece(values, ground, part, solid, world, split=False)
                if not objects:
                    return []
                found += objects
    return found


def _grown(mask: np.ndarray, by: int) -> np.ndarray:
    """The mask and everything up to `by` pixels from it, in both directions."""
    for _ in range(by):
        padded = np.pad(mask, 1)
        mask = mask | padded[:-2, 1:-1] | padded[2:, 1:-1]
        padded = np.pad(mask, 1)
        mask = mask | padded[1:-1, :-2] | padded[1:-1, 2:]
    return mask


def _left_over(
    values: np.ndarray, ground: np.ndarray, covered: np.ndarray, smallest: float
) -> list[str]:
    """Whether anything is left outside the objects that is not background."""
    padded = np.pad(values, ((1, 1), (1, 1), (0, 0)), mode="edge")
    height, width = covered.shape
    mean = np.zeros_like(values)
    for dy in range(3):
        for dx in range(3):
            mean += padded[dy : dy + height, dx : dx + width]
    off = np.sqrt(((mean / 9 - ground) ** 2).sum(-1)) > LEFT_OVER_DISTANCE
    left = off & ~covered
    return ["something besides the objects"] if left.sum() > MAX_LEFT_OVER * smallest else []
