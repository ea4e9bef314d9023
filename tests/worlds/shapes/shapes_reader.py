"""Reads the world's English back, by rules written apart from those that made it."""

from __future__ import annotations

import dataclasses
import re

COLORS = ["red", "green", "blue", "yellow", "purple", "orange", "cyan", "black"]
BACKGROUNDS = ["white", "gray", "cream", "mint", "lavender"]
NUMBERS = [
    *("zero", "one", "two", "three", "four", "five", "six"),
    *("seven", "eight", "nine", "ten", "eleven", "twelve"),
]
NOUNS = {
    "circle": "circle",
    "disk": "circle",
    "square": "square",
    "triangle": "triangle",
    "cross": "cross",
    "plus": "cross",
    "star": "star",
    "ring": "ring",
    "object": None,
    "shape": None,
    "thing": None,
}
SIZES = {"small": "small", "little": "small", "tiny": "small", "large": "large", "big": "large"}
RELATIONS = {
    "left of": "left",
    "right of": "right",
    "above": "above",
    "over": "above",
    "below": "below",
    "under": "below",
    "beneath": "below",
}
OPPOSITES = {"left": "right", "right": "left", "above": "below", "below": "above"}

PHRASE = re.compile(
    rf"\b(?:(?P<det>a|an|the|\d|{'|'.join(NUMBERS)}) )?"
    rf"(?:(?P<size>{'|'.join(SIZES)}) )?(?:(?P<color>{'|'.join(COLORS)}) )?"
    r"(?P<noun>circle|disk|square|triangle|cross|plus|star|ring|object|shape|thing)(?:e?s)?\b"
)
RELATION = re.compile(rf"\b({'|'.join(RELATIONS)})\b")


@dataclasses.dataclass
class Phrase:
    det: str | None
    size: str | None
    color: str | None
    shape: str | None

    @property
    def count(self) -> int:
        if self.det and self.det.isdigit():
            return int(self.det)
        return NUMBERS.index(self.det) if self.det in NUMBERS else 1

    def fits(self, o) -> bool:
        return (
            (self.size is None or o.size == self.size)
            and (self.color is None or o.color == self.color)
            and (self.shape is None or o.shape == self.shape)
        )

    def all(self, scene) -> list:
        return [o for o in scene.objects if self.fits(o)]

    def only(self, scene):
        found = self.all(scene)
        assert len(found) == 1, f"{self} is not unique in {scene}"
        return found[0]


def phrases(text: str) -> list[Phrase]:
    return [
        Phrase(m["det"], SIZES.get(m["size"]), m["color"], NOUNS[m["noun"]])
        for m in PHRASE.finditer(text)
    ]


def relation_word(text: str) -> str | None:
    found = RELATION.search(text)
    return RELATIONS[found[1]] if found else None


def side(a, b) -> str:
    """On which side of b is a: by the longer component of the offset."""
    dx, dy = a.cx - b.cx, a.cy - b.cy
    assert abs(dx) != abs(dy)
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "above" if dy < 0 else "below"


def part(o, scene) -> str:
    """The part of the canvas by thirds."""
    row = ("top", "", "bottom")[min(int(3 * o.cy / scene.height), 2)]
    column = ("left", "", "right")[min(int(3 * o.cx / scene.width), 2)]
    return f"{row} {column}".strip() or "center"


def part_word(text: str) -> str | None:
    """ "in the top left corner", "to the left side", "at the top", "in the middle"."""
    found = re.search(r"(?:in|at|on|to) the (top|bottom)?\s?(left|right|center|middle)?\b", text)
    if not found or not (found[1] or found[2]):
        return None
    if found[2] in ("center", "middle"):
        return "center"
    return " ".join(word for word in found.groups() if word)


def background_word(text: str) -> str | None:
    found = [w for w in re.findall(r"[a-z]+", text) if w in BACKGROUNDS]
    return found[0] if found else None


# ------------------------------------------------------------------------------------ answers


def answer(text: str, scene) -> str:
    """The answer to a question, from its words and the scene alone."""
    said = phrases(text)
    relation = relation_word(text)
    if text.startswith(("how many", "count")):
        return NUMBERS[len(said[0].all(scene))]
    if " exactly " in text:
        return "yes" if len(said[0].all(scene)) == said[0].count else "no"
    if text.startswith(("is there", "do you see")):
        return "yes" if said[0].all(scene) else "no"
    if text.startswith(("apart from", "on which side, not of")):
        return part(said[1].only(scene), scene)
    if "as opposed to" in text:
        return part(said[0].only(scene), scene)
    if "relative to" in text:
        return side(said[0].only(scene), said[1].only(scene))
    if text.startswith(("seen from", "on which side")):
        return side(said[1].only(scene), said[0].only(scene))
    if text.startswith("where"):
        return part(said[0].only(scene), scene)
    if text.startswith("is "):
        if relation:
            held = side(said[0].only(scene), said[1].only(scene))
            return "yes" if held == relation else "no"
        if len(said) == 2:
            return "yes" if said[0].only(scene).shape == said[1].shape else "no"
        last = text.rstrip("?").split()[-1]
        return "yes" if said[0].only(scene).color == last else "no"
    subject = next(p for p in reversed(said) if p.det == "the").only(scene)
    return subject.color if "color" in text else subject.shape


# ------------------------------------------------------------------------------------ changes


def check_place(text: str, new, others, scene) -> None:
    """The place named after the object's phrase, if any, is where `new` is."""
    relation, said = relation_word(text), phrases(text)
    if relation:
        assert side(new, said[-1].only(scene.with_objects(tuple(others)))) == relation
    elif part_word(text):
        assert part(new, scene) == part_word(text)


def check_change(text: str, before, after) -> str:
    """Asserts that what changed is what the words say, and nothing else; returns what it is."""
    said = phrases(text)
    gone = [o for o in before.objects if o not in after.objects]
    come = [o for o in after.objects if o not in before.objects]
    if "background" in text:
        assert not gone and not come and background_word(text) == after.background
        assert after.background != before.background
        return "background"
    assert before.background == after.background
    if re.search("remove|delete|erase|take|disappears|is gone|goes away", text):
        assert come == [] and gone == [said[0].only(before)]
        return "remove"
    if said[0].det in ("a", "an"):
        assert gone == [] and len(come) == 1 and said[0].fits(come[0])
        assert said[0].shape and said[0].color
        check_place(text, come[0], before.objects, before)
        return "add"
    target = said[0].only(before)
    assert gone == [target] and len(come) == 1
    (new,) = come
    if len(said) == 2 and said[1].det in ("a", "an"):
        kept = dataclasses.replace(new, shape=target.shape, color=target.color)
        assert said[1].fits(new) and new.shape != target.shape and kept == target
        if said[1].color is None:
            assert new.color == target.color
        return "replace"
    if re.search("move|bring|shift|goes", text):
        assert (new.shape, new.color, new.size) == (target.shape, target.color, target.size)
        assert relation_word(text) or part_word(text)
        check_place(text, new, [o for o in after.objects if o is not new], before)
        return "move"
    words = [w for w in re.findall("[a-z]+", text) if w in COLORS]
    assert new == dataclasses.replace(target, color=words[-1]) and new != target
    return "recolor"
