"""Forms: the contexts that a document's pictures are generated in, each a segment of its own.

Guidance needs predictions in three contexts (docs/method.md section 6), so these are trained. A
document is laid out in up to three kinds of *form*, each a segment of its own, because clean VAE
tokens of the full form have read its text:

    full        everything; carries all text losses
    image-only  the images and their vision tokens, no text
    empty       one target image after its <|vision_start|>

Every target image has its noised copy in exactly one form, drawn at random in training.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from mogao_jax.config.schema import LayoutConfig
from mogao_jax.sequence.batch import EMPTY, FULL, IMAGE_ONLY
from mogao_jax.sequence.document import Image
from mogao_jax.sequence.elements import Element, ImageRef, Token


def draw_contexts(
    items: Sequence[Image], layout: LayoutConfig, rng: np.random.Generator, context: int | None
) -> list[int]:
    """The context of each image, drawn with the config's shares, or `context` for all."""
    if context is not None:
        return [context] * len(items)
    draws = rng.random(len(items))
    is_empty = draws < layout.p_empty
    is_image_only = draws >= 1 - layout.p_image_only
    return [
        EMPTY if e else IMAGE_ONLY if i else FULL
        for e, i in zip(is_empty, is_image_only, strict=True)
    ]


@dataclasses.dataclass(frozen=True)
class Form:
    """One segment: elements with their T ids, and which copies of each picture stand in it."""

    elements: list[Element]
    t_ids: list[int]  # the T id of each element
    noised: frozenset[int]  # pictures with a noised copy here
    vit: frozenset[int]
    clean: frozenset[int]

    @property
    def is_trained(self) -> bool:
        trained = any(
            isinstance(b, Token) and b.trained and isinstance(a, Token)
            for a, b in itertools.pairwise(self.elements)
        )
        return trained or bool(self.noised)


def make_forms(elements: list[Element], contexts: list[int], layout: LayoutConfig) -> list[Form]:
    """The full form first, then one image-only form if any image needs it, then the empty ones."""
    targets = [e.index for e in elements if isinstance(e, ImageRef) and e.target]
    t_ids = list(range(len(elements)))  # one T per text token and one per image
    in_full = [i for i in targets if contexts[i] == FULL]
    forms = [_form(elements, t_ids, in_full, layout)]
    image_only = [i for i in targets if contexts[i] == IMAGE_ONLY]
    if image_only:
        forms.append(_reduced_form(elements, t_ids, range(image_only[-1] + 1), image_only, layout))
    for target in (i for i in targets if contexts[i] == EMPTY):
        forms.append(_reduced_form(elements, t_ids, [target], [target], layout))
    return forms


def _reduced_form(
    elements: list[Element],
    t_ids: list[int],
    pictures: Sequence[int],
    noised: Sequence[int],
    layout: LayoutConfig,
) -> Form:
    """The given pictures with their vision tokens, up to the last one; no text is trained."""
    kept: list[Element] = []
    kept_t_ids: list[int] = []
    for element, t in zip(elements, t_ids, strict=True):
        if isinstance(element, ImageRef):
            keep = element.index in pictures
        else:
            keep = element.picture is not None and element.picture in pictures
            element = dataclasses.replace(element, trained=False)
        if keep:
            kept.append(element)
            kept_t_ids.append(t)
    while isinstance(kept[-1], Token):  # nothing follows the last picture
        kept.pop(), kept_t_ids.pop()
    if layout.drop_positions == "renumber":
        kept_t_ids = list(range(len(kept)))
    return _form(kept, kept_t_ids, noised, layout)


def _form(
    elements: list[Element], t_ids: list[int], noised: Sequence[int], layout: LayoutConfig
) -> Form:
    """Decides which copies of each picture are read by anything in this form."""
    order = [e.index for e in elements if isinstance(e, ImageRef)]
    followed = [e.index for e in elements[:-1] if isinstance(e, ImageRef)]
    before_noised = order[: order.index(noised[-1])] if noised else []
    uses_vit = layout.understanding_encoder == "vit"
    if layout.lay_out_everything:
        vit, clean = (order if uses_vit else []), order
    elif uses_vit:
        vit, clean = followed, before_noised
    else:
        vit, clean = [], sorted({*followed, *before_noised})
    return Form(elements, t_ids, frozenset(noised), frozenset(vit), frozenset(clean))
