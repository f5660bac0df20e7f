"""Freezing of the BatchNorm layers in any Linen module."""

import functools
import re
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar

import flax.linen as nn
import jax
from flax import nnx

from bn_jax.layers.fixed import batch_norms, fix
from bn_jax.layers.linen import BatchNorm

LinenModule = TypeVar("LinenModule", bound=nn.Module)

# True while a frozen layer runs, which needs no further changes.
_is_in_layer: ContextVar[bool] = ContextVar("_is_in_layer", default=False)


def frozen(module: LinenModule, match: str | None = None) -> LinenModule:
    """Returns the module with its BatchNorm layers frozen, for fine-tuning.

    A frozen layer normalizes by its running statistics, in training too. Its statistics
    do not change, and its scale and bias get no gradient. Weight decay and an
    optimizer's momentum can still change scale and bias; leave them out of the update
    by an Optax mask (`norm_mask`).

    The result has the class, fields, methods and variables of the module, and is called
    in the same way: alone, or inside of another module. It freezes `bn_jax.BatchNorm`
    and `flax.linen.BatchNorm`, at any depth, and the layers of an NNX module in
    `nnx.bridge.ToLinen`. Initialization is unchanged. The result is not equal to the
    module, and cannot be pickled: save its variables, and freeze the module again.

    Args:
        module: The module, which itself is not changed. Only a module that was created
            inside of another module's method is changed in place: its name is already
            taken there.
        match: Regular expression that is searched in the path of each layer inside of
            the module, such as "block1/norm"; None freezes all.

    Raises:
        ValueError: If `match` is not a regular expression. A call raises it if the
            module has BatchNorm layers and `match` fits none of them.

    >>> model = nn.Sequential([nn.Dense(2), nn.BatchNorm(use_running_average=False)])
    >>> variables = model.init(jax.random.key(0), jax.numpy.ones((4, 3)))
    >>> x = jax.random.normal(jax.random.key(1), (4, 3))
    >>> y, updates = frozen(model).apply(variables, x, mutable=["batch_stats"])
    >>> updates["batch_stats"]["layers_1"]["mean"]
    Array([0., 0.], dtype=float32)
    """
    # The name of a module inside of another one is taken there, also by its copy.
    is_nested = isinstance(module.parent, nn.Module)
    result = module if is_nested else module.clone(parent=module.parent)
    object.__setattr__(result, "__class__", _frozen_class(type(module), match))
    return result


def compile_match(match: str | None) -> re.Pattern[str]:
    """Returns the compiled expression; one that fits every path for None.

    Args:
        match: Regular expression, or None.

    Raises:
        ValueError: If `match` is not a regular expression.
    """
    try:
        return re.compile(match or "")
    except re.error as error:
        raise ValueError(
            f"match must be a regular expression, but is {match!r} ({error})."
        ) from error


@functools.cache
def _frozen_class(module_class: type[nn.Module], match: str | None) -> type[nn.Module]:
    """Returns a subclass whose methods run with frozen layers.

    Flax calls each method of a module, from outside or inside, by
    `_call_wrapped_method`, except for the `__call__` that `nn.scan` and other
    transforms of a class have made.
    """
    names = ("__module__", "__qualname__", "__doc__")
    body: dict[str, Any] = {name: getattr(module_class, name) for name in names}
    for name in ("_call_wrapped_method", "__call__"):
        if hasattr(module_class, name):
            body[name] = _with_frozen_layers(getattr(module_class, name), match)
    nn.nowrap(body["_call_wrapped_method"])
    # Flax names unnamed submodules after their class, so the name must be the same.
    return type(module_class.__name__, (module_class,), body)


def _with_frozen_layers(method: Callable[..., Any], match: str | None) -> Any:
    """Returns a method in whose calls the layers that fit are frozen."""
    pattern = compile_match(match)
    flag = f"bn_jax.frozen:{match}"

    @functools.wraps(method)
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self.scope is None or self.scope.has_flag(flag):
            return method(self, *args, **kwargs)
        layers: dict[str, bool] = {}

        def fits(*names: str) -> bool:
            path = "/".join(filter(None, names))
            return layers.setdefault(path, pattern.search(path) is not None)

        def freeze(proceed: Any, args: Any, kwargs: Any, context: Any) -> Any:
            layer = context.module
            is_layer = isinstance(layer, nn.BatchNorm | nnx.bridge.ToLinen)
            is_call = is_layer and context.method_name == "__call__"
            if not is_call or _is_in_layer.get():
                return proceed(*args, **kwargs)
            names = layer.path[len(self.path) :]
            if isinstance(layer, nnx.bridge.ToLinen):
                call = functools.partial(proceed, *args, **kwargs)
                return _run_nnx(layer, call, functools.partial(fits, *names))
            if not fits(*names) or layer.is_initializing():
                return proceed(*args, **kwargs)
            return _run_frozen(layer, *args, **kwargs)

        # New submodules inherit the flag. `nn.jit` compares it, and therefore does not
        # reuse what it has traced for a module that is not frozen.
        flags = self.scope.flags
        self.scope.flags = flags.copy({flag: True})
        try:
            with nn.intercept_methods(freeze):
                result = method(self, *args, **kwargs)
        finally:
            self.scope.flags = flags
        if layers and not any(layers.values()):
            raise ValueError(
                f"frozen: match={match!r} must fit the path of a BatchNorm layer, but "
                f"the layers are {', '.join(layers)}."
            )
        return result

    return call


def _run_frozen(
    layer: nn.Module,
    x: Any,
    use_running_average: object = None,
    **options: Any,
) -> Any:
    """Normalizes x by the running statistics of a layer, as a constant function."""
    del use_running_average
    fields: dict[str, Any] = {"use_running_average": None}
    if isinstance(layer, BatchNorm):
        fields["update_running_average"] = None
    # Without mutable collections the copy can neither update nor sow anything.
    copy = layer.clone(parent=None, **fields)
    variables = jax.lax.stop_gradient(dict(layer.variables))
    token = _is_in_layer.set(True)
    try:
        return copy.apply(variables, x, use_running_average=True, **options)
    finally:
        _is_in_layer.reset(token)


def _run_nnx(
    module: nnx.bridge.ToLinen, call: Callable[[], Any], fits: Callable[[str], bool]
) -> Any:
    """Calls an NNX module in Linen, with those of its layers fixed that fit."""
    nnx_class, is_initializing = module.nnx_class, module.is_initializing()

    def make(*args: Any, **kwargs: Any) -> Any:
        made = nnx_class(*args, **kwargs)
        for path, layer in batch_norms(made).items():
            if fits(path) and not is_initializing:
                fix(layer)
        return made

    # A subclass of ToLinen calls the `__call__` of its parent: it is intercepted too.
    token = _is_in_layer.set(True)
    object.__setattr__(module, "nnx_class", make)
    try:
        return call()
    finally:
        object.__setattr__(module, "nnx_class", nnx_class)
        _is_in_layer.reset(token)
