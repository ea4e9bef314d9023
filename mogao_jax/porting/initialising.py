"""What no file holds: the connectors, AdaLN and the heads, as training initialises them.

Made one array at a time. All of it comes from the model's own initialiser with the run's key, so
that a parameter which is not ported starts exactly as it would in a run from nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from mogao_jax.config.schema import MogaoConfig
from mogao_jax.models.layers import fan_in
from mogao_jax.models.modules import init_params, make_model
from mogao_jax.porting.param_specs import ParamSpec, is_stacked
from mogao_jax.sharding import rules

_LARGE_BYTES = 256 * 2**20


class Initialiser:
    """Values of the leaves of a model that has not been trained.

    `config.porting` says what differs from training from nothing.
    """

    def __init__(self, config: MogaoConfig, shapes: Any, key: jax.Array):
        """
        Args:
          shapes: of the parameter tree (`models.modules.param_shapes`).
          key: of the model's initialiser; training uses `jax.random.key(config.seed)`.
        """
        self._config, self._key = config, key
        self._shapes = traverse_util.flatten_dict(shapes, sep=".")

    def leaves(self, names: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
        """(name, value) of leaves by their dotted paths, whole, in their own dtypes.

        Small ones are made together, large ones alone: each takes a compilation.
        """
        together: list[str] = []
        for name in names:
            x = self._shapes[name]
            if x.size * x.dtype.itemsize < _LARGE_BYTES:
                together.append(name)
            else:
                yield name, self._varied(name, self._large(name, x))
        made = self._made(self._config, together) if together else {}
        for name, value in made.items():
            yield name, self._varied(name, value)

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
        if is_stacked(name):
            one = dataclasses.replace(self._config.model, num_layers=1)
            first = self._made(dataclasses.replace(self._config, model=one), [name])[name]
            if (first == first.flat[0]).all():
                return np.broadcast_to(first.flat[0], shape.shape)
        return self._made(self._config, [name])[name]

    def rows(self, slot: ParamSpec, start: int, stop: int, spread: float) -> np.ndarray:
        """Rows of a table that is longer than the file's: normal, of the given deviation."""
        key = jax.random.fold_in(self._key, start)
        shape = (stop - start, *slot.shape[1:])
        return np.asarray(spread * jax.random.normal(key, shape, jnp.float32)).astype(slot.dtype)

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


def unflatten(leaves: dict[str, Any]) -> dict[str, Any]:
    """Nested dicts of dotted paths."""
    return traverse_util.unflatten_dict(leaves, sep=".")
