"""What a document asks for and what is true of it, kept beside its text and images."""

from __future__ import annotations

import dataclasses
import itertools

from mogao_jax.worlds.shapes.scene import Kind, Object, Scene, relations

CATEGORIES = (
    *("single_object", "two_objects", "counting"),
    *("colors", "position", "color_attribution"),
)  # of GenEval (Ghosh et al. 2023)


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A description: what is None is left open. `count` objects of it are wanted."""

    shape: str | None = None
    color: str | None = None
    size: str | None = None
    count: int = 1

    @classmethod
    def of(cls, obj: Object | Kind) -> Wanted:
        """An object by its shape and colour."""
        return cls(obj.shape, obj.color)

    def matches(self, obj: Object) -> bool:
        return (
            self.shape in (None, obj.shape)
            and self.color in (None, obj.color)
            and self.size in (None, obj.size)
        )

    def among(self, scene: Scene) -> list[Object]:
        """The scene's objects that match."""
        return [o for o in scene.objects if self.matches(o)]


@dataclasses.dataclass(frozen=True)
class Request:
    """What a caption asks an image to show, no less and no more.

    Attributes:
      category: one of CATEGORIES.
      wanted: the objects.
      relation: "<wanted[0]> <relation> <wanted[1]>", one of scene.RELATIONS; None: anywhere.
      background: None: any.
    """

    category: str
    wanted: tuple[Wanted, ...]
    relation: str | None = None
    background: str | None = None


def satisfies(scene: Scene, request: Request) -> bool:
    """Whether a scene shows exactly what was requested: each object wanted, nothing besides."""
    slots = [w for w in request.wanted for _ in range(w.count)]
    if len(slots) != len(scene.objects) or request.background not in (None, scene.background):
        return False
    return any(
        all(w.matches(o) for w, o in zip(slots, order, strict=True))
        and (request.relation is None or request.relation in relations(*order[:2]))
        for order in itertools.permutations(scene.objects)
    )


QUESTIONS = ("color", "shape", "count", "relation", "where", "yes_no")


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about an image and its only right answer.

    Attributes:
      kind: one of QUESTIONS, or of questions.QUIZZES.
      subject: what it asks about; one object of the scene, or for counts and yes/no, any number.
      other: the second object of a relation, or the one that the subject is told apart from.
      claim: what a yes/no question claims: "exists", "count" (subject.count of them), "color" or
        "shape" (`value` of the subject), or "relation" (`value` of subject to other).
      value: the claimed colour, shape or relation.
      answer: the exact text of the answer.
    """

    kind: str
    subject: Wanted
    answer: str
    other: Wanted | None = None
    claim: str | None = None
    value: str | None = None


EDITS = ("recolor", "add", "remove", "move", "replace", "background")


@dataclasses.dataclass(frozen=True)
class Edit:
    """A change from one scene to the next; everything it does not name stays as it is.

    Attributes:
      kind: one of EDITS.
      target: the object of the scene before that is changed, moved, replaced or removed.
      new: what stands in its place in the scene after, or the object added.
      asked: what the words say of `new` (add, replace).
      relation, anchor: the place asked for relative to another object (add, move).
      region: the place asked for on the canvas (add, move), of scene.REGION_NAMES.
      background: the new one.
    """

    kind: str
    target: Object | None = None
    new: Object | None = None
    asked: Wanted | None = None
    relation: str | None = None
    anchor: Object | None = None
    region: str | None = None
    background: str | None = None


@dataclasses.dataclass(frozen=True)
class Motion:
    """A clip: the first object of each scene moves by (dx, dy) pixels per frame."""

    direction: str
    speed: str
    dx: int
    dy: int


@dataclasses.dataclass(frozen=True)
class Truth:
    """What is true of a document.

    Attributes:
      task: the kind of document.
      category: which sort of it: a GenEval category, a question's or an edit's kind, ...
      scenes: one per image, in order.
      request: t2i. question: qa. motion: clip.
      edits: the change before image k + 1 (edit and story).
      planned: story: whether the user named every step.
    """

    task: str
    category: str
    scenes: tuple[Scene, ...] = ()
    request: Request | None = None
    question: Question | None = None
    edits: tuple[Edit, ...] = ()
    motion: Motion | None = None
    planned: bool = False
