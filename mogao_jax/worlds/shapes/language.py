"""Words and noun phrases of the world: synonyms, articles, plurals, numbers, places.

All text is lower-case English. Synonyms are rarer than the plain word.
"""

from __future__ import annotations

from mogao_jax.worlds.shapes.rng import Rng, chance, pick
from mogao_jax.worlds.shapes.scene import Object, Scene
from mogao_jax.worlds.shapes.truth import Wanted

NUMBERS = (
    *("zero", "one", "two", "three", "four", "five"),
    *("six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
)

NOUNS: dict[str | None, tuple[str, ...]] = {
    "circle": ("circle", "circle", "circle", "circle", "circle", "disk"),
    "square": ("square",),
    "triangle": ("triangle",),
    "cross": ("cross", "cross", "cross", "cross", "cross", "plus"),
    "star": ("star",),
    "ring": ("ring",),
    "diamond": ("diamond",),
    "heart": ("heart",),
    "arrow": ("arrow",),
    None: ("object", "shape", "thing"),
}
SIZE_WORDS = {"small": ("small", "small", "little", "tiny"), "large": ("large", "big", "big")}
RELATION_WORDS = {
    "left of": ("left of", "left of", "to the left of", "on the left of"),
    "right of": ("right of", "right of", "to the right of", "on the right of"),
    "above": ("above", "above", "over"),
    "below": ("below", "below", "under", "beneath"),
}


def plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("s") else "s")


def with_article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def noun_phrase(rng: Rng, wanted: Wanted, article: str = "a") -> str:
    """ "a small red circle", "the circle", "three red circles" of a description.

    Args:
      article: "a", "the", "plural" (no article), or "number", which counts `wanted.count` of them.
    """
    several = article == "number" and wanted.count != 1 or article == "plural"
    noun = pick(rng, NOUNS[wanted.shape])
    words = [plural(noun) if several else noun]
    if wanted.color is not None:
        words.insert(0, wanted.color)
    if wanted.size is not None:
        words.insert(0, pick(rng, SIZE_WORDS[wanted.size]))
    phrase = " ".join(words)
    if article == "a":
        return with_article(phrase)
    if article == "number":  # mostly the word, sometimes digits
        return f"{wanted.count if chance(rng, 0.1) else NUMBERS[wanted.count]} {phrase}"
    return "the " + phrase if article == "the" else phrase


_FIELDS: tuple[tuple[str, ...], ...] = (
    *(("shape", "color"),) * 4,
    *(("shape",),) * 3,
    *(("color",),) * 2,
    ("size", "shape"),
    ("size", "shape", "color"),
)


def refer(rng: Rng, scene: Scene, obj: Object, without: str | None = None) -> Wanted | None:
    """A random description that fits `obj` and nothing else in the scene; None if there is none.

    Args:
      without: a field ("shape", "color", "size") that it may not name.
    """
    options = [fields for fields in _FIELDS if without not in fields]
    if without in ("shape", "color") and len(scene.objects) == 1:
        options.append(())
    while options:
        fields = pick(rng, options)
        wanted = Wanted(**{name: getattr(obj, name) for name in fields})
        if len(wanted.among(scene)) == 1:
            return wanted
        options = [o for o in options if o != fields]
    return None


def at_region(rng: Rng, name: str) -> str:
    """ "in the top left corner", "at the top", ... where something is."""
    if " " in name:
        return plainly_at(name) + (" corner" if chance(rng, 0.5) else "")
    return plainly_at(pick(rng, ("center", "middle")) if name == "center" else name)


def plainly_at(name: str) -> str:
    """ "in the top left", "at the top", ... always the same words."""
    if " " in name or name in ("center", "middle"):
        return f"in the {name}"
    return f"at the {name}" if name in ("top", "bottom") else f"on the {name}"


def to_region(rng: Rng, name: str) -> str:
    """ "to the top left corner", "to the left side", ... where something goes."""
    if " " in name:
        return f"to the {name}" + (" corner" if chance(rng, 0.5) else "")
    if name == "center":
        return "to the " + pick(rng, ("center", "middle"))
    return f"to the {name}" if name in ("top", "bottom") else f"to the {name} side"


def listing(phrases: list[str]) -> str:
    """ "a, b and c"."""
    *most, last = phrases
    return f"{', '.join(most)} and {last}" if most else last
