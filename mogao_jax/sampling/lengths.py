"""How long a document may be: text and ViT tokens, clean VAE tokens, a limit of each."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from mogao_jax import images as image_ops
from mogao_jax.config.geometry import VAE_GRID
from mogao_jax.config.schema import MogaoConfig
from mogao_jax.errors import DocumentError, RequestError
from mogao_jax.images import vae_grid
from mogao_jax.sequence.document import Document, Image
from mogao_jax.sequence.elements import ImageRef, apply_chat_template
from mogao_jax.tokenizer import Tokenizer

MAX_CONTEXT = 2**20


class Limits(NamedTuple):
    """Tokens that a document's history may have, what is written and drawn included.

    Attributes:
      und: text and ViT tokens.
      clean: clean VAE tokens.
    """

    und: int
    clean: int


def context_limits(config: MogaoConfig, max_context: int | None = None) -> Limits:
    """What fits one row of the training data, or as much more or less as was asked for.

    `und` is the row's own budget. Pictures are counted otherwise than in training, where only
    those have clean tokens that a later picture reads: here every picture may come to be read. So
    `clean` is what the row has for pictures, clean and noised; and where a ViT sees them, as many
    as can belong to `und` tokens of a ViT.

    Args:
      max_context: text and ViT tokens instead of the row's; clean tokens change in proportion.
    Raises:
      RequestError: not a whole number from 1 to MAX_CONTEXT.
    """
    packing = config.packing
    und = packing.und_tokens if max_context is None else max_context
    if not isinstance(und, int) or isinstance(und, bool) or not 1 <= und <= MAX_CONTEXT:
        raise RequestError(
            f"max_context is {und!r}; it must be a whole number of tokens, from 1 to {MAX_CONTEXT}."
        )
    drawn = packing.clean_tokens + packing.noised_tokens // config.layout.noised_copies
    share = drawn / packing.und_tokens
    if config.layout.understanding_encoder == "vit":
        share = max(share, _vae_tokens_per_vit_token(config))
    return Limits(und, max(und, math.ceil(und * share)))


def _vae_tokens_per_vit_token(config: MogaoConfig) -> float:
    """The most that a picture of any size has; rows and columns alike, so squares tell."""
    images = config.images
    longest = min(images.max_side, math.isqrt(images.max_pixels))
    sides = range(VAE_GRID, max(VAE_GRID, longest) + 1, VAE_GRID)
    return max((side // VAE_GRID) ** 2 / _vit_tokens(side, side, config) for side in sides)


def _vit_tokens(height: int, width: int, config: MogaoConfig) -> int:
    """ViT tokens, after the merge, of a picture of this size as the model sees it."""
    images, unit = config.images, config.vit.patch_size * config.vit.merge_size
    rows, columns = image_ops.vit_size(
        height, width, mode=images.vit_resize, vit_max_pixels=images.vit_max_pixels
    )
    return rows * columns // unit**2


def count_tokens(document: Document, config: MogaoConfig, tokenizer: Tokenizer) -> Limits:
    """Tokens of a prepared document that is to be continued: (text and ViT, clean VAE)."""
    pictures = [item.pixels for item in document.items if isinstance(item, Image)]
    und = clean = 0
    for element in apply_chat_template(document, tokenizer, add_generation_prompt=True):
        if not isinstance(element, ImageRef):
            und += 1
            continue
        pixels = pictures[element.index]
        assert pixels is not None  # the document is prepared
        clean += math.prod(vae_grid(pixels))
        if config.layout.understanding_encoder == "vit":
            height, width = pixels.shape[:2]
            und += _vit_tokens(height, width, config)
    return Limits(und, clean)


def check_length(
    document: Document,
    config: MogaoConfig,
    tokenizer: Tokenizer,
    limits: Limits,
    *,
    may_draw: bool = True,
) -> None:
    """Raises DocumentError for a prepared document that leaves no room in the context.

    Args:
      may_draw: whether a picture may follow: only pictures read clean tokens, unless there is no
        ViT.
    """
    und, clean = count_tokens(document, config, tokenizer)
    if not (may_draw or config.layout.understanding_encoder == "vae"):
        clean = 0
    check_counts(document.id, Limits(und + 1, clean), limits)  # one to be written


def check_counts(name: Any, counts: Limits, limits: Limits) -> None:
    """Raises DocumentError if a document's tokens are more than the context holds."""
    if counts.und <= limits.und and counts.clean <= limits.clean:
        return
    if counts.und > limits.und:
        have, holds, needed = f"{counts.und} tokens", f"{limits.und}", counts.und
    else:
        have, holds = f"{counts.clean} tokens of pictures", f"{limits.clean} of these"
        needed = math.ceil(counts.clean * limits.und / limits.clean)
    raise DocumentError(
        f"document {name!r} needs {have}, and this model's context holds {holds}, what it writes "
        "included. Shorten the text, use fewer or smaller pictures, or ask for a longer context: "
        f"mogao sample --max-context {needed}, in Python mogao_jax.load(..., max_context={needed})."
    )
