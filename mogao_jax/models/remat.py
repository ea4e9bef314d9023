"""What a layer keeps for its backward pass, by name; the rest is computed once more.

none            everything that the backward pass reads
keep_matmuls    the outputs of all projections and of attention: no matmul is run again, only
                norms, rotations and activations
keep_attention  attention's output and the logarithms of its softmax's sums: projections are
                run again, attention's forward pass (kernel or loop) is not
full            the layer's input alone: everything is run again
"""

from __future__ import annotations

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

_PROJECTION, _ATTENTION = "projection", "attention_out"  # the latter named in ops/attention
_KEPT: dict[str, tuple[str, ...]] = {
    "keep_matmuls": (_PROJECTION, _ATTENTION),
    "keep_attention": (_ATTENTION,),
    "full": (),
}


def projection(x: jax.Array) -> jax.Array:
    """Marks the output of a matmul with weights (rotated, for queries and keys)."""
    return checkpoint_name(x, _PROJECTION)


def rematerialised(module: type[nn.Module], policy: str, *, in_scan: bool) -> type[nn.Module]:
    """The module class under one of the policies above.

    Args:
      in_scan: it is the body of a loop over layers, where XLA cannot undo recomputation.
    Raises:
      ValueError: for an unknown policy.
    """
    if policy == "none":
        return module
    if policy not in _KEPT:
        raise ValueError(f"unknown remat policy {policy!r}: none, {', '.join(_KEPT)}")
    kept = _KEPT[policy]
    save = jax.checkpoint_policies.save_only_these_names(*kept) if kept else None
    return nn.remat(module, policy=save, prevent_cse=not in_scan)
