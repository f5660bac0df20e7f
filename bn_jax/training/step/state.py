"""The state of training: everything that a step changes."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree, Shaped

from bn_jax.training.step.loss_scale import LossScale, new_loss_scale


class Tally(NamedTuple):
    """Counts of a run.

    The tally is part of the state, so that an interrupted run reports the same metrics
    as a run without an interruption.

    Attributes:
        loss_sum: Sum of the losses of steps that were kept, since the last evaluation,
            in nats.
        num_losses: Number of these losses.
        num_steps: Steps since the last evaluation, skipped ones included.
        num_skipped: Steps skipped since the start of the run.
        skipped_in_a_row: Steps skipped since the last finite one.
        bad_value: Value that was not finite in the latest step: 0 for the loss, i for
            the i-th leaf that `first_nonfinite` lists, -1 if all are finite. It no
            longer changes once the run is over.
        is_over: 1 if too many steps in a row were not finite, otherwise 0. With 1,
            further steps change nothing.
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
        ema_params: Averaged parameters; empty if none are kept.
        key: Random key of the run, from which each step derives its own.
        tally: Counts of the run.
        collections: The model's other collections, by name. Training updates them too.
        loss_scale: Scale of the loss in float16; empty otherwise.
    """

    step: Int[Array, ""]
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    ema_params: PyTree
    key: Shaped[Array, ""]
    tally: Tally
    collections: dict[str, PyTree]
    loss_scale: LossScale | tuple[()] = ()

    @property
    def variables(self) -> dict[str, Any]:
        """Collections that `model.apply` takes."""
        return {
            "params": self.params,
            "batch_stats": self.batch_stats,
            **self.collections,
        }

    @property
    def networks(self) -> dict[str, dict[str, Any]]:
        """Variables to evaluate, by the prefix of their metrics' names.

        The prefix is empty for the parameters, and `ema_` for averaged parameters.
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
    scale_loss: bool = False,
) -> TrainState:
    """Returns the state before the first step.

    Args:
        model: Called as `model.apply(variables, x, train=...)`.
        tx: The optimizer.
        key: Random key for the initial parameters and for each step's key.
        example: Input with the shape and dtype of the model's inputs.
        keep_ema: True to keep averaged parameters.
        scale_loss: True to scale the loss, for activations in float16.
    """
    # A stream that the model asks for by another name falls back to `params` in Linen
    # and to `default` in NNX.
    rngs = {"params": key, "default": key}
    variables = nn.unbox(model.init(rngs, example, train=False))
    params = variables.get("params", {})
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=tx.init(params),
        # A copy, because a step's state is donated, and no buffer can be donated twice.
        ema_params=jax.tree.map(jnp.copy, params) if keep_ema else {},
        key=key,
        tally=new_tally(),
        collections={
            name: collection
            for name, collection in variables.items()
            if name not in ("params", "batch_stats") and not _is_sown(collection)
        },
        loss_scale=new_loss_scale() if scale_loss else (),
    )


def new_tally() -> Tally:
    """Returns the tally before the first step."""
    # Each field has its own array, because no buffer can be donated twice to a step.
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
    """Returns the tally with its losses reset for the next evaluation's mean.

    If the run is over, the tally is returned unchanged, because the run has not
    reached the evaluation.

    Args:
        tally: Tally at an evaluation.
    """
    kept = jnp.where(tally.is_over > 0, 1, 0)
    return tally._replace(
        loss_sum=tally.loss_sum * kept,
        num_losses=tally.num_losses * kept,
        num_steps=tally.num_steps * kept,
    )


def _is_sown(collection: PyTree) -> bool:
    """Returns True for values that layers sow, which are no state of the model.

    `Module.sow` keeps them in tuples that would grow with each step.
    """
    children = collection.values() if isinstance(collection, Mapping) else ()
    return isinstance(collection, tuple) or any(map(_is_sown, children))


def resume_tally(tally: Tally) -> Tally:
    """Returns the tally with which a run that was over can resume.

    Args:
        tally: Tally of the last good state.
    """
    return tally._replace(
        skipped_in_a_row=jnp.zeros_like(tally.skipped_in_a_row),
        bad_value=jnp.full_like(tally.bad_value, -1),
        is_over=jnp.zeros_like(tally.is_over),
    )
