"""Reads what a model's own sentences claim: an opening of a story, or a change of its last image.

Sentences are those of the embedded world (worlds/shapes), whole: anything else is not understood.
A claim speaks of things by description, as the words do; `resolve` finds them in a scene.
"""

from __future__ import annotations

import dataclasses
import re

from mogao_jax.worlds.shapes.language import NOUNS, NUMBERS, RELATION_WORDS, SIZE_WORDS
from mogao_jax.worlds.shapes.scene import (
    BACKGROUNDS,
    COLORS,
    REGION_NAMES,
    Object,
    Scene,
    region,
    relation,
)
from mogao_jax.worlds.shapes.truth import Edit, Wanted


@dataclasses.dataclass(frozen=True)
class Claim:
    """A change in words; as truth.Edit, with descriptions instead of objects."""

    kind: str
    target: Wanted | None = None
    asked: Wanted | None = None
    color: str | None = None
    relation: str | None = None
    anchor: Wanted | None = None
    region: str | None = None
    background: str | None = None


def _any(words) -> str:
    return "(?:" + "|".join(sorted(words, key=len, reverse=True)) + ")"


_SHAPE_OF = {noun: shape for shape, nouns in NOUNS.items() for noun in nouns}
_SIZE_OF = {word: size for size, words in SIZE_WORDS.items() for word in words}
_RELATION_OF = {word: name for name, words in RELATION_WORDS.items() for word in words}
_COLOR, _GROUND = _any(COLORS), _any(BACKGROUNDS)


def _phrase(name: str, article: str) -> str:
    size, color, noun = f"(?P<{name}_size>", f"(?P<{name}_color>", f"(?P<{name}_noun>"
    return f"{article} (?:{size}{_any(_SIZE_OF)}) )?(?:{color}{_COLOR}) )?{noun}{_any(_SHAPE_OF)})"


_X, _Y, _Z = _phrase("x", "the"), _phrase("y", "an?"), _phrase("z", "the")
_BESIDE = f"(?P<relation>{_any(_RELATION_OF)}) {_Z}"
_PART = "(?P<region>(?:top|bottom)(?: left| right)?|left|right|center|middle)"
_AT = f"(?: {_BESIDE}| (?:in|at|on) the {_PART}(?: corner)?)?"
_TO = f" (?:{_BESIDE}|to the {_PART}(?: corner| side)?)"

_CHANGES = tuple(
    (kind, re.compile(form))
    for kind, form in (
        ("background", f"the background (?:turns|becomes|is painted) (?P<background>{_GROUND})"),
        ("recolor", f"{_X} (?:turns|becomes|is painted) (?P<color>{_COLOR})"),
        ("replace", f"{_X} (?:turns into|becomes|changes into) {_Y}"),
        ("remove", f"{_X} (?:disappears|is gone|goes away|is removed)"),
        ("move", f"{_X} (?:moves|goes|is moved){_TO}"),
        ("add", f"{_Y} (?:appears|is added){_AT}"),
        ("add", f"(?:there is|we see) {_Y}{_AT}"),
    )
)
_LEAD = re.compile(r"(?:then|now|next,|after that,|finally,|at last) ")
_OPENING = re.compile(f"(?:first, |first there is |here is |we start with )?{_Y}")
_MENTION = re.compile(rf"\b{_Y}\b")
_COUNT = re.compile(rf"\b({_any(NUMBERS)}|\d+) pictures?\b")


def _sentence(text: str) -> str:
    return " ".join(text.lower().split()).removesuffix(".")


def _wanted(match: re.Match, name: str) -> Wanted | None:
    found = match.groupdict()
    noun = found.get(f"{name}_noun")
    if noun is None:
        return None
    size = found[f"{name}_size"]
    return Wanted(_SHAPE_OF[noun], found[f"{name}_color"], _SIZE_OF[size] if size else None)


def opening(text: str) -> Wanted | None:
    """What the first sentence of a story shows; None if it is no such sentence."""
    match = _OPENING.fullmatch(_sentence(text))
    return _wanted(match, "y") if match else None


