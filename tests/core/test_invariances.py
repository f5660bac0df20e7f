import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import normal
from hypothesis import given
from hypothesis import strategies as st

from bn_jax.core.batch_norm import batch_norm

INPUTS, WEIGHTS = normal(32, 20), normal(20, 5, seed=1)
PROBE = normal(32, 5, seed=2)
# Scales far from one, whose squares stay in the range of float32.
FACTORS = st.floats(0.001, 1000)


def normalized(x, epsilon=0.0):
    stats = {"mean": jnp.zeros(x.shape[-1]), "var": jnp.ones(x.shape[-1])}
    return batch_norm(x, None, None, stats, epsilon=epsilon)[0]


@jax.jit
def layer(weights, bias, factor):
    return normalized(jnp.dot(INPUTS, factor * weights) + bias[None])


@jax.jit
def layer_gradients(inputs, weights):
    def loss(inputs, weights):
        return jnp.sum(PROBE * normalized(jnp.dot(inputs, weights)))

    return jax.grad(loss, argnums=(0, 1))(inputs, weights)


@given(factor=FACTORS)
def test_the_scale_of_the_weights_does_not_matter(factor):
    scaled = layer(WEIGHTS, jnp.zeros(5), factor)
    np.testing.assert_allclose(scaled, layer(WEIGHTS, jnp.zeros(5), 1.0), atol=1e-5)


@given(factor=FACTORS)
def test_a_negative_scale_turns_the_sign(factor):
    turned = layer(WEIGHTS, jnp.zeros(5), -factor)
    np.testing.assert_allclose(turned, -layer(WEIGHTS, jnp.zeros(5), 1.0), atol=1e-5)


@given(factor=FACTORS)
def test_larger_weights_get_smaller_gradients(factor):
    dinputs, dweights = layer_gradients(INPUTS, WEIGHTS)
    dinputs_scaled, dweights_scaled = layer_gradients(INPUTS, factor * WEIGHTS)
    np.testing.assert_allclose(dinputs_scaled, dinputs, atol=1e-5)
    np.testing.assert_allclose(factor * dweights_scaled, dweights, atol=1e-4)


def test_gradients_of_the_weights_are_orthogonal_to_them():
    _, dweights = layer_gradients(INPUTS, WEIGHTS)
    np.testing.assert_allclose(np.sum(dweights * WEIGHTS, axis=0), 0.0, atol=1e-4)


@given(biases=st.lists(st.floats(-100, 100, width=32), min_size=5, max_size=5))
def test_a_bias_in_front_is_inert(biases):
    shifted = layer(WEIGHTS, jnp.asarray(biases, jnp.float32), 1.0)
    # A bias of 100 rounds the activations to 4e-6; the norm divides them by 2 or more.
    np.testing.assert_allclose(shifted, layer(WEIGHTS, jnp.zeros(5), 1.0), atol=1e-5)


@pytest.mark.parametrize("bias", [0.0, 100.0])
def test_a_bias_in_front_gets_no_gradient(bias):
    def loss(bias):
        return jnp.sum(PROBE * layer(WEIGHTS, bias, 1.0))

    gradient = jax.jit(jax.grad(loss))(jnp.full(5, bias))
    np.testing.assert_allclose(gradient, np.zeros(5), atol=1e-5)


@given(order=st.permutations(range(32)))
def test_the_order_of_the_examples_is_kept(order):
    order = np.array(order)
    shuffled = layer_of(PROBE[order])
    np.testing.assert_allclose(shuffled, layer_of(PROBE)[order], atol=1e-5)


@given(factor=FACTORS, shift=st.floats(-10, 10))
def test_shift_and_scale_of_the_activations_do_not_matter(factor, shift):
    moved = layer_of(factor * (PROBE + shift))
    np.testing.assert_allclose(moved, layer_of(PROBE), atol=2e-5)


layer_of = jax.jit(normalized)
