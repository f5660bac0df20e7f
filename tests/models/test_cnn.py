"""The convolutional network, compared with its docstring's network in NumPy."""

from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from models.networks import KEY, NORM, images_of, init, num_values

from bn_jax.models.cnn import CNN


@pytest.mark.parametrize(
    ("norm", "num_params"),
    [
        (None, 9 * 16 + 16 + 9 * 16 * 32 + 32 + 9 * 32 * 64 + 64 + 9 * 64 * 10 + 10),
        # A scale and a bias for each channel; the layer before has no bias.
        (NORM, 9 * (16 + 16 * 32 + 32 * 64) + 2 * (16 + 32 + 64) + 9 * 64 * 10 + 10),
    ],
)
def test_the_network_has_its_number_of_parameters(norm, num_params):
    model = CNN(num_classes=10, norm=norm)
    images = jax.ShapeDtypeStruct((8, 28, 28, 1), jnp.float32)
    variables = jax.eval_shape(partial(model.init, train=True), KEY, images)
    assert num_values(variables["params"]) == num_params
    statistics = variables.get("batch_stats", {})
    assert num_values(statistics) == (2 * (16 + 32 + 64) if norm else 0)


@cache
def small(norm):
    """Returns a network of two layers, variables away from 0 and 1, and images."""
    model = CNN(num_classes=3, channels=(4, 5), norm=norm)
    # The pooling of the second block drops the last row of its input.
    images = images_of(8, 10, 8, 2)
    variables = init(model, images, train=True)
    return model, jax.tree.map(lambda v: v + 0.1, variables), images


def by_hand(variables, images, *, train):
    """Returns the inputs of the nonlinearities and the scores, in float64."""
    params = jax.tree.map(np.float64, variables["params"])
    stats = variables.get("batch_stats", {})
    h, inputs = np.float64(images), []
    for i in range(2):
        layer = params[f"hidden{i}"]
        padded = np.pad(h, ((0, 0), (1, 1), (1, 1), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
        h = np.einsum("bhwcij,ijco->bhwo", windows, layer["kernel"])
        h = h + layer.get("bias", 0)
        if f"norm{i}" in params:
            scale, bias = (params[f"norm{i}"][name] for name in ("scale", "bias"))
            if train:
                h = oracles.batch_norm(h, scale, bias)
            else:
                mean, var = (stats[f"norm{i}"][name] for name in ("mean", "var"))
                h = oracles.inference(h, scale, bias, mean, var)
        inputs.append(h)
        h = np.maximum(h, 0)
        h = np.maximum(h[:, :, 0:-1:2], h[:, :, 1::2])
        h = np.maximum(h[:, 0:-1:2], h[:, 1::2])
    h = h.reshape(len(h), -1)
    return inputs, h @ params["logits"]["kernel"] + params["logits"]["bias"]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("norm", [None, NORM])
def test_the_network_is_what_its_docstring_says_written_out(norm, train):
    model, variables, images = small(norm)
    mutable = ["batch_stats", "intermediates"]
    apply = jax.jit(partial(model.apply, train=train, mutable=mutable))
    logits, updates = apply(variables, images)
    inputs, expected = by_hand(variables, images, train=train)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    for i, hidden in enumerate(inputs):
        (sown,) = updates["intermediates"][f"hidden{i}_input"]
        np.testing.assert_allclose(sown, hidden, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "shape", "message"),
    [
        ({}, (2, 7, 28, 1), "at least 8 x 8 pixels, but the images have 7 x 28; fewer"),
        ({}, (2, 28, 4, 1), "at least 8 x 8 pixels, but the images have 28 x 4; fewer"),
        ({"channels": (2,) * 5}, (2, 28, 28, 1), "5 blocks, .* at least 32 x 32"),
        ({}, (2, 28, 28), r"must have the axes .* the shape \(2, 28, 28\)"),
        ({}, (2, 784), r"must have the axes .* the shape \(2, 784\)"),
        ({"channels": ()}, (2, 28, 28, 1), r"at least one block, .* is \(\)"),
        ({"channels": (4, 0)}, (2, 28, 28, 1), r"one channel each, .* \(4, 0\)"),
        ({"kernel_size": 0}, (2, 28, 28, 1), "kernel_size must be at least 1 .* is 0"),
    ],
)
def test_what_no_block_can_take_is_refused(fields, shape, message):
    model = CNN(num_classes=10, **fields)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(partial(model.init, train=False), KEY, images_of(*shape))


def test_the_smallest_images_are_one_pixel_in_the_end():
    model = CNN(num_classes=10)
    images = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
    variables = jax.eval_shape(partial(model.init, train=False), KEY, images)
    chex.assert_shape(variables["params"]["logits"]["kernel"], (64, 10))
