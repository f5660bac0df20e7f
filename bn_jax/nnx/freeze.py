"""Freezing of the BatchNorm layers in any NNX model."""

from typing import Any

from flax import nnx

from bn_jax.layers.fixed import batch_norms, fix
from bn_jax.layers.frozen import compile_match


class FrozenParam(nnx.BatchStat):
    """Variable type of a frozen layer's scale and bias, which are not learned.

    An optimizer and a gradient of `nnx.Param` leave it out. `nnx.split(model,
    nnx.Param, nnx.BatchStat)` puts it beside the running statistics.
    """


def freeze(model: nnx.Module, match: str | None = None) -> None:
    """Freezes the BatchNorm layers of a model in place, for fine-tuning.

    A frozen layer normalizes by its running statistics, in training too, and
    `model.train()` does not change that. Its statistics stay. Its scale and bias become
    `FrozenParam`s: an optimizer of `nnx.Param` does not see them, so that weight decay
    and momentum leave them alone as well. Call the function before you make the
    optimizer. Names in the model's state stay the same; `unfreeze` is the way back.

    Args:
        model: The model; its layers are `bn_jax.nnx.BatchNorm` or
            `flax.nnx.BatchNorm`, at any depth.
        match: Regular expression that is searched in the path of each layer, such as
            "blocks/0/norm"; None freezes all.

    Raises:
        ValueError: If `match` is not a regular expression, or the model has BatchNorm
            layers and `match` fits none of them.

    >>> model = nnx.BatchNorm(2, rngs=nnx.Rngs(0))
    >>> freeze(model)
    >>> model.train()
    >>> type(model.scale).__name__, len(nnx.to_flat_state(nnx.state(model, nnx.Param)))
    ('FrozenParam', 0)
    """
    layers = batch_norms(model)
    pattern = compile_match(match)
    chosen = [layer for path, layer in layers.items() if pattern.search(path)]
    if layers and not chosen:
        raise ValueError(
            f"freeze: match={match!r} must fit the path of a BatchNorm layer, but the "
            f"layers are {', '.join(layers)}."
        )
    for layer in chosen:
        if not _is_fixed(layer):
            fix(layer)
            _convert(layer, FrozenParam)


def unfreeze(model: nnx.Module, match: str | None = None) -> None:
    """Undoes `freeze`: scale and bias are `nnx.Param`s again, and statistics move.

    Args:
        model: The model, which changes in place.
        match: Regular expression that is searched in the path of each layer; None
            takes all. Layers that are not frozen stay as they are.

    >>> model = nnx.BatchNorm(2, rngs=nnx.Rngs(0))
    >>> freeze(model)
    >>> unfreeze(model)
    >>> type(model.scale).__name__
    'Param'
    """
    pattern = compile_match(match)
    for path, layer in batch_norms(model).items():
        if _is_fixed(layer) and pattern.search(path):
            layer.__class__ = type(layer).__bases__[0]
            _convert(layer, nnx.Param)


def _is_fixed(layer: Any) -> bool:
    return hasattr(layer, "_is_fixed")


def _convert(layer: Any, variable_type: type[nnx.Variable[Any]]) -> None:
    """Gives scale and bias another type; their values stay."""
    for name in ("scale", "bias"):
        variable = getattr(layer, name)
        if variable is not None:
            value, metadata = variable.get_value(), variable.get_metadata()
            setattr(layer, name, variable_type(value, **metadata))
