"""Everything that training changes."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree, Shaped


class TrainState(NamedTuple):
    """State between two training steps.

    Attributes:
        step: Steps taken.
        params: Learned parameters.
        batch_stats: Running statistics; empty for a model without them.
        opt_state: State of the optimizer.
    """

    step: Int[Array, ""]
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree

    @property
    def variables(self) -> dict[str, Any]:
        """The collections that `model.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def init_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    *,
    key: Shaped[Array, ""],
    example: Shaped[Array, "batch ..."],
) -> TrainState:
    """The state before the first step.

    Args:
        model: Called as `model.apply(variables, x, train=...)`.
        tx: The optimizer.
        key: Key that the initial parameters are drawn from.
        example: Input of the shape and dtype that the model will be given.
    """
    variables = model.init(key, example, train=False)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=tx.init(variables["params"]),
    )
