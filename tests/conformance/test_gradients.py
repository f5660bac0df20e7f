"""Gradients of devices: the recipes of a loop that have the right scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conformance.modes import AXIS, over_devices

import bn_jax

ROWS = jnp.array([[0.0], [1.0], [2.0], [5.0]])
TARGETS = jnp.array([[1.0], [0.0], [0.0], [1.0]])
DSCALE, DBIAS = 0.450935, -0.529360


def normalize(x, scale=None, bias=None, axis_name=None):
    return bn_jax.batch_norm(x, scale, bias, None, axis_name=axis_name)[0]


def assert_gradients(gradients, dscale=DSCALE, dbias=DBIAS):
    np.testing.assert_allclose(gradients[0], dscale, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradients[1], dbias, rtol=1e-5, atol=1e-6)


def gradients_of_devices(mode, mean_inside, mean_outside):
    """Gradients of scale and bias on each of two devices, in one of four forms."""

    def body(axis, params, x, targets):
        def loss(params):
            y = normalize(x, params["scale"], params["bias"], axis)
            local = jnp.mean(jnp.square(jnp.tanh(y) - targets))
            return jax.lax.pmean(local, axis) if mean_inside else local

        gradients = jax.grad(loss)(params)
        return jax.lax.pmean(gradients, AXIS) if mean_outside else gradients

    params = {"scale": jnp.ones(1), "bias": jnp.zeros(1)}
    gradients = jax.jit(over_devices(mode, 2, body))(params, ROWS, TARGETS)
    return np.ravel(gradients["scale"]), np.ravel(gradients["bias"])


@pytest.mark.parametrize("mode", ["pmap", "shard_map", "shard_map_unchecked", "vmap"])
def test_gradients_of_the_portable_recipe_have_the_right_scale(mode):
    assert_gradients(gradients_of_devices(mode, True, True))


@pytest.mark.parametrize("mode", ["pmap", "shard_map_unchecked"])
def test_gradients_of_a_pmap_loop_have_the_right_scale(mode):
    assert_gradients(gradients_of_devices(mode, False, True))


def test_gradients_of_a_pmap_loop_are_twice_too_large_in_default_shard_map():
    assert_gradients(
        gradients_of_devices("shard_map", False, True), 2 * DSCALE, 2 * DBIAS
    )


def test_gradients_of_a_reduced_loss_need_no_reduction_in_default_shard_map():
    assert_gradients(gradients_of_devices("shard_map", True, False))


@pytest.mark.parametrize("mode", ["pmap", "shard_map_unchecked"])
def test_gradients_that_are_not_reduced_differ_between_devices(mode):
    dscale, dbias = gradients_of_devices(mode, True, False)
    expected = [0.920526, -0.018656], [-1.047086, -0.011634]
    assert_gradients((dscale, dbias), *expected)
    np.testing.assert_allclose(np.mean(dscale), DSCALE, rtol=1e-5)


# Gradients of the activations, of the sum and of the mean of all losses.
@pytest.mark.parametrize(
    ("mode", "reduced", "too_large"),
    [
        ("pmap", False, 1),
        ("shard_map", False, 1),
        ("shard_map_unchecked", False, 1),
        ("shard_map", True, 1),
        # Each device's reduced loss is the sum of the parts of all.
        ("shard_map_unchecked", True, 2),
    ],
)
def test_gradients_of_activations_have_the_scale_of_what_is_summed(
    mode, reduced, too_large
):
    def losses(x, targets, axis=None):
        return jnp.square(jnp.tanh(normalize(x, axis_name=axis)) - targets)

    def body(axis, _, x, targets):
        def loss(x):
            if reduced:
                return jax.lax.pmean(jnp.mean(losses(x, targets, axis)), axis)
            return jnp.sum(losses(x, targets, axis))

        return jax.grad(loss)(x)

    over_all = jnp.mean if reduced else jnp.sum
    expected = jax.jit(jax.grad(lambda x: over_all(losses(x, TARGETS))))(ROWS)
    actual = jax.jit(over_devices(mode, 2, body))({}, ROWS, TARGETS)
    np.testing.assert_allclose(
        np.ravel(actual), too_large * np.ravel(expected), rtol=1e-5, atol=1e-6
    )
