"""The transformer of transfusion-pytorch (github.com/lucidrains/transfusion-pytorch), installed.

One stream with adaptive norms for the tokens of images, a row of the batch per document, padded
to the longest, with our mask. Its defaults except for sizes; it has no grouped queries.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mogao_jax.errors import EnvironmentProblem
from mogao_jax.tools.bench.packed_documents import Sequence, Setting


def make_step(setting: Setting, rows: list[list[Sequence]]) -> Callable[[], None]:
    """A call that computes the gradients of all parameters and of the input.

    Raises:
      EnvironmentProblem: the package is not installed.
    """
    try:
        import torch
        from transfusion_pytorch.transfusion import Transformer
    except ImportError as e:
        raise EnvironmentProblem(
            f"--transfusion needs the package: pip install transfusion-pytorch ({e})."
        ) from e
    torch.manual_seed(0)
    model = Transformer(
        setting.width,
        depth=setting.layers,
        dim_head=setting.head_dim,
        heads=setting.heads,
        # Its gated layer is two thirds as wide as this; so it gets our width.
        ff_expansion_factor=setting.mlp * 3 / 2 / setting.width,
    ).train()
    documents = [d for row in rows for d in row]
    longest = max(len(d.is_gen) for d in documents)
    count = len(documents)
    mask = np.zeros((count, longest, longest), bool)
    mask[:, np.arange(longest), np.arange(longest)] = True
    is_gen = np.zeros((count, longest), bool)
    for i, d in enumerate(documents):
        length = len(d.is_gen)
        mask[i, :length, :length] = d.mask
        is_gen[i, :length] = d.is_gen
    arguments = {
        "times": torch.rand(count, longest),
        "attn_mask": torch.from_numpy(mask),
        "is_any_modality": torch.from_numpy(is_gen),
    }
    given = torch.randn(count, longest, setting.width, requires_grad=True)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        given.grad = None
        model(given, **arguments).pow(2).mean().backward()

    return step
