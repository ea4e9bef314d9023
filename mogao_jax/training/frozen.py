"""Parameters that are not trained: config `optimizer.frozen`.

They get no gradient (the backward pass leaves its matmuls out), no moments and no decay: they, and
their moving average, stay what they were to the bit.
"""

from __future__ import annotations

import math
from typing import Any

import jax

from mogao_jax.config.schema import OptimizerConfig
from mogao_jax.models.modules import is_of_llm


def frozen_mask(params: Any, config: OptimizerConfig) -> Any:
    """True for the parameters that stay as they are.

    Args:
      params: boxed with logical names or not; real, abstract, or with holes (optax's MaskedNode).
    """

    def one(path: tuple[Any, ...], _: Any) -> bool:
        names = [str(k.key) for k in path if isinstance(k, jax.tree_util.DictKey)]
        return config.frozen == "llm" and is_of_llm(names)

    return jax.tree_util.tree_map_with_path(one, params)


def without_gradients(params: Any, config: OptimizerConfig) -> Any:
    """The same parameters, through which no gradient goes to the frozen ones."""
    if config.frozen == "nothing":
        return params
    mask = frozen_mask(params, config)
    return jax.tree.map(lambda p, m: jax.lax.stop_gradient(p) if m else p, params, mask)


def count_trained(params: Any, config: OptimizerConfig) -> int:
    """Numbers in the parameters that are trained (`params`: real or abstract)."""
    mask = frozen_mask(params, config)
    sizes = jax.tree.map(lambda p, m: 0 if m else math.prod(p.shape), params, mask)
    return sum(jax.tree.leaves(sizes))
