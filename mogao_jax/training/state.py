"""TrainState: everything on the devices that a step reads and writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from mogao_jax.sharding import rules
from mogao_jax.training import optimizer as optim


class TrainState(NamedTuple):
    """A pytree.

    Attributes:
      step: int32[], optimizer steps done.
      params: trainable parameters.
      opt_state: of the optimizer.
      ema_params: float32 moving average of params, or None.
    """

    step: Any
    params: Any
    opt_state: Any
    ema_params: Any = None

    @classmethod
    def create(
        cls, params: Any, transform: optax.GradientTransformation, ema_decay: float = 0.0
    ) -> TrainState:
        """The state at step 0 (`ema_decay` 0: no average). Works on boxed parameters too."""
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=transform.init(params),
            ema_params=optim.init_ema(params) if ema_decay else None,
        )

    def apply_gradients(
        self,
        grads: Any,
        transform: optax.GradientTransformationExtraArgs,
        *,
        learning_rate: Any,
        ema_decay: float = 0.0,
    ) -> TrainState:
        """One optimizer step. `learning_rate`: float32[] of this step."""
        updates, opt_state = transform.update(
            grads, self.opt_state, self.params, learning_rate=learning_rate
        )
        params = optax.apply_updates(self.params, updates)
        ema = self.ema_params
        if ema is not None:
            ema = optim.update_ema(ema, params, ema_decay, self.step)
        return TrainState(self.step + 1, params, opt_state, ema)


def abstract_state(
    init_params: Callable[[], Any],
    transform: optax.GradientTransformation,
    mesh: Mesh,
    ema_decay: float = 0.0,
    param_axes: tuple[str, ...] = rules.FSDP,
) -> TrainState:
    """Shapes, dtypes and shardings of the state, nothing computed.

    Optimizer moments and the average are sharded like the parameters they belong to.

    Args:
      init_params: () -> parameters, boxed with logical names or not; only traced.
      param_axes: mesh axes that they are sharded over, as config `mesh.param_axes` says.
    Returns:
      A TrainState of ShapeDtypeStructs with shardings, unboxed.
    """
    boxed = jax.eval_shape(lambda: TrainState.create(init_params(), transform, ema_decay))
    shardings = rules.tree_shardings(boxed, mesh, param_axes)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        rules.unbox(boxed),
        shardings,
    )


def shardings_of(abstract: Any) -> Any:
    """The shardings of an abstract (or real) tree."""
    return jax.tree.map(lambda x: x.sharding, abstract)


def init_state(
    init_params: Callable[[], Any], abstract: TrainState, transform: optax.GradientTransformation
) -> TrainState:
    """The state at step 0, made in place: no device ever holds more than its own part.

    Args:
      init_params: () -> parameters, boxed or not.
      abstract: of `abstract_state`.
    """
    ema_decay = 0.0 if abstract.ema_params is None else 1.0

    def make():
        return rules.unbox(TrainState.create(init_params(), transform, ema_decay))

    return jax.jit(make, out_shardings=shardings_of(abstract))()


def state_from(
    params: Any, abstract: TrainState, transform: optax.GradientTransformation
) -> TrainState:
    """The state at step 0 with given parameters, which are donated; the average is their copy.

    Args:
      params: unboxed, with the shapes, dtypes and shardings of `abstract.params`.
      abstract: of `abstract_state`.
    """
    ema_decay = 0.0 if abstract.ema_params is None else 1.0

    def make(params):
        return TrainState.create(params, transform, ema_decay)

    return jax.jit(make, out_shardings=shardings_of(abstract), donate_argnums=0)(params)


def num_bytes(tree: Any) -> int:
    """Bytes of all arrays of a tree (abstract or real), over all devices together."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
