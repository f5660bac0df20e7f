"""The MNIST network of the paper in float64 NumPy: forwards, backwards, one step.

Parameters and statistics have Flax's names and layout; a network without `norm0` has
biases in its hidden layers.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import oracles

Tree = Mapping[str, Mapping[str, np.ndarray]]


class Forward(NamedTuple):
    """Results of the forward pass; lists have one entry a hidden layer."""

    activations: list[np.ndarray]
    products: list[np.ndarray]
    logits: np.ndarray
    loss: float


class Prediction(NamedTuple):
    """Input of the last hidden nonlinearity, and the scores."""

    last_hidden_input: np.ndarray
    logits: np.ndarray


class Step(NamedTuple):
    """Loss before one step of gradient descent, and what there is after it."""

    loss: float
    params: dict[str, dict[str, np.ndarray]]
    batch_stats: dict[str, dict[str, np.ndarray]]


def forward(
    params: Tree,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    label_smoothing: float = 0.0,
) -> Forward:
    """The network in training mode: statistics are those of the batch."""
    activations = [np.reshape(images, (len(images), -1)).astype(np.float64)]
    products = []
    for index in range(len(_hidden(params))):
        products.append(activations[-1] @ params[f"hidden{index}"]["kernel"])
        if f"norm{index}" in params:
            h = oracles.batch_norm(products[-1], **params[f"norm{index}"])
        else:
            h = products[-1] + params[f"hidden{index}"]["bias"]
        activations.append(1 / (1 + np.exp(-h)))
    logits = activations[-1] @ params["logits"]["kernel"] + params["logits"]["bias"]
    loss = cross_entropy(logits, labels, label_smoothing=label_smoothing)
    return Forward(activations, products, logits, loss)


def gradients(
    params: Tree,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    label_smoothing: float = 0.0,
) -> dict[str, Any]:
    """Derivatives of the mean cross-entropy with respect to each parameter."""
    activations, products, logits, _ = forward(params, images, labels)
    dlogits = np.exp(_log_softmax(logits))
    dlogits -= _targets(labels, logits.shape[1], label_smoothing)
    dlogits /= len(labels)
    grads = {"logits": _dense_gradients(activations[-1], dlogits)}
    dh = dlogits @ params["logits"]["kernel"].T
    for index in reversed(range(len(_hidden(params)))):
        dh = dh * activations[index + 1] * (1 - activations[index + 1])
        if f"norm{index}" in params:
            scale = params[f"norm{index}"]["scale"]
            dh, dscale, dbias = oracles.batch_norm_gradients(products[index], dh, scale)
            grads[f"norm{index}"] = {"scale": dscale, "bias": dbias}
        grads[f"hidden{index}"] = _dense_gradients(activations[index], dh)
        if f"norm{index}" in params:
            del grads[f"hidden{index}"]["bias"]
        dh = dh @ params[f"hidden{index}"]["kernel"].T
    return grads


def sgd_step(
    params: Tree,
    batch_stats: Tree,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    learning_rate: float,
    momentum: float,
    label_smoothing: float = 0.0,
) -> Step:
    """One step of plain gradient descent, and of the moving averages."""
    batch = forward(params, images, labels, label_smoothing=label_smoothing)
    grads = gradients(params, images, labels, label_smoothing=label_smoothing)
    new_params = {
        layer: {
            name: np.asarray(value, np.float64) - learning_rate * grads[layer][name]
            for name, value in values.items()
        }
        for layer, values in params.items()
    }
    new_stats = {}
    for index, layer in enumerate(sorted(batch_stats)):
        _, mean, var = oracles.moments(batch.products[index])
        new_stats[layer] = {
            name: oracles.moving_average(batch_stats[layer][name], value, momentum)
            for name, value in (("mean", mean), ("var", var))
        }
    return Step(batch.loss, new_params, new_stats)


def population_statistics(params: Tree, batches: Sequence[np.ndarray]) -> Any:
    """Algorithm 2, lines 7 to 10, of every layer."""
    unused = np.zeros(len(batches[0]), int)
    products = [forward(params, images, unused).products for images in batches]
    statistics = {}
    for index, of_layer in enumerate(zip(*products, strict=True)):
        mean, var = oracles.population_statistics(of_layer)
        statistics[f"norm{index}"] = {"mean": mean, "var": var}
    return statistics


def predict(params: Tree, batch_stats: Tree, images: np.ndarray) -> Prediction:
    """The network in inference mode, by the statistics given."""
    h = np.reshape(images, (len(images), -1)).astype(np.float64)
    for index in range(len(_hidden(params))):
        h = h @ params[f"hidden{index}"]["kernel"]
        if f"norm{index}" in params:
            stats = batch_stats[f"norm{index}"]
            h = oracles.inference(h, **params[f"norm{index}"], **stats)
        else:
            h = h + params[f"hidden{index}"]["bias"]
        last_hidden_input = h
        h = 1 / (1 + np.exp(-h))
    logits = h @ params["logits"]["kernel"] + params["logits"]["bias"]
    return Prediction(last_hidden_input, logits)


def cross_entropy(
    logits: np.ndarray, labels: np.ndarray, *, label_smoothing: float = 0.0
) -> float:
    """Mean over the examples, in nats."""
    targets = _targets(labels, logits.shape[1], label_smoothing)
    return float(-(targets * _log_softmax(logits)).sum(axis=1).mean())


def _dense_gradients(x: np.ndarray, dy: np.ndarray) -> dict[str, np.ndarray]:
    return {"kernel": x.T @ dy, "bias": dy.sum(axis=0)}


def _targets(
    labels: np.ndarray, num_classes: int, label_smoothing: float
) -> np.ndarray:
    """Szegedy et al. (2016), section 7: q'(k) = (1 - e) [k = y] + e / K."""
    one_hot = np.eye(num_classes)[labels]
    return (1 - label_smoothing) * one_hot + label_smoothing / num_classes


def _hidden(params: Tree) -> list[str]:
    return [layer for layer in params if layer.startswith("hidden")]


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
