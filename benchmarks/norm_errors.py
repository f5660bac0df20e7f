"""Errors of Batch Normalization in the first step, for inputs with a large mean."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from norm_layers import Layer, torch_arrays


def largest_errors(
    dtype: str, layers: dict[str, Layer], shapes: tuple[tuple[int, ...], ...]
) -> dict[str, dict[str, float]]:
    """Returns the largest errors of each library, of the variance and of the values.

    Errors of the variance are relative, errors of the values absolute. A NaN counts as
    the largest error.

    Args:
        dtype: Dtype of x.
        layers: JAX layers by name, from `jax_layers`; PyTorch is measured too.
        shapes: Shapes of x.
    """
    errors: dict[str, dict[str, float]] = {"variance": {}, "values": {}}
    for shape in shapes:
        mean = 1e4 if dtype == "float32" else 30.0
        x = jnp.asarray(np.random.default_rng(2).normal(mean, 1.0, shape), dtype)
        ones, zeros = jnp.ones(shape[-1]), jnp.zeros(shape[-1])
        exact = np.asarray(x, np.float64).reshape(-1, shape[-1])
        exact -= exact.mean(0)
        var = np.square(exact).mean(0)
        for name, layer in layers.items():
            y, _ = jax.jit(layer)(x, ones, zeros, zeros, ones)
            y = y if y.shape == shape else jnp.moveaxis(y, 1, -1)
            _add_errors(errors, name, y, exact, var)
        tensor, parameters, running = torch_arrays((x, ones, zeros, zeros, ones))
        y = torch.nn.functional.batch_norm(tensor, *running, *parameters, training=True)
        y = y.movedim(1, -1).float().cpu().numpy()
        _add_errors(errors, "pytorch", y, exact, var)
    return errors


def _add_errors(
    errors: dict[str, dict[str, float]],
    name: str,
    y: Any,
    exact: np.ndarray,
    var: np.ndarray,
) -> None:
    y = np.asarray(y, np.float64).reshape(exact.shape)
    # y is x divided by the square root of variance plus epsilon. The slope of y over x
    # is the inverse of that root, so it gives the variance that the library used.
    slope = (exact * (y - y.mean(0))).mean(0)
    used = (var / slope) ** 2 - 1e-5
    found = {
        "variance": np.max(np.abs(used / var - 1)),
        "values": np.max(np.abs(y - exact / np.sqrt(var + 1e-5))),
    }
    for what, error in found.items():
        # Unlike max(), np.maximum() returns NaN if either argument is NaN.
        errors[what][name] = float(np.maximum(errors[what].get(name, 0), error))
