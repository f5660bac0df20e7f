"""Checks of a user's own model, by its shapes: no program runs."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import flax.linen as nn
import jax
from absl import logging
from jaxtyping import PyTree

from bn_jax.errors import UserError, shorten
from bn_jax.models.own import NNXModel, gets_no_norm
from bn_jax.stats.collections import layers_with_statistics, leaves_by_path
from bn_jax.training.base_config import base_config
from bn_jax.training.distributed.parallel import Parallel
from bn_jax.training.step.train_step import make_rngs, mutable_collections
from bn_jax.user_code import describe_error


def check_own_model(
    who: str,
    model: nn.Module,
    mapped_model: nn.Module,
    *,
    variables: dict[str, PyTree],
    microbatch: jax.ShapeDtypeStruct,
    num_classes: int,
    parallel: Parallel,
) -> None:
    """Checks a user's model before it is compiled.

    Args:
        who: Name of the model, for messages.
        model: Model for programs under jit.
        mapped_model: Model for a step that is mapped over the devices.
        variables: Shapes of its variables.
        microbatch: Shape of a microbatch of the model's inputs.
        num_classes: Number of scores that it must return.
        parallel: Devices of the run.

    Raises:
        UserError: If the model returns scores of another shape, changes the shape of a
            variable in training, or updates a variable by the examples of one device
            alone.
    """
    with errors_in_model(who, model):
        scores = jax.eval_shape(
            partial(model.apply, train=False), variables, microbatch
        )
        trained, updates = jax.eval_shape(_training(model), variables, microbatch)
    wanted = (microbatch.shape[0], num_classes)
    for result in (scores, trained):
        is_array = isinstance(result, jax.ShapeDtypeStruct)
        if not is_array or result.shape != wanted:
            shapes = jax.tree.map(lambda leaf: leaf.shape, result)
            raise UserError(
                f"{who} must return one array of scores, of the shape (batch, "
                f"num_classes) = {wanted}, but returns {shapes} for an input of the "
                f"shape {microbatch.shape}."
            )
    _check_shapes(who, variables, updates)
    if parallel.axis_name is not None and parallel.num_devices > 1:
        with errors_in_model(who, model):
            _check_synchronized(who, mapped_model, variables, microbatch, parallel)


def check_norm_settings(who: str, norm: Mapping[str, Any]) -> None:
    """Checks the settings of the norm for a class that does not take a norm.

    Args:
        who: Name of the model, for messages.
        norm: `config.norm`. Only `frozen` applies to layers that a class makes itself.

    Raises:
        UserError: If a setting that has no effect is not that of the base.
    """
    if norm["name"] is None:
        return
    base = base_config().norm
    # The trainer itself sets `group_size` if `sync` is False, so `sync` comes first.
    for name in sorted(base, reverse=True):
        if norm[name] != base[name] and name != "frozen":
            raise UserError(
                f"{who}: config.norm.{name}={norm[name]!r} has no effect, because the "
                "class has no field `norm`. Leave the setting out, or make the layers "
                "by such a field."
            )


def log_running_layers(who: str, layers: Sequence[str], batch_stats: PyTree) -> None:
    """Logs which layers are evaluated with their running statistics, if any are.

    Args:
        who: Name of the model, for the message.
        layers: Paths of these layers.
        batch_stats: The model's running statistics, or their shapes.
    """
    if layers:
        some = len(layers) < len(list(layers_with_statistics(batch_stats)))
        others = ", and population statistics in the others" if some else ""
        names = shorten([path or "the layer" for path in layers])
        _warn_once(
            f"{who}: evaluations use the running statistics of {names}{others}: "
            "only layers of bn_jax that normalize by the batch give its moments."
        )


@cache
def _warn_once(message: str) -> None:
    logging.warning("%s", message)


@contextmanager
def errors_in_model(who: str, model: nn.Module) -> Iterator[None]:
    """Re-raises each error of a user's model as one line with its place in their file.

    Args:
        who: Name of the model, for the message.
        model: The model.

    Raises:
        UserError: In place of any other error.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # The model is the user's own code, which may raise errors of any class.
        code: Any = model.nnx_class if isinstance(model, NNXModel) else type(model)
        message = describe_error(error, in_file=inspect.getfile(code))
        if "'NoneType' object is not callable" in message and gets_no_norm(model):
            message += ": the class is given norm=None, as config.norm.name is None."
        raise UserError(f"{who}: {message}") from error


def _training(model: nn.Module) -> Any:
    def apply(variables: dict[str, PyTree], x: Any, key: Any = None) -> Any:
        return model.apply(
            variables,
            x,
            train=True,
            mutable=mutable_collections(variables),
            rngs=make_rngs(jax.random.key(0) if key is None else key),
        )

    return apply


def _check_shapes(who: str, old: PyTree, new: PyTree) -> None:
    for name, collection in old.items():
        before = _shapes(collection)
        after = _shapes(new.get(name, collection))
        for path in sorted(before.keys() | after.keys()):
            if before.get(path) != after.get(path):
                raise UserError(
                    f"{who} must not change the shapes of its variables in training, "
                    f"but {name}/{path} is {before.get(path, 'missing')} before and "
                    f"{after.get(path, 'missing')} after a step. Create each variable "
                    "also with train=False, or use another collection for it: "
                    "'intermediates' is not kept."
                )


def _shapes(tree: PyTree) -> dict[str, str]:
    leaves = leaves_by_path(tree)
    return {path: f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves.items()}


def _check_synchronized(
    who: str,
    model: nn.Module,
    variables: dict[str, PyTree],
    microbatch: jax.ShapeDtypeStruct,
    parallel: Parallel,
) -> None:
    """Checks that each device computes equal values of the updated variables.

    `vmap` over the examples of the devices stands for the map of the step. It knows
    which of its results differ along the axis: those that are not summed over it.
    """
    size = parallel.num_devices
    shard = (size, microbatch.shape[0] // size, *microbatch.shape[1:])
    x = jax.ShapeDtypeStruct(shard, microbatch.dtype)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), size))

    differing: list[str] = []

    def note_if_mapped(path: str, leaf: Any) -> Any:
        @jax.custom_batching.custom_vmap
        def same(leaf: Any) -> Any:
            return leaf

        # JAX calls this rule only for a value that differs along the axis.
        @same.def_vmap
        def rule(axis_size: int, in_batched: Any, leaf: Any) -> Any:
            differing.append(path)
            return leaf, True

        return same(leaf)

    def step(x: Any, key: Any, variables: dict[str, PyTree]) -> PyTree:
        new = dict(_training(model)(variables, x, key)[1])
        new.pop("batch_moments", None)
        return [note_if_mapped(*one) for one in leaves_by_path(new).items()]

    mapped = jax.vmap(step, in_axes=(0, 0, None), axis_name=parallel.axis_name)
    jax.eval_shape(mapped, x, keys, variables)
    if differing:
        raise UserError(
            f"{who}: in mode {parallel.mode}, each device would compute "
            f"{shorten(differing, most=1)} from its own examples alone, and all but "
            "one of the results would be lost. Use --config.parallel.mode=jit; or make "
            "the layer by the factory that a field `norm` of the class is given; or "
            "give the layer as its axis_name what a field `axis_name` of the class is "
            "given."
        )
