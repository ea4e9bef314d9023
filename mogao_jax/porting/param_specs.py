"""Our parameters under names that do not depend on how layers are kept.

With `model.scan_layers` one leaf holds a parameter of all layers, [layers, ...]; without, each
layer has its own. Tables name neither, but slots: "layers.3.und.query.kernel".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from flax import traverse_util

from mogao_jax.porting.transforms import Shape

_STACK = "layers.block."
_LAYER = re.compile(r"layers_([0-9]+)\.(.+)")


class ParamSpec(NamedTuple):
    """Where a parameter of one layer lies.

    Attributes:
      leaf: the dotted path of the array that holds it.
      layer: its place on that array's first axis; None: it is the whole array.
      shape: of the parameter itself.
      dtype: by numpy's name.
    """

    leaf: str
    layer: int | None
    shape: Shape
    dtype: str


def slots(shapes: Any) -> dict[str, ParamSpec]:
    """Slots of a parameter tree.

    Args:
      shapes: nested dicts of whatever has .shape and .dtype (`models.modules.param_shapes`).
    """
    found: dict[str, ParamSpec] = {}
    for leaf, x in traverse_util.flatten_dict(shapes, sep=".").items():
        shape, dtype = tuple(x.shape), str(x.dtype)
        layer = _LAYER.fullmatch(leaf)
        if is_stacked(leaf):
            rest = leaf.removeprefix(_STACK)
            for i in range(shape[0]):
                found[f"layers.{i}.{rest}"] = ParamSpec(leaf, i, shape[1:], dtype)
        elif layer:
            found[f"layers.{int(layer[1])}.{layer[2]}"] = ParamSpec(leaf, None, shape, dtype)
        else:
            found[leaf] = ParamSpec(leaf, None, shape, dtype)
    return found


def is_stacked(leaf: str) -> bool:
    """Whether a leaf holds a parameter of all layers."""
    return leaf.startswith(_STACK)


def shapes_of(found: Mapping[str, ParamSpec]) -> dict[str, Shape]:
    """Name -> shape."""
    return {name: slot.shape for name, slot in found.items()}
