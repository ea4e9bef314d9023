"""Text only: facts about shapes, sums, descriptions and what follows from them."""

from __future__ import annotations

from mogao_jax.worlds.shapes.language import (
    NOUNS,
    NUMBERS,
    RELATION_WORDS,
    listing,
    noun_phrase,
    plural,
    with_article,
)
from mogao_jax.worlds.shapes.rng import Rng, between, chance, pick, sample
from mogao_jax.worlds.shapes.scene import OPPOSITE, RELATIONS, World
from mogao_jax.worlds.shapes.truth import Wanted

# (sides, corners) of each shape as drawn; None: it is round.
GEOMETRY: dict[str, tuple[int, int] | None] = {
    "circle": None,
    "ring": None,
    "square": (4, 4),
    "triangle": (3, 3),
    "star": (10, 10),
    "cross": (12, 12),
    "diamond": (4, 4),
    "heart": (2, 2),  # two curves, which meet at the notch and at the tip
    "arrow": (7, 7),
}

Exchange = tuple[str, str]  # what is said or asked, and what follows or is answered


def exchange(rng: Rng, world: World) -> tuple[str, Exchange]:
    """A random kind of FACTS and a (question, answer) pair of that kind."""
    kind = pick(rng, FACTS)
    return kind, _MAKERS[kind](rng, world)


def _fact(rng: Rng, world: World) -> Exchange:
    shape = pick(rng, world.shapes)
    name = with_article(pick(rng, NOUNS[shape]))
    geometry = GEOMETRY[shape]
    asks = pick(rng, ("round", "sides", "corners"))
    if asks == "round":
        return f"is {name} round?", "yes." if geometry is None else "no."
    count = 0 if geometry is None else geometry[asks == "corners"]
    form = pick(rng, ("how many {k} does {x} have?", "how many {k} has {x}?"))
    return form.format(k=asks, x=name), ("none." if count == 0 else NUMBERS[count] + ".")


def _things(rng: Rng, shape: str, count: int) -> str:
    return noun_phrase(rng, Wanted(shape, count=count), "number")


_SUMS = ("how much is {x} and {y}?", "what is {x} and {y} together?", "{x} and {y} make")
_DIFFERENCES = (
    "there {are} {x}. {b} {go} away. how many are left?",
    "what is {x} minus {b}?",
    "take {b} from {x}. how many are left?",
)


def _sum(rng: Rng, world: World) -> Exchange:
    a, b = between(rng, 1, 5), between(rng, 1, 5)
    if chance(rng, 0.5):
        first, second = sample(rng, world.shapes, 2)
        unit = pick(rng, ("shapes", "objects"))
    else:
        first = second = pick(rng, world.shapes)
        unit = plural(pick(rng, NOUNS[first]))
    x, y = _things(rng, first, a), _things(rng, second, b)
    return pick(rng, _SUMS).format(x=x, y=y), f"{NUMBERS[a + b]} {unit}."


def _difference(rng: Rng, world: World) -> Exchange:
    a = between(rng, 1, 10)
    b = between(rng, 0, a)
    shape = pick(rng, world.shapes)
    x = _things(rng, shape, a)
    are, go = "is" if a == 1 else "are", "goes" if b == 1 else "go"
    text = pick(rng, _DIFFERENCES).format(are=are, x=x, b=NUMBERS[b], go=go)
    return text, NUMBERS[a - b] + "."


def _total(rng: Rng, world: World) -> Exchange:
    shapes = sample(rng, world.shapes, between(rng, 2, 3))
    counts = [between(rng, 1, 3) for _ in shapes]
    colors = [pick(rng, (*world.colors, None)) for _ in shapes]
    things = [
        noun_phrase(rng, Wanted(s, c, count=n), "number")
        for s, c, n in zip(shapes, colors, counts, strict=True)
    ]
    text = pick(rng, ("a picture shows {}.", "there are {}.", "we see {}.")).format(listing(things))
    if chance(rng, 0.5):
        return f"{text} how many shapes are there?", NUMBERS[sum(counts)] + "."
    i = between(rng, 0, len(shapes) - 1)
    plain = plural(pick(rng, NOUNS[shapes[i]]))
    return f"{text} how many {plain} are there?", NUMBERS[counts[i]] + "."


def _relation(rng: Rng, world: World) -> Exchange:
    shapes, colors = sample(rng, world.shapes, 2), sample(rng, world.colors, 2)
    named = chance(rng, 0.5)
    a, b = (Wanted(s, c if named else None) for s, c in zip(shapes, colors, strict=True))
    held = pick(rng, RELATIONS)
    the_a, the_b = noun_phrase(rng, a, "the"), noun_phrase(rng, b, "the")
    text = f"{the_a} is {pick(rng, RELATION_WORDS[held])} {the_b}."
    if chance(rng, 0.6):
        return f"{text} where is {the_b}?", f"{OPPOSITE[held]} {the_a}."
    asked = pick(rng, (held, OPPOSITE[held]))
    words = pick(rng, RELATION_WORDS[asked])
    return f"{text} is {the_b} {words} {the_a}?", "yes." if asked == OPPOSITE[held] else "no."


def _choice(rng: Rng, world: World) -> Exchange:
    """Colours and shapes are different kinds of words."""
    color, shape = pick(rng, world.colors), pick(rng, world.shapes)
    word, answer = pick(rng, ((color, "a color."), (shape, "a shape.")))
    form = pick(rng, ("is {} a color or a shape?", "what is {}, a color or a shape?"))
    return form.format(word), answer


_MAKERS = {
    "fact": _fact,
    "sum": _sum,
    "difference": _difference,
    "total": _total,
    "relation": _relation,
    "choice": _choice,
}
FACTS = tuple(_MAKERS)
