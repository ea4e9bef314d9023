"""Forms: the contexts that a document's images are generated in, each a segment of its own.

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
    """One segment: a document's elements, and which copies of each image stand in it."""

    elements: list[Element | None]  # in the document's order; None: left out of this form
    noised: frozenset[int]  # images with a noised copy here
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
    targets: dict[int, list[int]] = {FULL: [], IMAGE_ONLY: [], EMPTY: []}
    for e in elements:
        if isinstance(e, ImageRef) and e.target:
            targets[contexts[e.index]].append(e.index)
    forms = [_form([*elements], targets[FULL], layout)]
    if last := targets[IMAGE_ONLY][-1:]:
        kept = _reduced(elements, range(last[0] + 1))
        forms.append(_form(kept, targets[IMAGE_ONLY], layout))
    for target in targets[EMPTY]:
        forms.append(_form(_reduced(elements, [target]), [target], layout))
    return forms


def _reduced(elements: list[Element], images: Sequence[int]) -> list[Element | None]:
    """The given images with their vision tokens, up to the last one; no text is trained."""

    def reduced(element: Element) -> Element | None:
        if isinstance(element, ImageRef):
            return element if element.index in images else None
        return dataclasses.replace(element, trained=False) if element.image in images else None

    kept = [reduced(element) for element in elements]
    while not isinstance(kept[-1], ImageRef):  # nothing follows the last image
        kept.pop()
    return kept


def _form(elements: list[Element | None], noised: Sequence[int], layout: LayoutConfig) -> Form:
    """Decides which copies of each image are read by anything in this form."""
    images = [e.index for e in elements if isinstance(e, ImageRef)]
    followed = [e.index for e in elements[:-1] if isinstance(e, ImageRef)]
    before_noised = images[: images.index(noised[-1])] if noised else []
    uses_vit = layout.understanding_encoder == "vit"
    if layout.lay_out_everything:
        vit, clean = (images if uses_vit else []), images
    elif uses_vit:
        vit, clean = followed, before_noised
    else:
        vit, clean = [], sorted({*followed, *before_noised})
    return Form(elements, frozenset(noised), frozenset(vit), frozenset(clean))
