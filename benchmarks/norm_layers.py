"""Batch Normalization layers of several libraries in training, with one signature."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import bn_jax

# Takes x, scale, bias, running mean and variance; returns y and the new statistics.
Layer = Callable[..., tuple[Any, Any]]


def jax_layers() -> dict[str, Layer]:
    """Returns the layers of all libraries for JAX, by name."""

    def of_linen(*, use_fast_variance: bool) -> Layer:
        def call(x: Any, scale: Any, bias: Any, mean: Any, var: Any) -> Any:
            layer = nn.BatchNorm(
                use_running_average=False,
                dtype=x.dtype,
                use_fast_variance=use_fast_variance,
            )
            variables = {
                "params": {"scale": scale, "bias": bias},
                "batch_stats": {"mean": mean, "var": var},
            }
            return layer.apply(variables, x, mutable=["batch_stats"])

        return call

    def of_nnx(x: Any, scale: Any, bias: Any, mean: Any, var: Any) -> Any:
        layer = nnx.BatchNorm(x.shape[-1], dtype=x.dtype, rngs=nnx.Rngs(0))
        layer.scale[...], layer.bias[...] = scale, bias
        layer.mean[...], layer.var[...] = mean, var
        y = layer(x, use_running_average=False)
        return y, (layer.mean[...], layer.var[...])

    def of_haiku(x: Any, scale: Any, bias: Any, mean: Any, var: Any) -> Any:
        def function(x: Any) -> Any:
            return hk.BatchNorm(True, True, 0.99)(x, is_training=True)

        shape = (1,) * (x.ndim - 1) + x.shape[-1:]
        average = {"hidden": mean.reshape(shape), "average": mean.reshape(shape)}
        other = {"hidden": var.reshape(shape), "average": var.reshape(shape)}
        counter = {"counter": jnp.zeros((), jnp.int32)}
        state = {
            "batch_norm/~/mean_ema": {**average, **counter},
            "batch_norm/~/var_ema": {**other, **counter},
        }
        params = {
            "batch_norm": {"scale": scale.reshape(shape), "offset": bias.reshape(shape)}
        }
        return hk.transform_with_state(function).apply(params, state, None, x)

    def of_equinox(x: Any, scale: Any, bias: Any, mean: Any, var: Any) -> Any:
        del mean, var
        layer, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(
            x.shape[-1], axis_name="batch", mode="batch", dtype=x.dtype
        )
        layer = eqx.tree_at(
            lambda module: (module.weight, module.bias), layer, (scale, bias)
        )
        # Equinox expects channels first in each example, and a mapped batch axis.
        return jax.vmap(
            layer, axis_name="batch", in_axes=(0, None), out_axes=(0, None)
        )(jnp.moveaxis(x, -1, 1), state)

    def of_ours(x: Any, scale: Any, bias: Any, mean: Any, var: Any) -> Any:
        return bn_jax.batch_norm(x, scale, bias, {"mean": mean, "var": var})

    return {
        "bn_jax": of_ours,
        "flax": of_linen(use_fast_variance=True),
        "flax, stable": of_linen(use_fast_variance=False),
        "flax.nnx": of_nnx,
        "haiku": of_haiku,
        "equinox": of_equinox,
    }


def torch_arrays(
    arrays: tuple[Any, ...],
) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """Converts the arguments of a layer to PyTorch.

    Args:
        arrays: x, scale, bias, running mean and variance.

    Returns:
        x, then scale and bias, then running mean and variance.
    """
    x, scale, bias, mean, var = map(to_torch, map(jnp.asarray, arrays))
    return x, [scale, bias], [mean, var]


def to_torch(array: Any) -> torch.Tensor:
    """Converts an array to PyTorch's order of axes, keeping channels-last memory.

    The tensor is on the GPU if PyTorch has one.

    Args:
        array: Array of JAX or NumPy, channels last.
    """
    tensor = torch.from_numpy(np.array(array, np.float32))
    if array.dtype == jnp.bfloat16:
        tensor = tensor.bfloat16()
    tensor = tensor.to("cuda" if torch.cuda.is_available() else "cpu")
    # `movedim` returns a view, so the memory keeps its layout.
    return tensor.movedim(-1, 1) if tensor.ndim > 2 else tensor
