"""The cursor: order and T/H/W position of every token, for training and sampling alike.

A segment is read from left to right. A `Cursor` says where its next element stands: `order` is
what attention compares (masking.py), `t` is the T position id and nothing else. A step places the
tokens of one element and returns the cursor after it:

    element             its tokens' order                        order advances   t advances
    text token          order                                    by 1             by 1
    image               noised copy k: order + k                 by the larger    by 1
                        ViT tokens: that of the last copy; if    of its parts
                        `vit_attention` is causal they count up
                        from there, one each
                        clean tokens: that of the last ViT token
    left out (skipped)  none                                     by 0             by 1, or by 0 if
                                                                                  renumbered

All tokens of an image share its T id; H and W are places on the grid of its VAE tokens.

Layout walks a whole document (layout.py), a request's history grows by the same steps
(sampling/history.py), and so does the decode loop, whose cursors are traced arrays. Hence a
cursor's own arithmetic uses `+` alone, which numpy, jnp and int share.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from mogao_jax.config.schema import LayoutConfig


class Placed(NamedTuple):
    """Where n tokens stand."""

    order: np.ndarray  # int32[n], for TokenMeta.order
    positions: np.ndarray  # float32[n, 3] (T, H, W)

    def __len__(self) -> int:
        return len(self.order)


class PlacedImage(NamedTuple):
    """Where the tokens of each form of one image stand, all in row-major order."""

    noised: tuple[Placed, ...]  # one per copy
    vit: Placed | None
    clean: Placed


class Cursor(NamedTuple):
    """Where the next element of a segment stands: ints, or int32 arrays of one shape."""

    order: Any = 0
    t: Any = 0

    def after_text(self, num_tokens: Any = 1) -> Cursor:
        return Cursor(self.order + num_tokens, self.t + num_tokens)

    def text(self, num_tokens: int, layout: LayoutConfig) -> tuple[Placed, Cursor]:
        """Places a run of text tokens."""
        steps = np.arange(num_tokens)
        positions = text_positions(self.t + steps, layout.text_positions)
        return Placed(_int32(self.order + steps), positions), self.after_text(num_tokens)

    def noised(self, grid: tuple[int, int], copy: int = 0) -> Placed:
        """Places one noised copy of an image.

        Args:
          grid: (rows, columns) of its VAE tokens.
          copy: from 0. Copies have an order each, so that none reads another.
        """
        positions = _grid_positions(self.t, np.indices(grid, dtype=np.float32))
        return Placed(np.full(len(positions), self.order + copy, np.int32), positions)

    def image(
        self,
        grid: tuple[int, int],
        vit_grid: tuple[int, int] | None,
        layout: LayoutConfig,
        *,
        num_copies: int = 0,
    ) -> tuple[PlacedImage, Cursor]:
        """Places an image.

        Args:
          grid: (rows, columns) of its VAE tokens.
          vit_grid: (rows, columns) of its ViT tokens; None where it has none.
          num_copies: its noised copies.
        """
        noised = tuple(self.noised(grid, copy) for copy in range(num_copies))
        # The last copy shares its order with the ViT tokens: it reads strictly earlier orders
        # alone, so not its own image, and what follows the image needs one order less.
        last = self.order + max(num_copies - 1, 0)
        vit = None
        if vit_grid is not None:
            positions = _vit_positions(self.t, vit_grid, grid)
            is_causal = layout.vit_attention == "causal"
            steps = np.arange(len(positions)) if is_causal else np.zeros(len(positions))
            vit = Placed(_int32(last + steps), positions)
            last += int(steps[-1])
        clean = Cursor(last, self.t).noised(grid)  # after its own ViT tokens, to read all of them
        return PlacedImage(noised, vit, clean), Cursor(last + 1, self.t + 1)

    def skip(self, layout: LayoutConfig, num_elements: int = 1) -> Cursor:
        """Passes elements that a reduced form leaves out: their T ids go unused, or to others."""
        keeps = layout.drop_positions == "keep"
        return self._replace(t=self.t + num_elements) if keeps else self


def text_positions(t: Any, mode: str, xp: Any = np) -> Any:
    """(T, H, W) of text tokens with the T ids t[...]: float32[..., 3].

    Args:
      mode: the config's `layout.text_positions`: 'thw' (H = W = T) or 't' (H = W = 0).
      xp: numpy, or jnp for traced T ids.
    """
    t = xp.asarray(t, xp.float32)
    other = t if mode == "thw" else xp.zeros_like(t)
    return xp.stack([t, other, other], -1)


def _vit_positions(t: int, vit_grid: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    """(T, H, W) of merged ViT tokens.

    [choice] The centre of each ViT token in coordinates of the VAE grid, whose token i has its
    centre at i. Where the grids coincide these are whole numbers: both share the position id.
    """
    axes = [(np.arange(n) + 0.5) * (m / n) - 0.5 for n, m in zip(vit_grid, grid, strict=True)]
    return _grid_positions(t, np.meshgrid(*axes, indexing="ij"))


def _grid_positions(t: int, axes: Any) -> np.ndarray:
    """float32[rows * columns, 3] from the H and W of every place of a grid."""
    h, w = (axis.reshape(-1) for axis in axes)
    return np.stack([np.full_like(h, t), h, w], -1).astype(np.float32)


def _int32(x: Any) -> np.ndarray:
    return np.asarray(x, np.int32)
