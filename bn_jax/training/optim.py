"""Optimizers by name."""

import inspect
from typing import Any

import optax

from bn_jax.errors import UserError


def make_optimizer(name: str, **fields: Any) -> optax.GradientTransformation:
    """An optimizer of Optax.

    Args:
        name: Name of the function in `optax`, such as "sgd" or "adam".
        **fields: Its arguments, such as `learning_rate`.

    Raises:
        UserError: If Optax has no optimizer of that name, or it no such argument.
    """
    factory = getattr(optax, name, None)
    if not inspect.isfunction(factory) or "learning_rate" not in _parameters(factory):
        raise UserError(
            f"optimizer.name: optax has no optimizer {name!r}; sgd, adam and adamw are "
            "some that it has."
        )
    unknown = set(fields) - _parameters(factory)
    if unknown:
        raise UserError(
            f"optimizer: optax.{name} has no argument {sorted(unknown)}; it has "
            f"{', '.join(sorted(_parameters(factory)))}."
        )
    return factory(**fields)


def _parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)
