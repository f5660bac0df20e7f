"""Look-up of models and normalization layers by the names in a configuration."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from bn_jax.errors import UserError, unknown_name_message
from bn_jax.layers.linen import BatchNorm
from bn_jax.models.cnn import CNN
from bn_jax.models.inception.network import Inception
from bn_jax.models.mlp import MLP
from bn_jax.models.own import make_own_model
from bn_jax.user_code import is_object_name

_MODELS: Mapping[str, type[nn.Module]] = {
    "mlp": MLP,
    "cnn": CNN,
    "inception": Inception,
}
_NORMS: Mapping[str, type[nn.Module]] = {"batch_norm": BatchNorm}


def make_model(
    name: str,
    *,
    num_classes: int,
    module_dir: str | None = None,
    axis_name: str | None = None,
    **fields: Any,
) -> nn.Module:
    """Returns a model, to be called as `model.apply(variables, x, train=...)`.

    Args:
        name: "mlp", "cnn", "inception" or, for a class of one's own,
            "package.module:Class". The class is a Linen module whose call takes
            `train`, or an NNX module. It gets `num_classes`, `norm`, `dtype` and
            `axis_name` where it has such a field (NNX: where its constructor takes
            such an argument). For an NNX class, `norm` makes `bn_jax.nnx.BatchNorm`.
        num_classes: Number of class scores that the model returns.
        module_dir: Folder in which the module of one's own class is looked for, after
            the current folder and Python's path.
        axis_name: Mapped axis over which a batch is sharded, for a class of one's own.
            Other models have it in the layers of their `norm`.
        **fields: Further fields of the model's class. `norm` is a factory such as
            `make_norm` returns. `dtype` may be given as "float32", "bfloat16" or
            "float16". For the models that have a `nonlinearity`, "relu", "sigmoid",
            "tanh", "gelu" and "silu" are names of one.

    Raises:
        UserError: If the name of the model, of a field, of the nonlinearity or of the
            dtype is unknown, `num_classes` is below 1, or `norm` is not a factory of
            layers; or if one's own class cannot be used (`make_own_model`).
    """
    if num_classes < 1:
        raise UserError(
            f"config.model.num_classes must be at least 1, but is {num_classes}."
        )
    _check_norm(fields.get("norm"))
    dtype = fields.get("dtype")
    if isinstance(dtype, str):
        fields["dtype"] = _dtype(dtype)
    if is_object_name(name):
        offered = {"num_classes": num_classes, "axis_name": axis_name}
        for field in ("norm", "dtype"):
            if field in fields:
                offered[field] = fields.pop(field)
        return make_own_model(
            name, module_dir=module_dir, offered=offered, fields=fields
        )
    if name not in _MODELS:
        message = unknown_name_message("config.model.name", name, _MODELS)
        raise UserError(f'{message} A class of your own is "package.module:Class".')
    model_class = _MODELS[name]
    _check_fields("config.model", model_class, fields)
    nonlinearity = fields.get("nonlinearity")
    if isinstance(nonlinearity, str):
        fields["nonlinearity"] = _nonlinearity(nonlinearity)
    return model_class(num_classes=num_classes, **fields)


def make_norm(name: str | None, **fields: Any) -> Callable[..., nn.Module] | None:
    """Returns a factory of normalization layers, for a model's `norm`.

    Args:
        name: "batch_norm"; None returns None, for a model without normalization.
        **fields: Fields of the layer's class.

    Raises:
        UserError: If the name of the layer or of a field is unknown.
    """
    if name is None:
        return None
    if name not in _NORMS:
        raise UserError(unknown_name_message("config.norm.name", name, _NORMS))
    layer_class = _NORMS[name]
    _check_fields("config.norm", layer_class, fields)
    return partial(layer_class, **fields)


def _check_norm(norm: Any) -> None:
    if norm is None or (callable(norm) and not isinstance(norm, nn.Module)):
        return
    given = repr(norm) if isinstance(norm, str) else f"of type {type(norm).__name__}"
    raise UserError(
        "make_model: norm must be a factory of normalization layers or None, but is "
        f"{given}; make_norm('batch_norm', ...) makes one."
    )


def _nonlinearity(name: str) -> Callable[..., Any]:
    names = ("relu", "sigmoid", "tanh", "gelu", "silu")
    if name not in names:
        what = "config.model.nonlinearity"
        raise UserError(unknown_name_message(what, name, names))
    return getattr(nn, name)


def _dtype(name: str) -> Any:
    names = ("float32", "bfloat16", "float16")
    if name not in names:
        raise UserError(unknown_name_message("config.dtype", name, names))
    return getattr(jnp, name)


def _check_fields(
    who: str, module_class: type[nn.Module], fields: Mapping[str, Any]
) -> None:
    known = [field.name for field in dataclasses.fields(module_class)]
    for field in fields:
        if field not in known:
            what = f"{who}: a field of {module_class.__name__}"
            raise UserError(unknown_name_message(what, field, known))
