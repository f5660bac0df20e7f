"""Steps of which anything is not finite: found, undone and counted."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from bn_jax.training.state import Tally, TrainState


def first_nonfinite(
    loss: Float[Array, ""], grads: PyTree, new: TrainState
) -> Int[Array, ""]:
    """Which leaf is not finite: 0 for the loss, and -1 where all are.

    Gradients come next, then what the step made of parameters, statistics and
    optimizer: finite gradients can still make weights that overflow.

    Args:
        loss: Loss of a step.
        grads: Gradients of a step.
        new: State after it.
    """
    leaves = jax.tree.leaves((loss, grads, [*_changed(new).values()]))
    # One pass over all leaves of a shape: one over each takes a tenth of the time that
    # a small network's step takes.
    finite: dict[tuple[int, ...], Array] = {}
    for leaf in leaves:
        also = finite.get(leaf.shape, jnp.ones((), bool))
        finite[leaf.shape] = jnp.isfinite(leaf) & also

    def which() -> Array:
        flags = jnp.stack([~jnp.all(jnp.isfinite(leaf)) for leaf in leaves])
        return jnp.argmax(flags).astype(jnp.int32)

    return jax.lax.cond(
        jnp.all(jnp.stack([jnp.all(together) for together in finite.values()])),
        lambda: jnp.full((), -1, jnp.int32),
        which,
    )


def name_of_value(index: int, state: TrainState) -> str:
    """What `first_nonfinite` has found, in words.

    Args:
        index: Its result.
        state: Any state of the run.
    """
    if index == 0:
        return "the loss"
    named = {"the gradient of": state.params, **_changed(state)}
    leaves = [
        f"{what} {jax.tree_util.keystr(path, simple=True, separator='/')}"
        for what, tree in named.items()
        for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]
    ]
    return leaves[index - 1]


def _changed(state: TrainState) -> dict[str, PyTree]:
    """What a step changes, by what it is called.

    Averaged parameters are finite where the parameters are.
    """
    return {
        "the parameter": state.params,
        "the statistic": state.batch_stats,
        "the optimizer's": state.opt_state,
    }


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
        num_steps=tally.num_steps + ~is_over,
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
