"""Common properties of the fully connected and the convolutional network."""

from functools import cache, partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from models.networks import KEY, NORM, images_of, init

from bn_jax.models.cnn import CNN
from bn_jax.models.mlp import MLP


def mlp(*features, **fields):
    return MLP(num_classes=3, hidden_features=features, **fields)


def cnn(*features, **fields):
    return CNN(num_classes=3, channels=features, **fields)


networks = pytest.mark.parametrize("network", [mlp, cnn])
IMAGES = images_of(8, 8, 8, 1)


@cache
def normalized(network, *features):
    """A network with norms, and its variables."""
    model = network(*features, norm=NORM)
    return model, init(model, IMAGES, train=True)


@networks
def test_training_moves_the_statistics_of_every_layer_and_inference_none(network):
    model, variables = normalized(network, 7, 5)
    for train in (True, False):
        apply = jax.jit(partial(model.apply, train=train, mutable=["batch_stats"]))
        _, updates = apply(variables, IMAGES)
        before = jax.tree.leaves(variables["batch_stats"])
        after = jax.tree.leaves(updates["batch_stats"])
        moved = [bool(np.any(a != b)) for a, b in zip(before, after, strict=True)]
        assert moved == [train] * 4


@networks
def test_the_norm_is_made_from_its_factory_for_each_layer(network):
    made = []

    def factory(**keywords):
        made.append(keywords)
        return nn.LayerNorm(name=keywords["name"])

    init(network(2, 3, norm=factory), IMAGES, train=False)
    assert made == [
        {"use_running_average": True, "name": "norm0"},
        {"use_running_average": True, "name": "norm1"},
    ]


@networks
@pytest.mark.parametrize("features", [(7,), (7, 5), (7, 5, 4)])
def test_the_last_hidden_input_is_named(network, features):
    model = network(*features)
    mutable = ["params", "intermediates"]
    init_with_output = partial(model.init_with_output, train=True, mutable=mutable)
    _, sown = jax.eval_shape(init_with_output, KEY, IMAGES)
    (hidden,) = sown["intermediates"][model.last_hidden_input]
    assert model.last_hidden_input == f"hidden{len(features) - 1}_input"
    assert hidden.shape[-1] == features[-1]


@networks
def test_float32_by_name_is_float32_by_default_to_the_last_bit(network):
    model, variables = normalized(network, 7)
    outputs = [
        jax.jit(partial(one.apply, train=True, mutable=["batch_stats"]))(
            variables, IMAGES
        )
        for one in (model, model.clone(dtype=jnp.float32))
    ]
    chex.assert_trees_all_equal(*outputs)


@networks
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_near_float32(network, dtype):
    model, variables = normalized(network, 7, 5)
    expected, half = (
        jax.jit(partial(one.apply, train=False))(variables, IMAGES)
        for one in (model, model.clone(dtype=dtype))
    )
    # bfloat16 keeps 8 bits.
    np.testing.assert_allclose(half, expected, rtol=0.05, atol=0.05)
    assert np.any(half != expected)


def gradient(model, variables, images):
    """The gradient of a loss by the parameters."""

    def loss(params):
        scores, _ = model.apply(
            {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(jnp.sin(scores))

    return jax.grad(loss)(variables["params"])


@networks
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_gradients_on_checked_devices_are_those_of_the_whole_batch(
    network, dtype, make_mesh
):
    model, variables = normalized(network, 7)
    model = model.clone(dtype=dtype)
    everywhere = PartitionSpec()
    mapped = jax.shard_map(
        partial(gradient, model.clone(norm=partial(NORM, axis_name="d"))),
        mesh=make_mesh(d=2),
        in_specs=(everywhere, PartitionSpec("d")),
        out_specs=everywhere,
    )
    expected = jax.jit(partial(gradient, model))(variables, IMAGES)
    actual = jax.jit(mapped)(variables, IMAGES)
    # Sums in another order, which round an activation here and there to the next number
    # of bfloat16.
    tolerance = 1e-4 if dtype is None else 1e-2
    chex.assert_trees_all_close(actual, expected, rtol=tolerance, atol=tolerance)


@networks
def test_products_with_the_hessian_are_alike_in_either_mode(network):
    model, variables = normalized(network, 7)
    params = variables["params"]

    def gradient_of(params):
        return gradient(model, {**variables, "params": params}, IMAGES)

    forward = jax.jit(lambda v: jax.jvp(gradient_of, (params,), (v,))[1])(params)
    # The Hessian is its own transpose.
    (backward,) = jax.jit(lambda v: jax.vjp(gradient_of, params)[1](v))(params)
    # Second derivatives of normalization cancel.
    chex.assert_trees_all_close(forward, backward, rtol=1e-3, atol=1e-3)
