"""Who attends to whom: three integers per token and one predicate (docs/method.md section 4).

A token's `segment` says which packed document it belongs to (0 is padding), its `order` where it
stands in that document (one per text token, one shared by all tokens of an image), its `kind`
what it is. Nothing else decides attention.

The document "a b [image] c [image]", whose two images are both generated, in ECTF form: the
first image stands in it as ViT tokens (V), clean VAE tokens (C) and noised VAE tokens (N); the
last, after which nothing stands, only noised (M). Streams in the order und | clean | noised;
"#" attends, "." does not; orders are written above and at the left:

               0 1 2 2 3 | 2 2 | 2 2 4 4
               a b V V c | C C | N N M M
      0 a      # . . . . | . . | . . . .
      1 b      # # . . . | . . | . . . .
      2 V      # # # # . | . . | . . . .
      2 V      # # # # . | . . | . . . .
      3 c      # # # # # | . . | . . . .
      2 C      # # # # . | # # | . . . .
      2 C      # # # # . | # # | . . . .
      2 N      # # . . . | . . | # # . .
      2 N      # # . . . | . . | # # . .
      4 M      # # # # # | # # | . . # #
      4 M      # # # # # | # # | . . # #

(The vision tokens around the images, left out of the drawing, are text like any other.)
"""

from __future__ import annotations

from typing import Any, NamedTuple

TEXT, VIT, VAE_CLEAN, VAE_NOISED = 0, 1, 2, 3
PADDING_SEGMENT = 0


class TokenMeta(NamedTuple):
    """The three integers of every token, int32[..., L] each (numpy, jax or kernel scalars)."""

    segment: Any
    order: Any
    kind: Any

    def take(self, index) -> TokenMeta:
        """Indexes all three alike: `q.take((..., slice(None), None))` makes queries a column."""
        return TokenMeta(self.segment[index], self.order[index], self.kind[index])


def can_attend(query: TokenMeta, key: TokenMeta, *, text_reads_vae: bool = False):
    """True where the query token may attend to the key token; broadcasts like any operator.

    Written with comparisons, `&` and `|` alone, so that numpy, jnp and a Pallas kernel can run it.

    Args:
      query, key: metadata, broadcastable against each other.
      text_reads_vae: VAE-only understanding (ablations A and B): text also reads clean VAE
        tokens, since there are no ViT tokens.
    """
    same_segment = (query.segment == key.segment) & (query.segment != PADDING_SEGMENT)
    same_order = key.order == query.order
    is_own_noise = same_order & (query.kind == VAE_NOISED) & (key.kind == VAE_NOISED)
    # History: strictly earlier for a noised image, which must not see its own clean forms;
    # otherwise everything up to now, so that tokens of one image (one order) see each other.
    earlier = key.order < query.order
    now = same_order & (query.kind != VAE_NOISED)
    readable = key.kind != VAE_NOISED
    if not text_reads_vae:
        readable = readable & ((query.kind > VIT) | (key.kind != VAE_CLEAN))
    return same_segment & (((earlier | now) & readable) | is_own_noise)


def dense_mask(query: TokenMeta, key: TokenMeta, *, text_reads_vae: bool = False):
    """The dense mask bool[..., T, S]. For tests and drawings: never used on long rows."""
    q = query.take((..., slice(None), None))
    k = key.take((..., None, slice(None)))
    return can_attend(q, k, text_reads_vae=text_reads_vae)
