"""Batch Normalization in float64 NumPy, written from the paper for the tests.

Source: Ioffe & Szegedy (2015). Every function takes NumPy arrays of any dtype, and
computes and returns float64 (complex128 for complex input).
"""

from collections.abc import Sequence

import numpy as np

Axes = int | Sequence[int]


def moments(
    x: np.ndarray, *, axis: Axes = -1, mask: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns number of values, mean and biased variance: Algorithm 1, lines 1 and 2.

    The sums run over every axis but the feature axes, at positions where the mask is
    True. All three results are 0 for a feature without such positions.
    """
    x, valid, others = _prepare(x, axis, mask)
    num_samples = valid.sum(axis=others).astype(np.float64)
    divisor = np.maximum(num_samples, 1)
    mean = x.sum(axis=others) / divisor
    deviation = np.where(valid, x - np.expand_dims(mean, others), 0)
    var = (np.abs(deviation) ** 2).sum(axis=others) / divisor
    return num_samples, mean, var


def batch_norm(
    x: np.ndarray,
    scale: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    *,
    axis: Axes = -1,
    epsilon: float = 1e-5,
    mask: np.ndarray | None = None,
) -> np.ndarray:
    """Returns scale * (x - mean) / sqrt(var + epsilon) + bias: Algorithm 1.

    The result is 0 where the mask is False.
    """
    _, mean, var = moments(x, axis=axis, mask=mask)
    x, valid, others = _prepare(x, axis, mask)
    x_hat = (x - np.expand_dims(mean, others)) / np.expand_dims(
        np.sqrt(var + epsilon), others
    )
    y = x_hat * _expanded(scale, 1, others) + _expanded(bias, 0, others)
    return np.where(valid, y, 0)


def batch_norm_gradients(
    x: np.ndarray,
    dy: np.ndarray,
    scale: np.ndarray | None = None,
    *,
    axis: Axes = -1,
    epsilon: float = 1e-5,
    mask: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns dx, dscale and dbias: the six equations of the gradient in section 3."""
    num_samples, mean, var = moments(x, axis=axis, mask=mask)
    x, valid, others = _prepare(x, axis, mask)
    dy = np.where(valid, np.asarray(dy, np.float64), 0)
    m = np.expand_dims(np.maximum(num_samples, 1), others)
    deviation = np.where(valid, x - np.expand_dims(mean, others), 0)
    std = np.expand_dims(np.sqrt(var + epsilon), others)
    dx_hat = dy * _expanded(scale, 1, others)
    dvar = (dx_hat * deviation).sum(axis=others, keepdims=True) * -0.5 * std**-3
    dmean = (-dx_hat / std).sum(axis=others, keepdims=True)
    dmean += dvar * (-2 * deviation).sum(axis=others, keepdims=True) / m
    dx = dx_hat / std + dvar * 2 * deviation / m + dmean / m
    dscale = (dy * deviation / std).sum(axis=others)
    return np.where(valid, dx, 0), dscale, dy.sum(axis=others)


def inference(
    x: np.ndarray,
    scale: np.ndarray | None,
    bias: np.ndarray | None,
    mean: np.ndarray,
    var: np.ndarray,
    *,
    axis: Axes = -1,
    epsilon: float = 1e-5,
) -> np.ndarray:
    """Returns an affine map of x with fixed coefficients: Algorithm 2, line 11."""
    x, _, others = _prepare(x, axis, None)
    std = np.sqrt(np.asarray(var, np.float64) + epsilon)
    factor = _expanded(scale, 1, others) / np.expand_dims(std, others)
    return factor * x + (
        _expanded(bias, 0, others) - factor * _expanded(mean, 0, others)
    )


def moving_average(old: np.ndarray, new: np.ndarray, momentum: float) -> np.ndarray:
    """Returns the average after one step; momentum is the weight of the old value."""
    old, new = np.asarray(old, np.float64), np.asarray(new, np.float64)
    return momentum * old + (1 - momentum) * new


def population_statistics(
    batches: Sequence[np.ndarray], *, axis: Axes = -1
) -> tuple[np.ndarray, np.ndarray]:
    """Returns E[mean_B] and m / (m - 1) * E[var_B]: Algorithm 2, line 10."""
    batch_moments = [moments(x, axis=axis) for x in batches]
    mean = np.mean([mean for _, mean, _ in batch_moments], axis=0)
    var = np.mean([m / (m - 1) * var for m, _, var in batch_moments], axis=0)
    return mean, var


def _prepare(
    x: np.ndarray, axis: Axes, mask: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """Returns wide x with 0 where masked, the full mask, and the axes to sum over."""
    x = np.asarray(x)
    x = x.astype(np.complex128 if np.iscomplexobj(x) else np.float64)
    features = {a % x.ndim for a in np.atleast_1d(axis)}
    others = tuple(a for a in range(x.ndim) if a not in features)
    valid = np.broadcast_to(True if mask is None else np.asarray(mask, bool), x.shape)
    return np.where(valid, x, 0), valid, others


def _expanded(
    values: np.ndarray | None, default: float, others: tuple[int, ...]
) -> np.ndarray | float:
    if values is None:
        return default
    values = np.asarray(values)
    wide = np.complex128 if np.iscomplexobj(values) else np.float64
    return np.expand_dims(values.astype(wide), others)
