"""Everything that training changes."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree, Shaped


class Tally(NamedTuple):
    """What has been counted while training.

    It is part of the state, so that a run that was interrupted anywhere reports the
    same figures as one that was not.

    Attributes:
        loss_sum: Sum of the finite losses since the last evaluation, in nats.
        num_losses: How many those are.
        num_steps: Steps since the last evaluation, undone ones among them.
        num_skipped: Steps since the first that were undone, because the loss or a
            gradient was not finite.
        skipped_in_a_row: How many of them were the latest.
        bad_value: What was not finite first in the latest of them: 0 for the loss, i
            for the i-th leaf of the gradients, -1 while all is well.
        is_over: Whether too many in a row were undone; further steps do nothing.
    """

    loss_sum: Float[Array, ""]
    num_losses: Int[Array, ""]
    num_steps: Int[Array, ""]
    num_skipped: Int[Array, ""]
    skipped_in_a_row: Int[Array, ""]
    bad_value: Int[Array, ""]
    is_over: Int[Array, ""]


class TrainState(NamedTuple):
    """State between two training steps.

    Attributes:
        step: Steps taken.
        params: Learned parameters.
        batch_stats: Running statistics; empty for a model without them.
        opt_state: State of the optimizer.
        ema_params: Moving average of the parameters; empty where none is kept.
        key: Key of the run, from which each step's is derived.
        tally: What has been counted.
    """

    step: Int[Array, ""]
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    ema_params: PyTree
    key: Shaped[Array, ""]
    tally: Tally

    @property
    def variables(self) -> dict[str, Any]:
        """The collections that `model.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def networks(self) -> dict[str, dict[str, Any]]:
        """The variables to evaluate, by what their metrics' names begin with.

        Those of the averaged parameters, where they are kept, are under `ema_`.
        """
        networks = {"": self.variables}
        if self.ema_params:
            networks["ema_"] = {**self.variables, "params": self.ema_params}
        return networks


def init_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    *,
    key: Shaped[Array, ""],
    example: Shaped[Array, "batch ..."],
    keep_ema: bool = False,
) -> TrainState:
    """The state before the first step.

    Args:
        model: Called as `model.apply(variables, x, train=...)`.
        tx: The optimizer.
        key: Key that the initial parameters are drawn from, and each step's key.
        example: Input of the shape and dtype that the model will be given.
        keep_ema: Whether a moving average of the parameters is kept.
    """
    variables = model.init(key, example, train=False)
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=tx.init(params),
        # A copy: what a step overwrites must not be given to it twice.
        ema_params=jax.tree.map(jnp.copy, params) if keep_ema else {},
        key=key,
        tally=new_tally(),
    )


def new_tally() -> Tally:
    """The tally before the first step."""
    # Each an array of its own: a step overwrites all of them.
    return Tally(
        loss_sum=jnp.zeros(()),
        num_losses=jnp.zeros((), jnp.int32),
        num_steps=jnp.zeros((), jnp.int32),
        num_skipped=jnp.zeros((), jnp.int32),
        skipped_in_a_row=jnp.zeros((), jnp.int32),
        bad_value=jnp.full((), -1, jnp.int32),
        is_over=jnp.zeros((), jnp.int32),
    )


def clear_losses(tally: Tally) -> Tally:
    """The tally from which the next evaluation's mean loss begins.

    One that is over has not come to that evaluation, and stays as it is.

    Args:
        tally: After an evaluation.
    """
    kept = jnp.where(tally.is_over > 0, 1, 0)
    return tally._replace(
        loss_sum=tally.loss_sum * kept,
        num_losses=tally.num_losses * kept,
        num_steps=tally.num_steps * kept,
    )


def resume_tally(tally: Tally) -> Tally:
    """The tally with which a run goes on after it was given up.

    Args:
        tally: At the last good state.
    """
    return tally._replace(
        skipped_in_a_row=jnp.zeros_like(tally.skipped_in_a_row),
        bad_value=jnp.full_like(tally.bad_value, -1),
        is_over=jnp.zeros_like(tally.is_over),
    )
