"""What an image of the embedded world shows: objects on a canvas, and what can be said of them.

A scene is the truth about an image. Coordinates are pixels, x to the right and y down, with the
origin at the upper left corner of the canvas. An object's centre (cx, cy) lies on a corner between
four pixels and its diameter is even, so that an object looks the same wherever it is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

from mogao_jax.config.geometry import VAE_GRID
from mogao_jax.errors import ConfigError

SHAPES = ("circle", "square", "triangle", "cross", "star", "ring")
NOVEL_SHAPES = ("diamond", "heart", "arrow")  # for a model that knows the others to learn

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (215, 10, 40),
    "green": (20, 150, 50),
    "blue": (25, 60, 225),
    "yellow": (255, 225, 0),
    "purple": (145, 30, 170),
    "orange": (255, 120, 0),
    "cyan": (0, 195, 215),
    "black": (20, 20, 20),
}

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "gray": (200, 200, 200),
    "cream": (255, 238, 195),
    "mint": (200, 245, 212),
    "lavender": (222, 208, 252),
}

COLOR_NAMES = tuple(COLORS)
BACKGROUND_NAMES = tuple(BACKGROUNDS)
SIZES = ("small", "large")
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

# Parts of the canvas: rows from the top, columns from the left.
REGION_GRID = (
    ("top left", "top", "top right"),
    ("left", "center", "right"),
    ("bottom left", "bottom", "bottom right"),
)
REGION_NAMES = tuple(name for row in REGION_GRID for name in row)


@dataclasses.dataclass(frozen=True)
class Kind:
    """What an object is, without its place."""

    shape: str
    color: str
    size: str = "small"


@dataclasses.dataclass(frozen=True)
class Object:
    """One object.

    Attributes:
      shape, color, size: of SHAPES or NOVEL_SHAPES, COLORS, SIZES.
      diameter: side of its bounding square in pixels, even (a triangle may fill less of it).
      cx, cy: centre of that square in pixels.
    """

    shape: str
    color: str
    size: str
    diameter: int
    cx: int
    cy: int

    @property
    def kind(self) -> Kind:
        return Kind(self.shape, self.color, self.size)


@dataclasses.dataclass(frozen=True)
class Scene:
    """A canvas (height and width in pixels), its background and its objects, later ones on top."""

    height: int
    width: int
    background: str
    objects: tuple[Object, ...]

    def with_objects(self, objects: Iterable[Object]) -> Scene:
        return dataclasses.replace(self, objects=tuple(objects))

    def without(self, obj: Object) -> Scene:
        """The scene without this very object."""
        return self.with_objects(o for o in self.objects if o is not obj)

    def replacing(self, obj: Object, new: Object) -> Scene:
        """The scene with `new` in the place of this very object, in the same order."""
        return self.with_objects(new if o is obj else o for o in self.objects)


@dataclasses.dataclass(frozen=True)
class World:
    """The parameters of a world; see WORLDS for those with a name.

    Attributes:
      canvases: (height, width) of the images, multiples of 16 (the VAE grid).
      small, large: diameters in pixels, even.
      margin: least distance of an object from the edge.
      gap: least distance between two objects' bounding squares.
      max_count: most objects in an image.
      slow, fast: pixels that an object of a clip moves per frame.
      pitch: centres lie in the middle of the cells of a grid of this many pixels; 1: anywhere.
      shapes: of SHAPES and NOVEL_SHAPES, three or more.
      colors: of COLORS, three or more.
      backgrounds: of BACKGROUNDS, two or more.

    Raises:
      ConfigError: a value that such a world cannot have.
    """

    canvases: tuple[tuple[int, int], ...] = (
        *((64, 64), (48, 48), (48, 80), (80, 48), (48, 64), (64, 48)),
        *((32, 96), (96, 32), (32, 64), (64, 32), (32, 80), (80, 32)),
    )
    small: int = 14
    large: int = 22
    margin: int = 2
    gap: int = 3
    max_count: int = 5
    slow: int = 4
    fast: int = 10
    pitch: int = 1
    shapes: tuple[str, ...] = SHAPES
    colors: tuple[str, ...] = COLOR_NAMES
    backgrounds: tuple[str, ...] = BACKGROUND_NAMES

    def __post_init__(self):
        sides = [side for canvas in self.canvases for side in canvas]
        _require(
            min(sides, default=0) > 0 and math.gcd(*sides) % VAE_GRID == 0,
            f"canvases must be multiples of {VAE_GRID} pixels, got {self.canvases}",
        )
        _require(
            2 <= self.small < self.large and self.small % 2 == self.large % 2 == 0,
            "diameters must be even with small < large, got "
            f"small {self.small}, large {self.large}",
        )
        _require(
            self.pitch >= 1 and self.slow % self.pitch == self.fast % self.pitch == 0,
            "pitch must be 1 or more and divide slow and fast, got "
            f"pitch {self.pitch}, slow {self.slow}, fast {self.fast}",
        )
        for name, known, least in (
            ("shapes", SHAPES + NOVEL_SHAPES, 3),
            ("colors", COLOR_NAMES, 3),
            ("backgrounds", BACKGROUND_NAMES, 2),
        ):
            given = getattr(self, name)
            _require(
                len(given) == len(set(given)) >= least and set(given) <= set(known),
                f"{name} must be {least} or more different ones of {', '.join(known)}, got {given}",
            )

    @property
    def max_pixels(self) -> int:
        """Area of the largest canvas, the pixel budget of this world."""
        return max(h * w for h, w in self.canvases)

    @property
    def summary(self) -> str:
        """What the world shows, in a line; scores of different worlds cannot be compared."""
        lie = "anywhere" if self.pitch == 1 else f"on a grid of {self.pitch} pixels"
        return (
            f"{len(self.shapes)} shapes, {len(self.colors)} colors, {len(self.backgrounds)} "
            f"backgrounds, 1 to {self.max_count} objects {lie}"
        )

    def diameter(self, size: str) -> int:
        return self.small if size == "small" else self.large

    def fitting(self, max_pixels: int, max_side: int) -> World:
        """The same world without images that would be shrunk; itself if nothing fits."""
        fits = [(h, w) for h, w in self.canvases if h * w <= max_pixels and max(h, w) <= max_side]
        return dataclasses.replace(self, canvases=tuple(fits or self.canvases))

    def scaled(self, factor: int) -> World:
        """The same world with `factor` times larger images."""
        lengths = ("small", "large", "margin", "gap", "slow", "fast")
        return dataclasses.replace(
            self,
            canvases=tuple((h * factor, w * factor) for h, w in self.canvases),
            pitch=self.pitch * factor if self.pitch > 1 else 1,
            **{name: getattr(self, name) * factor for name in lengths},
        )


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(f"shapes world: {message}.")


DEFAULT_WORLD = World()

_GRID = World(small=10, large=14, margin=1, gap=2, slow=16, fast=32, pitch=16)

# "free": objects lie anywhere, mostly across several VAE tokens. A small model needs long to draw
# them. "grid": every object lies inside one token of 16 x 16 pixels, so a model has to learn what
# to draw and not how to join its parts. "primer": a grid with few words, learned within
# minutes. "novel": a grid of other shapes alone, which the demo checkpoint has not seen.
WORLDS = {
    "free": DEFAULT_WORLD,
    "grid": _GRID,
    "primer": dataclasses.replace(
        _GRID,
        shapes=("circle", "square", "triangle"),
        colors=("red", "green", "blue", "yellow"),
        backgrounds=("white", "gray"),
    ),
    "novel": dataclasses.replace(_GRID, shapes=NOVEL_SHAPES),
}


def fitting_world(name: str, max_pixels: int, max_side: int) -> World:
    """The world of this name (of WORLDS) without images that a model would have to shrink."""
    return WORLDS[name].fitting(max_pixels, max_side)


_GENEVAL_SHRINK = 0.1  # of the summed extents: smaller offsets count as none
_GENEVAL_AXIS = 0.5  # part of the unit offset along an axis above which the relation holds
_CLEAR = 0.9  # the same, from which it holds beyond doubt (within 26 degrees of the axis)


def _along_relations(a: Object, b: Object) -> dict[str, float]:
    """How much of the unit offset of a from b points in the direction of each relation."""
    shrink = _GENEVAL_SHRINK * (a.diameter + b.diameter)
    dx, dy = a.cx - b.cx, a.cy - b.cy
    x = math.copysign(max(abs(dx) - shrink, 0.0), dx)
    y = math.copysign(max(abs(dy) - shrink, 0.0), dy)
    norm = math.hypot(x, y) or math.inf
    return dict(zip(RELATIONS, (-x / norm, x / norm, -y / norm, y / norm), strict=True))


def relations(a: Object, b: Object) -> frozenset[str]:
    """The relations of a to b that hold by GenEval's rule (Ghosh et al. 2023, its evaluator).

    The offset between centres, shortened by a tenth of both extents along each axis, must have
    more than half of its length along the relation's axis: none to two of RELATIONS.
    """
    return frozenset(r for r, part in _along_relations(a, b).items() if part > _GENEVAL_AXIS)


def relation(a: Object, b: Object) -> str | None:
    """The relation of a to b if it is beyond doubt (then it is also the only one), else None."""
    return next((r for r, part in _along_relations(a, b).items() if part >= _CLEAR), None)


# A row or column is named only well inside its third: bounds of the centre, as parts of the side.
BANDS = ((0.0, 0.31), (0.42, 0.58), (0.69, 1.0))


def _band(position: float) -> int | None:
    return next((i for i, (low, high) in enumerate(BANDS) if low <= position <= high), None)


def region(obj: Object, scene: Scene) -> str | None:
    """The part of the canvas ("top left", "top", "center", ...) of an object; None if unclear."""
    row, column = _band(obj.cy / scene.height), _band(obj.cx / scene.width)
    return None if row is None or column is None else REGION_GRID[row][column]


def region_bounds(name: str, scene: Scene) -> tuple[int, int, int, int]:
    """The centres that lie in a region: (left, right, top, bottom) in pixels, all included."""
    row, column = divmod(REGION_NAMES.index(name), 3)
    (x_low, x_high), (y_low, y_high) = BANDS[column], BANDS[row]
    return (
        math.ceil(x_low * scene.width),
        math.floor(x_high * scene.width),
        math.ceil(y_low * scene.height),
        math.floor(y_high * scene.height),
    )


def distance(a: Object, b: Object) -> int:
    """Pixels between two centres, along the axis on which they are further apart."""
    return max(abs(a.cx - b.cx), abs(a.cy - b.cy))


def separated(a: Object, b: Object, gap: int) -> bool:
    """Whether the bounding squares of two objects keep at least `gap` pixels apart."""
    reach = (a.diameter + b.diameter) // 2 + gap
    return abs(a.cx - b.cx) >= reach or abs(a.cy - b.cy) >= reach
