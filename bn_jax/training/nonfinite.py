"""Steps whose loss or gradient is not finite: found, undone and counted."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from bn_jax.training.state import Tally, TrainState


def first_nonfinite(loss: Float[Array, ""], grads: PyTree) -> Int[Array, ""]:
    """What is not finite: 0 for the loss, i for the i-th leaf of grads, -1 for none.

    Args:
        loss: Loss of a step.
        grads: Gradients of a step.
    """
    bad = [~jnp.all(jnp.isfinite(x)) for x in (loss, *jax.tree.leaves(grads))]
    flags = jnp.stack(bad)
    return jnp.where(jnp.any(flags), jnp.argmax(flags), -1).astype(jnp.int32)


def name_of_value(index: int, params: PyTree) -> str:
    """What `first_nonfinite` has found, in words.

    Args:
        index: Its result.
        params: Parameters, or anything else of the gradients' structure.

    >>> name_of_value(2, {"dense": {"bias": 0.0, "kernel": 0.0}})
    'the gradient of dense/kernel'
    """
    if index == 0:
        return "the loss"
    path, _ = jax.tree_util.tree_flatten_with_path(params)[0][index - 1]
    return f"the gradient of {jax.tree_util.keystr(path, simple=True, separator='/')}"


def undo_nonfinite(
    old: TrainState,
    new: TrainState,
    *,
    loss: Float[Array, ""],
    bad_value: Int[Array, ""],
    limit: int,
) -> TrainState:
    """The new state; or the old one, one step on, where something was not finite.

    Parameters, statistics, optimizer and average go back together. The last step of
    `limit` such steps in a row leaves the state as it was before it, and so do all
    steps that follow.

    Args:
        old: State before the step.
        new: State after it, with the old tally.
        loss: Loss of the step.
        bad_value: What `first_nonfinite` returns.
        limit: Steps in a row that are not finite until the run is over.
    """
    tally = old.tally
    is_good = bad_value < 0
    in_a_row = jnp.where(is_good, 0, tally.skipped_in_a_row + 1)
    is_over = (tally.is_over > 0) | (in_a_row >= limit)
    keeps = is_good & ~is_over

    def choose(new: Any, old: Any) -> Array:
        return jnp.where(keeps, new, old)

    after = Tally(
        loss_sum=tally.loss_sum + jnp.where(keeps, loss, 0),
        num_losses=tally.num_losses + keeps,
        num_skipped=tally.num_skipped + ~(keeps | is_over),
        skipped_in_a_row=jnp.where(is_over, tally.skipped_in_a_row, in_a_row),
        bad_value=jnp.where(tally.is_over > 0, tally.bad_value, bad_value),
        is_over=is_over.astype(jnp.int32),
    )
    return TrainState(
        step=old.step + ~is_over,
        params=jax.tree.map(choose, new.params, old.params),
        batch_stats=jax.tree.map(choose, new.batch_stats, old.batch_stats),
        opt_state=jax.tree.map(choose, new.opt_state, old.opt_state),
        ema_params=jax.tree.map(choose, new.ema_params, old.ema_params),
        key=old.key,
        tally=after,
    )
