"""A user's own model, from a name such as `package.module:Class`."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax import nnx
from flax.core import freeze
from jaxtyping import Array, Float, PyTree

from bn_jax.errors import UserError, unknown_name_message
from bn_jax.layers.nnx import BatchMoments, BatchNorm
from bn_jax.user_code import load_object

_SETTING = "config.model.name"


def make_own_model(
    name: str,
    *,
    module_dir: str | None,
    offered: Mapping[str, Any],
    fields: Mapping[str, Any],
) -> nn.Module:
    """Returns a model of a user's class, to be called like `make_model`'s.

    Args:
        name: `package.module:Class`, a class of Linen or NNX.
        module_dir: Folder in which the module is looked for as well.
        offered: Arguments that are given to a class that takes them.
        fields: Arguments that the configuration gives.

    Raises:
        UserError: If the class is not found or is not a module, does not take a field
            or needs one more, has no `dtype` for a dtype other than float32, or its
            call does not take `train`.
    """
    model_class = load_object(name, module_dir=module_dir, setting=_SETTING)
    who = f"{_SETTING}={name}"
    is_class = isinstance(model_class, type)
    if not is_class or not issubclass(model_class, nn.Module | nnx.Module):
        raise UserError(
            f"{who} must be a class of flax.linen.Module or flax.nnx.Module, but is "
            f"{model_class!r}."
        )
    # The signature of an NNX class itself is that of its metaclass.
    signature = inspect.signature(model_class.__init__)
    takes = signature.parameters
    is_open = any(one.kind is one.VAR_KEYWORD for one in takes.values())
    for field in fields:
        if field not in takes and not is_open:
            what = f"{who}: a field of {model_class.__name__}"
            known = [one for one in takes if one not in ("self", "rngs")]
            raise UserError(unknown_name_message(what, field, known))
    dtype = offered.get("dtype")
    if "dtype" not in takes and dtype not in (None, jnp.float32):
        raise UserError(
            f"{who}: config.dtype={jnp.dtype(dtype).name} needs a class that computes "
            f"in the dtype of its field `dtype`, but {model_class.__name__} has none."
        )
    given = {key: value for key, value in offered.items() if key in takes}
    given.update(fields)
    is_nnx = issubclass(model_class, nnx.Module)
    gets_rngs = is_nnx and ("rngs" in takes or is_open)
    try:
        signature.bind(None, **given, **({"rngs": None} if gets_rngs else {}))
    except TypeError as error:
        raise UserError(
            f"{who}: {model_class.__name__} cannot be made: {error}. Fields are "
            "given as config.model.FIELD."
        ) from error
    if not is_nnx:
        _check_takes_train(who, model_class)
        return model_class(**given)
    if isinstance(given.get("norm"), partial):
        # The factory of `make_norm`, whose fields both layers have.
        given["norm"] = partial(BatchNorm, **given["norm"].keywords)
    # Variables are kept without their metadata, as arrays.
    return NNXModel(
        model_class, (), freeze(given), skip_rng=not gets_rngs, metadata_fn=None
    )


def takes_norm(model: nn.Module) -> bool:
    """Returns True if a model makes its layers by the `norm` that it is given.

    Args:
        model: Model that `make_model` returns.
    """
    return _fields(model).get("norm") is not None


def gets_no_norm(model: nn.Module) -> bool:
    """Returns True if a model takes a `norm`, but is given None.

    Args:
        model: Model that `make_model` returns.
    """
    return _fields(model).get("norm", ...) is None


class NNXModel(nnx.bridge.ToLinen):
    """An NNX class as a Linen model.

    Each call makes an NNX model anew, sets its variables and brings it into the mode of
    training or of evaluation. Collections have Linen's names (`nnx.Param`: `params`,
    `nnx.BatchStat`: `batch_stats`). Random streams get new keys in each call.
    """

    def __call__(
        self, x: Float[Array, "batch ..."], *, train: bool
    ) -> Float[Array, "batch classes"]:
        """Returns the scores of each class.

        Args:
            x: Input of the model.
            train: True calls the model after its `train()`, False after its `eval()`.
                A model whose call takes `train` gets it as well.
        """

        def run(module: Any, x: Array) -> Array:
            (module.train if train else module.eval)()
            takes = inspect.signature(module.__call__).parameters
            return module(x, train=train) if "train" in takes else module(x)

        def run_and_sow(module: Any, x: Array) -> Array:
            y, moments = nnx.capture(run, BatchMoments)(module, x)
            for name, value in nnx.to_pure_dict(moments).items():
                self.put_variable("batch_moments", name, value)
            return y

        is_sowing = self.is_mutable_collection("batch_moments")
        sows = is_sowing and not self.is_initializing()
        return super().__call__(x, nnx_method=run_and_sow if sows else run)

    @nn.nowrap
    def nnx_module(self, variables: Mapping[str, PyTree]) -> Any:
        """Returns the NNX module itself, in evaluation mode.

        Args:
            variables: The model's collections, which become the module's variables.
        """
        made: Any = self.apply(
            variables,
            method=lambda bound: nnx.bridge.ToLinen.__call__(
                bound, nnx_method=lambda module: module
            ),
        )
        made.eval()
        return made

    # The number of a module in an `nnx.List` is a string in Linen's collections: a
    # checkpoint that is read without its model has no other keys.

    @nn.nowrap
    def put_variable(self, col: str, name: str, value: PyTree) -> None:
        """Stores the values of one module in a collection."""
        super().put_variable(col, name, _map_keys(str, value))

    @property
    def variables(self) -> Mapping[str, PyTree]:
        """The model's collections, as NNX names their entries."""
        return _map_keys(_nnx_key, super().variables)


def _fields(model: nn.Module) -> Mapping[str, Any]:
    return model.kwargs if isinstance(model, NNXModel) else vars(model)


def _nnx_key(key: str) -> str | int:
    return int(key) if key.isdecimal() else key


def _map_keys(function: Callable[[Any], Any], tree: PyTree) -> PyTree:
    if not isinstance(tree, Mapping):
        return tree
    return {function(key): _map_keys(function, child) for key, child in tree.items()}


def _check_takes_train(who: str, model_class: type[nn.Module]) -> None:
    call: Callable[..., Any] = model_class.__call__
    parameters = inspect.signature(call).parameters
    is_open = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    if "train" not in parameters and not is_open:
        given = ", ".join(parameters)
        raise UserError(
            f"{who}: {model_class.__name__}.__call__ must take the keyword train, True "
            f"in training and False in evaluation, but takes ({given}); write "
            "`def __call__(self, x, *, train: bool)`."
        )
