"""Optimizers of Optax, looked up by name, with weight decay and gradient clipping."""

import inspect
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from bn_jax.errors import UserError

# Optax's optimizers select the parameters that decay by an argument of these names.
_MASK_NAMES = ("mask", "weight_decay_mask")


def make_optimizer(
    name: str,
    *,
    learning_rate: float | optax.Schedule,
    weight_decay: float,
    decay_scale_and_bias: bool,
    clip_norm: float | None,
    **fields: Any,
) -> optax.GradientTransformation:
    """Returns an optimizer of Optax, with weight decay and gradient clipping.

    Weight decay is the optimizer's own if it can be limited to some parameters: adamw,
    adamaxw, adan, lamb, lion, adadelta and lars. Most of them subtract
    `learning_rate * weight_decay * w` from each parameter, apart from the gradient
    (decoupled). Other optimizers, such as sgd and adam, receive the gradient of
    `weight_decay / 2 * |w|^2` added to that of the loss (L2 regularization), so that
    it goes through their momentum and scaling. Clipping comes before the decay.

    The optimizer must compute its updates from gradients and parameters alone, and
    accept a learning rate that changes. This excludes lbfgs, which needs the loss, and
    sm3 and rprop, whose learning rate is a fixed number.

    Args:
        name: Name of the function in `optax`, such as "sgd" or "adam".
        learning_rate: A number, or a schedule that gives the rate of each step.
        weight_decay: Factor of the decay, at least 0; 0.0 for none.
        decay_scale_and_bias: True if parameters called `scale` or `bias` decay too.
            Decay of weights before a normalization changes only their effective
            learning rate; decay of its scale and bias changes the model.
        clip_norm: Largest norm of all gradients together; longer gradients are scaled
            down to it. None for no limit.
        **fields: Other arguments of the function; None for the function's default.

    Raises:
        UserError: If Optax has no optimizer of that name; if the optimizer lacks an
            argument or is excluded; or if `weight_decay` or `clip_norm` is out of
            range.
    """
    factory = _find_optimizer(name)
    known = _parameters(factory)
    fields = {field: value for field, value in fields.items() if value is not None}
    unknown = set(fields) - known
    if unknown:
        raise UserError(
            f"optimizer: optax.{name} has no argument {sorted(unknown)}; it has "
            f"{', '.join(sorted(known))}. None leaves an argument out."
        )
    masks = [mask for mask in _MASK_NAMES if {mask, "weight_decay"} <= known]
    if set(masks) & set(fields):
        raise UserError(
            f"optimizer.{masks[0]}: optimizer.decay_scale_and_bias selects the "
            "parameters that decay; set that instead."
        )
    _check_ranges(weight_decay, clip_norm)

    mask = None if decay_scale_and_bias else decay_mask
    transforms = []
    if clip_norm is not None:
        transforms.append(optax.clip_by_global_norm(clip_norm))
    if masks:
        # Passed even if it is 0, because some defaults are not 0.
        fields["weight_decay"] = weight_decay
        if weight_decay:
            fields[masks[0]] = mask
    elif weight_decay:
        transforms.append(optax.add_decayed_weights(weight_decay, mask))
    try:
        optimizer = factory(learning_rate=learning_rate, **fields)
        _trace_update(optimizer)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"optimizer.name: optax.{name} cannot be used with these settings "
            f"({error}). It must compute its updates from gradients and parameters "
            "alone and accept a learning rate that changes, as sgd, adam and adamw do."
        ) from error
    return optax.chain(*transforms, optimizer) if transforms else optimizer


def decay_mask(params: PyTree) -> PyTree:
    """Returns True for each parameter that decays: all but scales and biases.

    Args:
        params: Parameters; the last key of a parameter's path is its name.

    Returns:
        Tree of booleans, with the structure of `params`.

    >>> decay_mask({"hidden0": {"kernel": 1.0, "bias": 0.0}, "norm0": {"scale": 1.0}})
    {'hidden0': {'bias': False, 'kernel': True}, 'norm0': {'scale': False}}
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: (
            jax.tree_util.keystr(path[-1:], simple=True) not in ("scale", "bias")
        ),
        params,
    )


def _find_optimizer(name: str) -> Any:
    factory: Any = getattr(optax, name, None)
    # Some optimizers, such as nadam, are a `partial` of another one.
    is_function = inspect.isfunction(factory) or isinstance(factory, partial)
    if not is_function or "learning_rate" not in _parameters(factory):
        raise UserError(
            f"optimizer.name: optax has no optimizer {name!r}; sgd, adam and adamw are "
            "examples."
        )
    return factory


def _check_ranges(weight_decay: float, clip_norm: float | None) -> None:
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise UserError(
            "optimizer.weight_decay must be a finite number of at least 0 (0 for "
            f"none), but is {weight_decay}."
        )
    if clip_norm is not None and not (math.isfinite(clip_norm) and clip_norm > 0):
        raise UserError(
            "optimizer.clip_norm must be a finite number above 0, or None for no "
            f"clipping, but is {clip_norm}."
        )


def _trace_update(optimizer: optax.GradientTransformation) -> None:
    """Traces one update of a small parameter, to raise what the optimizer raises."""

    def step(params: PyTree) -> PyTree:
        return optimizer.update(params, optimizer.init(params), params)

    jax.eval_shape(step, {"kernel": jax.ShapeDtypeStruct((1, 1), jnp.float32)})


def _parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)
