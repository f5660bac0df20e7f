"""The fully connected network, compared with the paper's network in NumPy."""

from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from models.networks import KEY, NORM, images_of, init, num_values

from bn_jax.models.mlp import MLP


@pytest.mark.parametrize(
    ("norm", "num_params"),
    [
        (None, 784 * 100 + 100 + 2 * (100 * 100 + 100) + 100 * 10 + 10),
        # A scale and a bias for each activation; the layer before has no bias.
        (NORM, 784 * 100 + 2 * 100 * 100 + 3 * 2 * 100 + 100 * 10 + 10),
    ],
)
def test_the_paper_network_has_its_number_of_parameters(norm, num_params):
    model = MLP(num_classes=10, norm=norm)
    images = jax.ShapeDtypeStruct((60, 28, 28, 1), jnp.float32)
    variables = jax.eval_shape(partial(model.init, train=True), KEY, images)
    assert num_values(variables["params"]) == num_params
    assert num_values(variables.get("batch_stats", {})) == (600 if norm else 0)


@pytest.mark.parametrize("norm", [None, NORM])
def test_only_layers_without_a_norm_have_a_bias(norm):
    model = MLP(num_classes=10, hidden_features=(4, 3), norm=norm)
    images = jax.ShapeDtypeStruct((2, 5), jnp.float32)
    params = jax.eval_shape(partial(model.init, train=True), KEY, images)["params"]
    for layer in ("hidden0", "hidden1"):
        assert ("bias" in params[layer]) == (norm is None)
    assert "bias" in params["logits"]
    assert {name for name in params if name.startswith("norm")} == (
        {"norm0", "norm1"} if norm else set()
    )


@cache
def small(norm):
    """Returns a network of two layers, variables away from 0 and 1, and images."""
    model = MLP(num_classes=3, hidden_features=(7, 5), nonlinearity=jnp.tanh, norm=norm)
    images = images_of(8, 4, 3, 1)
    variables = init(model, images, train=True)
    return model, jax.tree.map(lambda v: v + 0.3, variables), images


def by_hand(variables, images, *, train):
    """Returns the inputs of the nonlinearities and the scores, in float64."""
    params = jax.tree.map(np.float64, variables["params"])
    stats = variables.get("batch_stats", {})
    h, inputs = np.float64(images).reshape(len(images), -1), []
    for i in range(2):
        h = h @ params[f"hidden{i}"]["kernel"] + params[f"hidden{i}"].get("bias", 0)
        if f"norm{i}" in params:
            scale, bias = (params[f"norm{i}"][name] for name in ("scale", "bias"))
            if train:
                h = oracles.batch_norm(h, scale, bias)
            else:
                mean, var = (stats[f"norm{i}"][name] for name in ("mean", "var"))
                h = oracles.inference(h, scale, bias, mean, var)
        inputs.append(h)
        h = np.tanh(h)
    return inputs, h @ params["logits"]["kernel"] + params["logits"]["bias"]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("norm", [None, NORM])
def test_the_network_is_the_papers_written_out(norm, train):
    model, variables, images = small(norm)
    mutable = ["batch_stats", "intermediates"]
    apply = jax.jit(partial(model.apply, train=train, mutable=mutable))
    logits, updates = apply(variables, images)
    inputs, expected = by_hand(variables, images, train=train)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    for i, hidden in enumerate(inputs):
        (sown,) = updates["intermediates"][f"hidden{i}_input"]
        np.testing.assert_allclose(sown, hidden, rtol=1e-5, atol=1e-5)


def test_inputs_are_only_sown_where_they_are_asked_for():
    model = MLP(num_classes=3, hidden_features=(7,))
    variables = init(model, images_of(2, 4), train=True)
    logits = model.apply(variables, images_of(2, 4), train=True)
    chex.assert_shape(logits, (2, 3))


def test_weights_are_normal_with_the_given_deviation():
    model = MLP(num_classes=2, hidden_features=(100,), kernel_stddev=0.02)
    params = init(model, images_of(1, 784), train=True)["params"]
    kernel = np.asarray(params["hidden0"]["kernel"])
    # Five standard errors of 78,400 values.
    np.testing.assert_allclose(kernel.mean(), 0, atol=5 * 0.02 / 280)
    np.testing.assert_allclose(kernel.std(), 0.02, rtol=5 / 280 / np.sqrt(2))
