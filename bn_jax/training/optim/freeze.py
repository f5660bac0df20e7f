"""Parameters that training leaves as they are."""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import optax
from jaxtyping import PyTree

from bn_jax.errors import UserError
from bn_jax.stats.collections import layers_with_statistics, leaves_by_path
from bn_jax.stats.norm_mask import norm_mask


def frozen_parameters(
    variables: Mapping[str, Any], *, patterns: Sequence[str], freezes_norms: bool
) -> PyTree:
    """Returns True for each parameter that training leaves as it is.

    Args:
        variables: Variables of the model, or their shapes.
        patterns: Regular expressions that are searched in the path of a parameter,
            such as "hidden0/kernel".
        freezes_norms: True to choose scale and bias of each BatchNorm layer as well.

    Returns:
        Tree of booleans, with the structure of the parameters.

    Raises:
        UserError: If a pattern is not a regular expression or fits no parameter, the
            model has no BatchNorm layer to freeze, or nothing is left to train.
    """
    params, batch_stats = variables["params"], variables["batch_stats"]
    if freezes_norms and not any(layers_with_statistics(batch_stats)):
        raise UserError(
            "config.norm.frozen=True needs a model with BatchNorm layers, but this one "
            "has no running mean and variance. Set config.norm.frozen=False."
        )
    paths = list(leaves_by_path(params))
    chosen = {path for one in patterns for path in _matching(one, paths)}
    norms = jax.tree.leaves(norm_mask(params, batch_stats))
    is_frozen = [
        path in chosen or (is_norm and freezes_norms)
        for path, is_norm in zip(paths, norms, strict=True)
    ]
    if all(is_frozen):
        raise UserError(
            f"config.optimizer.freeze={tuple(patterns)} and config.norm.frozen="
            f"{freezes_norms} freeze all {len(paths)} parameters, so that nothing is "
            "left to train. Freeze fewer of them."
        )
    return jax.tree.unflatten(jax.tree.structure(params), is_frozen)


def leave_alone(
    tx: optax.GradientTransformation, is_frozen: PyTree
) -> optax.GradientTransformation:
    """Returns an optimizer that does not see some parameters, nor their gradients.

    Neither weight decay nor momentum changes them, and a largest norm of the gradient
    does not count them.

    Args:
        tx: Optimizer of the other parameters.
        is_frozen: True for each parameter that stays as it is.
    """
    groups = jax.tree.map(lambda one: "frozen" if one else "trained", is_frozen)
    return optax.multi_transform({"trained": tx, "frozen": optax.set_to_zero()}, groups)


def stop_gradients(is_frozen: PyTree | None, params: PyTree) -> PyTree:
    """Returns the parameters, with those that are not trained as constants.

    JAX then computes no gradients below the last layer that is trained.

    Args:
        is_frozen: True for each parameter that stays as it is; None for none.
        params: Parameters.
    """
    if is_frozen is None:
        return params
    return jax.tree.map(
        lambda leaf, stays: jax.lax.stop_gradient(leaf) if stays else leaf,
        params,
        is_frozen,
    )


def _matching(pattern: str, paths: Sequence[str]) -> list[str]:
    who = f"config.optimizer.freeze: {pattern!r}"
    try:
        found = [path for path in paths if re.search(pattern, path)]
    except re.error as error:
        raise UserError(f"{who} must be a regular expression ({error}).") from error
    if not found:
        near = difflib.get_close_matches(pattern, paths, n=3, cutoff=0.3)
        raise UserError(
            f"{who} must fit the path of a parameter, but fits none; there are "
            f"{', '.join(near or paths[:3])}{' and others' if len(paths) > 3 else ''}."
        )
    return found
