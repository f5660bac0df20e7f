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
    optimizer. Names in the model's state stay the same.

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
        fix(layer)
        _freeze_parameters(layer)


def _freeze_parameters(layer: Any) -> None:
    """Makes scale and bias FrozenParams; their values stay."""
    for name in ("scale", "bias"):
        variable = getattr(layer, name)
        if variable is not None:
            value, metadata = variable.get_value(), variable.get_metadata()
            setattr(layer, name, FrozenParam(value, **metadata))
