"""Optimizers by name, with weight decay and clipped gradients."""

import inspect
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from bn_jax.errors import UserError

# What Optax's optimizers call the tree of booleans that says which leaves decay.
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
    """An optimizer of Optax.

    Weight decay is the optimizer's own where it has one with a choice of leaves:
    adamw, adamaxw, adan, lamb, lion, adadelta and lars, most of which take
    `learning_rate * weight_decay * w` off each parameter, apart from the gradient
    (decoupled). The others, such as sgd and adam, get the gradient of
    `weight_decay / 2 * |w|^2` added to theirs (L2 regularization), momentum and
    scaling included. Gradients are clipped before either.

    Any of Optax's will do whose steps follow from gradients and parameters, and whose
    rate may change; lbfgs, which asks for the loss as well, and sm3 and rprop, whose
    rate is a number, are refused.

    Args:
        name: Name of the function in `optax`, such as "sgd" or "adam".
        learning_rate: A number, or the rate of each step.
        weight_decay: As above; 0.0 for none.
        decay_scale_and_bias: Whether parameters called `scale` or `bias` decay too.
            Decay of what precedes a normalization changes its learning rate only;
            decay of the scale and the bias changes the model.
        clip_norm: Largest norm of all gradients together; what is longer is scaled
            down to it. None for any.
        **fields: Other arguments of the function; None for its own default.

    Raises:
        UserError: If Optax has no optimizer of that name, or it no such argument; if
            it is refused; or if weight decay or norm lie outside their range.
    """
    factory: Any = getattr(optax, name, None)
    # Some, such as nadam, are others with an argument given.
    is_function = inspect.isfunction(factory) or isinstance(factory, partial)
    if not is_function or "learning_rate" not in _parameters(factory):
        raise UserError(
            f"optimizer.name: optax has no optimizer {name!r}; sgd, adam and adamw are "
            "some that it has."
        )
    known = _parameters(factory)
    fields = {field: value for field, value in fields.items() if value is not None}
    unknown = set(fields) - known
    if unknown:
        raise UserError(
            f"optimizer: optax.{name} has no argument {sorted(unknown)}; it has "
            f"{', '.join(sorted(known))}. None leaves one out."
        )
    masks = [mask for mask in _MASK_NAMES if {mask, "weight_decay"} <= known]
    if set(masks) & set(fields):
        raise UserError(
            f"optimizer.{masks[0]}: which parameters decay is chosen by "
            "optimizer.decay_scale_and_bias; set that in its place."
        )
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise UserError(
            "optimizer.weight_decay must be a finite number of at least 0 (0 for "
            f"none), and is {weight_decay}."
        )
    if clip_norm is not None and not (math.isfinite(clip_norm) and clip_norm > 0):
        raise UserError(
            "optimizer.clip_norm must be a finite number above 0, or None for no "
            f"clipping, and is {clip_norm}."
        )

    mask = None if decay_scale_and_bias else decay_mask
    transforms = []
    if clip_norm is not None:
        transforms.append(optax.clip_by_global_norm(clip_norm))
    if masks:
        # Also where it is 0: the default of some is not.
        fields["weight_decay"] = weight_decay
        if weight_decay:
            fields[masks[0]] = mask
    elif weight_decay:
        transforms.append(optax.add_decayed_weights(weight_decay, mask))
    try:
        optimizer = factory(learning_rate=learning_rate, **fields)
        _try(optimizer)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"optimizer.name: optax.{name} cannot be used with these settings "
            f"({error}). It must make its steps of gradients and parameters alone, and "
            "take a learning rate that changes, as sgd, adam and adamw do."
        ) from error
    return optax.chain(*transforms, optimizer) if transforms else optimizer


def decay_mask(params: PyTree) -> PyTree:
    """True for the parameters that weight decay is for: all but scales and biases.

    Args:
        params: Parameters; the name of each is the last key on the way to it.

    Returns:
        The same tree of booleans.

    >>> decay_mask({"hidden0": {"kernel": 1.0, "bias": 0.0}, "norm0": {"scale": 1.0}})
    {'hidden0': {'bias': False, 'kernel': True}, 'norm0': {'scale': False}}
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: (
            jax.tree_util.keystr(path[-1:], simple=True) not in ("scale", "bias")
        ),
        params,
    )


def _try(optimizer: optax.GradientTransformation) -> None:
    """Takes a step of one parameter, abstractly; raises what the optimizer raises."""

    def step(params: PyTree) -> PyTree:
        return optimizer.update(params, optimizer.init(params), params)

    jax.eval_shape(step, {"kernel": jax.ShapeDtypeStruct((1, 1), jnp.float32)})


def _parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)
