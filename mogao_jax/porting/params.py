"""Our parameters by names that do not depend on how layers are kept, and their initial values.

With `model.scan_layers` one leaf holds a parameter of all layers, [layers, ...]; without, each
layer has its own. Key tables name neither, but the parameter: "layers.3.und.query.kernel".
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from mogao_jax.config.schema import MogaoConfig
from mogao_jax.key_tables import Shape
from mogao_jax.models.layers import fan_in
from mogao_jax.models.modules import init_params, make_model
from mogao_jax.sharding import rules

_STACK = "layers.block."
LARGE_BYTES = 256 * 2**20  # leaves of this size are initialised alone


class ParamSpec(NamedTuple):
    """Where a parameter of one layer lies."""

    leaf: str  # the dotted path of the array that holds it
    layer: int | None  # its place on that array's first axis; None: it is the whole array
    shape: Shape  # of the parameter itself
    dtype: str  # by numpy's name


def param_specs(shapes: Any) -> dict[str, ParamSpec]:
    """Name -> spec of every parameter of a tree, in nested dicts or by dotted paths.

    Its leaves are whatever has .shape and .dtype (`models.modules.param_shapes`).
    """
    specs: dict[str, ParamSpec] = {}
    for leaf, x in traverse_util.flatten_dict(shapes, sep=".").items():
        shape, dtype = tuple(x.shape), str(x.dtype)
        if leaf.startswith(_STACK):
            rest = leaf.removeprefix(_STACK)
            for i in range(shape[0]):
                specs[f"layers.{i}.{rest}"] = ParamSpec(leaf, i, shape[1:], dtype)
        else:
            name = re.sub(r"^layers_([0-9]+)\.", r"layers.\1.", leaf)
            specs[name] = ParamSpec(leaf, None, shape, dtype)
    return specs


def shapes_of(specs: Mapping[str, ParamSpec]) -> dict[str, Shape]:
    """Name -> shape."""
    return {name: spec.shape for name, spec in specs.items()}


def leaf_shapes(specs: Mapping[str, ParamSpec]) -> dict[str, tuple[Shape, np.dtype]]:
    """Leaf -> (shape, dtype) of the arrays that parameters lie in."""
    leaves: dict[str, tuple[Shape, np.dtype]] = {}
    for spec in specs.values():  # a stack's last layer comes last
        stack = () if spec.layer is None else (spec.layer + 1,)
        leaves[spec.leaf] = ((*stack, *spec.shape), jnp.dtype(spec.dtype))
    return leaves


class Initialiser:
    """Initial values of leaves that no file fills: the connectors, AdaLN and the heads.

    All of it comes from the model's own initialiser with the run's key, one array at a time, so
    that a parameter which is not ported starts exactly as it would in a run from nothing;
    `config.porting` says what differs.
    """

    def __init__(self, config: MogaoConfig, shapes: Any, key: jax.Array):
        """`shapes`: of the parameter tree; `key`: in training, `jax.random.key(config.seed)`."""
        self._config, self._key = config, key
        self._shapes = traverse_util.flatten_dict(shapes, sep=".")

    def leaves(self, names: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
        """(name, value) of leaves by their dotted paths, whole, in their own dtypes.

        Small ones are made together, large ones alone: each takes a compilation.
        """
        together: list[str] = []
        for name in names:
            x = self._shapes[name]
            if x.size * x.dtype.itemsize < LARGE_BYTES:
                together.append(name)
            else:
                yield name, self._varied(name, self._large(name, x))
        if together:
            for name, value in self._made(self._config, together).items():
                yield name, self._varied(name, value)

    def rows(self, spec: ParamSpec, start: int, stop: int, spread: float) -> np.ndarray:
        """Rows of a table that is longer than the file's: normal, of the given deviation."""
        key = jax.random.fold_in(self._key, start)
        shape = (stop - start, *spec.shape[1:])
        return np.asarray(spread * jax.random.normal(key, shape, jnp.float32)).astype(spec.dtype)

    def _made(self, config: MogaoConfig, names: Sequence[str]) -> dict[str, np.ndarray]:
        model = make_model(config, self._shapes["token_embedding"].shape[0])

        # The rest of the model is traced, found unused and left out by the compiler.
        def only(key: jax.Array) -> dict[str, jax.Array]:
            params = rules.unbox(init_params(config, model, key))
            flat = traverse_util.flatten_dict(params, sep=".")
            return {name: flat[name] for name in names}

        return {name: np.asarray(x) for name, x in jax.jit(only)(self._key).items()}

    def _large(self, name: str, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        """A stack whose first layer is one constant (AdaLN's zeros) takes no memory at all."""
        if name.startswith(_STACK):
            one = dataclasses.replace(self._config.model, num_layers=1)
            first = self._made(dataclasses.replace(self._config, model=one), [name])[name]
            if (first == first.flat[0]).all():
                return np.broadcast_to(first.flat[0], shape.shape)
        return self._made(self._config, [name])[name]

    def _varied(self, name: str, value: np.ndarray) -> np.ndarray:
        porting = self._config.porting
        if porting.adaln == "open" and name.endswith("adaln.bias") and "final" not in name:
            # Six vectors: shift, scale, gate of attention, then of the FFN. Gates of one.
            value = value.copy()
            width = value.shape[-1] // 6
            for gate in (2, 5):
                value[..., gate * width : (gate + 1) * width] = 1
        if porting.velocity_head == "fresh" and name == "velocity_head.out.kernel":
            key = jax.random.fold_in(self._key, 1)
            value = np.asarray(fan_in(key, value.shape, jnp.float32)).astype(value.dtype)
        return value