def change(text: str) -> Claim | None:
    """The change that a later sentence tells; None if it is no such sentence."""
    sentence = _sentence(text)
    lead = _LEAD.match(sentence)
    if lead:
        sentence = sentence[lead.end() :]
    for kind, form in _CHANGES:
        match = form.fullmatch(sentence)
        if match:
            found = match.groupdict()
            relation, part = found.get("relation"), found.get("region")
            part = "center" if part == "middle" else part
            assert part is None or part in REGION_NAMES
            return Claim(
                kind,
                target=_wanted(match, "x"),
                asked=_wanted(match, "y"),
                color=found.get("color"),
                relation=_RELATION_OF[relation] if relation else None,
                anchor=_wanted(match, "z"),
                region=part,
                background=found.get("background"),
            )
    return None


def asked_story(text: str) -> tuple[int | None, Wanted | None]:
    """How many images a request for a free story asks for, and about what, if it says."""
    sentence = _sentence(text)
    number, about = _COUNT.search(sentence), _MENTION.search(sentence)
    count = None
    if number:
        word = number[1]
        count = int(word) if word.isdigit() else NUMBERS.index(word)
    return count, _wanted(about, "y") if about else None


def resolve(claim: Claim, scene: Scene) -> Edit | None:
    """The change of a scene that a claim tells; None if it names what is not there, or is vague."""
    target = _only(claim.target, scene.objects)
    others = tuple(o for o in scene.objects if o is not target)
    anchor = _only(claim.anchor, others)
    if (claim.target and not target) or (claim.anchor and not anchor):
        return None
    new = None
    if claim.kind == "recolor":
        assert target is not None and claim.color is not None
        new = dataclasses.replace(target, color=claim.color)
    return Edit(
        claim.kind,
        target=target,
        new=new,
        asked=claim.asked,
        relation=claim.relation,
        anchor=anchor,
        region=claim.region,
        background=claim.background,
    )


def changes_nothing(edit: Edit, scene: Scene) -> bool:
    """Whether what a change asks for is so already ("the blue ring becomes a ring")."""
    target = edit.target
    if edit.kind == "background":
        return edit.background == scene.background
    if target is None or edit.kind == "remove":
        return False
    if edit.kind == "move":
        if edit.anchor is not None:
            return edit.relation == relation(target, edit.anchor)
        return edit.region == region(target, scene)
    color = edit.new.color if edit.kind == "recolor" and edit.new else None
    asked = edit.asked or Wanted(color=color)
    return asked.matches(target)


def _only(wanted: Wanted | None, objects: tuple[Object, ...]) -> Object | None:
    if wanted is None:
        return None
    found = [o for o in objects if wanted.matches(o)]
    return found[0] if len(found) == 1 else None


def transfer(edit: Edit, scene: Scene) -> Edit | None:
    """A change of one scene as the same words ask it of another; None if what it names is missing.

    Objects are found again by shape and colour, as the words of stories name them.
    """

    def again(obj: Object | None) -> Object | None:
        return obj and _only(Wanted(obj.shape, obj.color), scene.objects)

    target, anchor = again(edit.target), again(edit.anchor)
    if (edit.target and not target) or (edit.anchor and not anchor):
        return None
    new = edit.new
    if edit.kind == "recolor":
        assert target is not None and edit.new is not None
        new = dataclasses.replace(target, color=edit.new.color)
    return dataclasses.replace(edit, target=target, anchor=anchor, new=new)


def tells(claim: Claim, edit: Edit, scene: Scene) -> bool:
    """Whether a claim, made of the scene before a change, tells exactly that change."""
    found = resolve(claim, scene)
    if found is None:
        return False
    color = edit.new.color if edit.kind == "recolor" and edit.new else None
    return (
        (found.kind, found.target, found.asked) == (edit.kind, edit.target, edit.asked)
        and (found.relation, found.anchor, found.region)
        == (edit.relation, edit.anchor, edit.region)
        and (found.background, claim.color) == (edit.background, color)
    )
