"""BatchNorm layers of an NNX model that do not learn, whatever their settings say."""

import functools
from typing import Any

import jax
from flax import nnx

from bn_jax.layers.nnx import BatchNorm


def fix(layer: nnx.BatchNorm) -> None:
    """Makes a layer normalize by its running statistics, as a constant function.

    The layer gets a subclass of its own class. A setting would not last: `train()` and
    `nnx.view` change settings. Scale and bias get no gradient.

    Args:
        layer: The layer, which changes in place.
    """
    if isinstance(layer, BatchNorm):
        layer.update_running_average = None
    layer.__class__ = _fixed_class(type(layer))


def batch_norms(model: nnx.Module) -> dict[str, Any]:
    """Returns the BatchNorm layers of a model, ours and Flax's, by their paths.

    Args:
        model: The model.
    """
    return {
        "/".join(map(str, path)): module
        for path, module in nnx.iter_modules(model)
        if isinstance(module, nnx.BatchNorm)
    }


@functools.cache
def _fixed_class(layer_class: Any) -> Any:
    def call_fixed(
        self: Any, x: Any, use_running_average: object = None, *, mask: Any = None
    ) -> Any:
        del use_running_average
        graph, state = nnx.split(self)
        constant = nnx.merge(graph, jax.lax.stop_gradient(state))
        return layer_class.__call__(constant, x, use_running_average=True, mask=mask)

    body: dict[str, Any] = {"__call__": call_fixed}
    names = ("__module__", "__qualname__", "__doc__")
    body |= {name: getattr(layer_class, name) for name in names}
    return type(layer_class)(layer_class.__name__, (layer_class,), body)
