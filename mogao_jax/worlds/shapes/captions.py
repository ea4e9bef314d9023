"""Captions that ask for a picture, balanced over GenEval's six categories."""

from __future__ import annotations

import dataclasses

import numpy as np

from mogao_jax.worlds.shapes.language import RELATION_WORDS, noun_phrase
from mogao_jax.worlds.shapes.placement import (
    arrange,
    random_kind,
    random_size,
    shrink_crowd,
)
from mogao_jax.worlds.shapes.rng import between, chance, pick, sample
from mogao_jax.worlds.shapes.scene import OPPOSITE, Kind, Scene, World, relation
from mogao_jax.worlds.shapes.truth import CATEGORIES, Request, Wanted


def request_and_scene(
    rng: np.random.Generator, world: World, category: str | None = None
) -> tuple[Request, Scene]:
    """A request of the category (a random one if None) and a scene that grants it."""
    category = category or pick(rng, CATEGORIES)
    background = pick(rng, world.backgrounds)
    wanted: tuple[Wanted, ...]
    held = None
    if category in ("single_object", "colors"):
        kind = random_kind(rng, world)
        scene = arrange(rng, [kind], world, background=background)
        color = kind.color if category == "colors" else None
        wanted = (Wanted(kind.shape, color, kind.size if chance(rng, 0.15) else None),)
    elif category == "counting":
        count = between(rng, 2, world.max_count)
        kind = random_kind(rng, world)
        kind = shrink_crowd([kind] * count)[-1]
        scene = arrange(rng, [kind] * count, world, background=background)
        wanted = (Wanted(kind.shape, kind.color if chance(rng, 0.4) else None, count=count),)
    else:
        shapes, colors = sample(rng, world.shapes, 2), sample(rng, world.colors, 2)
        if category != "color_attribution" and chance(rng, 0.12):
            colors[1] = colors[0]
        kinds = [Kind(s, c, random_size(rng)) for s, c in zip(shapes, colors, strict=True)]
        position = category == "position"
        scene = arrange(
            rng,
            kinds,
            world,
            background=background,
            accept=(lambda s: relation(*s.objects) is not None) if position else None,
        )
        named = category == "color_attribution" or (position and chance(rng, 0.5))
        wanted = tuple(Wanted(k.shape, k.color if named else None) for k in kinds)
        held = relation(*scene.objects) if position else None
    asked = background if chance(rng, 0.15) else None
    return Request(category, wanted, held, asked), scene


_OPENINGS = (
    *("{}", "{}", "{}", "{}", "{}", "{}.", "{}.", "{}."),
    *("draw {}", "draw {}.", "please draw {}.", "show me {}", "show {}.", "paint {}."),
    *("a picture of {}", "a picture of {}.", "a drawing of {}.", "an image of {}", "make {}."),
    *("create a picture of {}.", "i want to see {}.", "can you draw {}?", "i would like {}."),
)
_PAIRS = ("{a} and {b}", "{a} and {b}", "{a} and {b}", "{a} with {b}", "both {a} and {b}")
_COUNTS = ("{}", "{}", "{}", "{}", "exactly {}", "a group of {}", "a set of {}")


def caption(rng: np.random.Generator, request: Request) -> str:
    """Words for a request; they determine it completely (but for its category's name)."""
    if request.relation is not None:
        body = _relation(rng, request)
    elif len(request.wanted) == 2:
        a, b = (noun_phrase(rng, w) for w in sample(rng, request.wanted, 2))
        body = pick(rng, _PAIRS).format(a=a, b=b)
    elif request.wanted[0].count > 1:
        body = pick(rng, _COUNTS).format(noun_phrase(rng, request.wanted[0], "number"))
    else:
        body = _single(rng, request.wanted[0])
    if request.background is not None:
        ground = request.background
        where = pick(rng, ("on a {} background", "on {}", "with a {} background")).format(ground)
        body = f"{body} {where}"
    return pick(rng, _OPENINGS).format(body)


def _single(rng: np.random.Generator, wanted: Wanted) -> str:
    if wanted.color is not None and chance(rng, 0.1):
        plain = noun_phrase(rng, dataclasses.replace(wanted, color=None))
        return plain + pick(rng, (" that is ", " in ", " colored ")) + wanted.color
    return noun_phrase(rng, wanted)


def _relation(rng: np.random.Generator, request: Request) -> str:
    assert request.relation is not None
    a, b = (noun_phrase(rng, w) for w in request.wanted)
    if chance(rng, 0.5):
        a, b, name = b, a, OPPOSITE[request.relation]
    else:
        name = request.relation
    words = pick(rng, RELATION_WORDS[name])
    return pick(rng, ("{a} {r} {b}", "{a} {r} {b}", "{a} {r} {b}", "{a} that is {r} {b}")).format(
        a=a, b=b, r=words
    )
