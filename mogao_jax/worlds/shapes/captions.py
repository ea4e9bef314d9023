"""Captions that ask for an image, balanced over GenEval's six categories."""

from __future__ import annotations

import dataclasses

from mogao_jax.worlds.shapes.language import RELATION_WORDS, noun_phrase
from mogao_jax.worlds.shapes.placement import arrange, random_kind, random_size, shrink_crowd
from mogao_jax.worlds.shapes.rng import Rng, between, chance, pick, sample
from mogao_jax.worlds.shapes.scene import OPPOSITE, Kind, Scene, World, relation
from mogao_jax.worlds.shapes.truth import CATEGORIES, Request, Wanted


def request_and_scene(rng: Rng, world: World, category: str | None = None) -> tuple[Request, Scene]:
    """A request of the category (a random one if None) and a scene that grants it."""
    category = category or pick(rng, CATEGORIES)
    background = pick(rng, world.backgrounds)
    wanted, scene = _MAKERS[category](rng, world, background, category)
    held = relation(*scene.objects) if category == "position" else None
    asked = background if chance(rng, 0.15) else None
    return Request(category, wanted, held, asked), scene


_Made = tuple[tuple[Wanted, ...], Scene]


def _one(rng: Rng, world: World, background: str, category: str) -> _Made:
    kind = random_kind(rng, world)
    scene = arrange(rng, [kind], world, background=background)
    color = kind.color if category == "colors" else None
    return (Wanted(kind.shape, color, kind.size if chance(rng, 0.15) else None),), scene


def _several(rng: Rng, world: World, background: str, category: str) -> _Made:
    count = between(rng, 2, world.max_count)
    kind = shrink_crowd([random_kind(rng, world)] * count)[-1]
    scene = arrange(rng, [kind] * count, world, background=background)
    return (Wanted(kind.shape, kind.color if chance(rng, 0.4) else None, count=count),), scene


def _two(rng: Rng, world: World, background: str, category: str) -> _Made:
    shapes, colors = sample(rng, world.shapes, 2), sample(rng, world.colors, 2)
    if category != "color_attribution" and chance(rng, 0.12):
        colors[1] = colors[0]
    kinds = [Kind(s, c, random_size(rng)) for s, c in zip(shapes, colors, strict=True)]
    position = category == "position"

    def told_apart(scene: Scene) -> bool:
        return not position or relation(*scene.objects) is not None

    scene = arrange(rng, kinds, world, background=background, accept=told_apart)
    named = category == "color_attribution" or (position and chance(rng, 0.5))
    return tuple(Wanted(k.shape, k.color if named else None) for k in kinds), scene


_MAKERS = {
    **dict.fromkeys(("single_object", "colors"), _one),
    "counting": _several,
    **dict.fromkeys(("two_objects", "position", "color_attribution"), _two),
}

_OPENINGS = (
    *("{}", "{}", "{}", "{}", "{}", "{}.", "{}.", "{}."),
    *("draw {}", "draw {}.", "please draw {}.", "show me {}", "show {}.", "paint {}."),
    *("a picture of {}", "a picture of {}.", "a drawing of {}.", "an image of {}", "make {}."),
    *("create a picture of {}.", "i want to see {}.", "can you draw {}?", "i would like {}."),
)
_PAIRS = ("{a} and {b}", "{a} and {b}", "{a} and {b}", "{a} with {b}", "both {a} and {b}")
_RELATED = ("{a} {r} {b}", "{a} {r} {b}", "{a} {r} {b}", "{a} that is {r} {b}")
_COUNTS = ("{}", "{}", "{}", "{}", "exactly {}", "a group of {}", "a set of {}")
_GROUNDS = ("{} on a {} background", "{} on {}", "{} with a {} background")


def caption(rng: Rng, request: Request) -> str:
    """Words for a request; they determine it completely (but for its category's name)."""
    if request.relation is not None:
        a, b = (noun_phrase(rng, w) for w in request.wanted)
        name = request.relation
        if chance(rng, 0.5):
            a, b, name = b, a, OPPOSITE[name]
        words = pick(rng, RELATION_WORDS[name])
        body = pick(rng, _RELATED).format(a=a, b=b, r=words)
    elif len(request.wanted) == 2:
        a, b = (noun_phrase(rng, w) for w in sample(rng, request.wanted, 2))
        body = pick(rng, _PAIRS).format(a=a, b=b)
    elif request.wanted[0].count > 1:
        body = pick(rng, _COUNTS).format(noun_phrase(rng, request.wanted[0], "number"))
    else:
        body = _single(rng, request.wanted[0])
    if request.background is not None:
        body = pick(rng, _GROUNDS).format(body, request.background)
    return pick(rng, _OPENINGS).format(body)


def _single(rng: Rng, wanted: Wanted) -> str:
    if wanted.color is not None and chance(rng, 0.1):
        plain = noun_phrase(rng, dataclasses.replace(wanted, color=None))
        return plain + pick(rng, (" that is ", " in ", " colored ")) + wanted.color
    return noun_phrase(rng, wanted)
