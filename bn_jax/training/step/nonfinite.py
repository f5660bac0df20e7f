"""Non-finite steps: found, undone and counted."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from bn_jax.stats.collections import leaves_by_path
from bn_jax.training.step.loss_scale import is_overflow, next_loss_scale
from bn_jax.training.step.state import Tally, TrainState


def first_nonfinite(
    loss: Float[Array, ""], grads: PyTree, new: TrainState
) -> Int[Array, ""]:
    """Returns the index of the first value that is not finite; -1 if all are finite.

    Index 0 is the loss. The leaves of the gradients follow, then those of the
    parameters, the statistics, the optimizer and the model's other collections after
    the step, because finite gradients can still make weights that overflow.

    Args:
        loss: Loss of a step.
        grads: Gradients of the step.
        new: State after the step.
    """
    leaves = jax.tree.leaves((loss, grads, [*_changed(new).values()]))
    # One reduction for all leaves of one shape. One for each leaf would take a tenth of
    # the time of a small network's step.
    finite: dict[tuple[int, ...], Array] = {}
    for leaf in leaves:
        others = finite.get(leaf.shape, jnp.ones((), bool))
        finite[leaf.shape] = jnp.isfinite(leaf) & others

    def find_first() -> Array:
        flags = jnp.stack([~jnp.all(jnp.isfinite(leaf)) for leaf in leaves])
        return jnp.argmax(flags).astype(jnp.int32)

    return jax.lax.cond(
        jnp.all(jnp.stack([jnp.all(flags) for flags in finite.values()])),
        lambda: jnp.full((), -1, jnp.int32),
        find_first,
    )


def name_of_value(index: int, state: TrainState) -> str:
    """Returns the name of the value that `first_nonfinite` has found, for a message.

    Args:
        index: Result of `first_nonfinite`, at least 0.
        state: Any state of the run; it gives the names.
    """
    if index == 0:
        return "the loss"
    named = {"the gradient of": state.params, **_changed(state)}
    leaves = [
        f"{what} {path}"
        for what, tree in named.items()
        for path in leaves_by_path(tree)
    ]
    return leaves[index - 1]


def _changed(state: TrainState) -> dict[str, PyTree]:
    """Returns the parts of the state that a step changes, by their names in messages.

    Averaged parameters are left out: they are finite if the parameters are.
    """
    return {
        "the parameter": state.params,
        "the statistic": state.batch_stats,
        "the optimizer's": state.opt_state,
        "the variable": state.collections,
    }


def undo_nonfinite(
    old: TrainState,
    new: TrainState,
    *,
    loss: Float[Array, ""],
    bad_value: Int[Array, ""],
    limit: int,
) -> TrainState:
    """Returns the new state, or the old one if a value of the step is not finite.

    A skipped step undoes parameters, statistics, optimizer and averaged parameters
    together, but still increases `step`. The run ends after `limit` non-finite steps in
    a row. The step that ends the run, and each step after it, changes nothing but the
    tally, not even `step`.

    A scaled loss makes gradients overflow now and then. Such a step is skipped too,
    whatever the limit; a smaller scale follows. It is not one of the steps in a row.

    Args:
        old: State before the step.
        new: State after the step, with the tally of `old`.
        loss: Loss of the step.
        bad_value: Result of `first_nonfinite`.
        limit: Number of non-finite steps in a row after which the run is over.
    """
    tally = old.tally
    is_good = bad_value < 0
    scale = old.loss_scale
    counts = ~is_overflow(scale, bad_value) if scale else 1
    in_a_row = jnp.where(is_good, 0, tally.skipped_in_a_row + counts)
    is_over = (tally.is_over > 0) | (in_a_row >= limit)
    is_kept = is_good & ~is_over

    def choose(new: Any, old: Any) -> Array:
        return jnp.where(is_kept, new, old)

    if scale:
        new_scale = next_loss_scale(scale, is_finite=is_good)
        scale = jax.tree.map(partial(jnp.where, is_over), scale, new_scale)
    after = Tally(
        loss_sum=tally.loss_sum + jnp.where(is_kept, loss, 0),
        num_losses=tally.num_losses + is_kept,
        num_steps=tally.num_steps + ~is_over,
        num_skipped=tally.num_skipped + ~(is_kept | is_over),
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
        collections=jax.tree.map(choose, new.collections, old.collections),
        loss_scale=scale,
    )
