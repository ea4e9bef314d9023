"""Everything that a picture shows, in words: many words, each decided by the picture.

An answer to a question is a word or two: a thin signal. A description teaches the same (colours,
shapes, places, relations, numbers) with thirty words per picture, as the detailed captions of
vision-language models do. So there are no synonyms here and the order is fixed: what the picture
leaves open teaches nothing.
"""

from __future__ import annotations

import numpy as np

from mogao_jax.worlds.shapes.language import NUMBERS, listing, plainly_at, with_article
from mogao_jax.worlds.shapes.placement import arrange, distinct_kinds, random_kind, shrink_crowd
from mogao_jax.worlds.shapes.rng import between, chance
from mogao_jax.worlds.shapes.scene import Object, Scene, World, region, relation

REQUESTS = ("what do you see?", "what is in the picture?", "what does the picture show?")


def any_scene(rng: np.random.Generator, world: World) -> Scene:
    """One to max_count objects: mostly all different, sometimes of any kinds."""
    count = between(rng, 1, world.max_count)
    if chance(rng, 0.3):
        kinds = [random_kind(rng, world) for _ in range(count)]
    else:
        kinds = distinct_kinds(rng, min(count, 4), world)
    return arrange(rng, shrink_crowd(kinds), world)


def description(scene: Scene) -> str:
    """The number of objects, each with its size, colour, shape and place, then how neighbours lie.

    Objects come in reading order: by rows of a fourth of the picture's height, then from the left.
    A place that is not clear (see `scene.region`) is left out, and so is a relation that is not,
    or whose objects look the same.
    """
    objects = sorted(scene.objects, key=lambda o: (4 * o.cy // scene.height, o.cx))
    number = "one object" if len(objects) == 1 else f"{NUMBERS[len(objects)]} objects"
    whole = f"{number}: {listing([_placed(o, scene) for o in objects])}."
    names = [f"{o.color} {o.shape}" for o in objects]
    lies = [
        f"the {names[i]} is {held} the {names[i + 1]}"
        for i in range(len(objects) - 1)
        if (held := relation(objects[i], objects[i + 1])) is not None
        and names.count(names[i]) == names.count(names[i + 1]) == 1
    ]
    return f"{whole} {listing(lies)}." if lies else whole


def _placed(obj: Object, scene: Scene) -> str:
    phrase = with_article(f"{obj.size} {obj.color} {obj.shape}")
    place = region(obj, scene)
    return phrase if place is None else f"{phrase} {plainly_at(place)}"
