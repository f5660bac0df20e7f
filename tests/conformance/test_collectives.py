"""All-reduces: two forward, one backward, none in inference."""

import math
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import normal
from conformance.modes import over_devices, place

import bn_jax
from benchmarks.hlo import count_collectives

# Each test compiles programs of its own: together they take most of a minute.
pytestmark = pytest.mark.slow

NUM_DEVICES = 8
NAMED = (
    "pmap",
    "shard_map",
    pytest.param("shard_map_unchecked", marks=pytest.mark.slow),
)
SYNCHRONIZED = (*NAMED, "jit")
# The batch has 32 examples, four on each device.
GHOST_SIZES, JOINING_SIZES = (2, 4), (8, 32)
NONE, ONE, TWO, THREE, FOUR = (Counter(["all-reduce"] * number) for number in range(5))
masked_or_not = pytest.mark.parametrize("masked", [False, True], ids=["full", "masked"])
every_mode = pytest.mark.parametrize("mode", SYNCHRONIZED)
# Under jit XLA decides how groups are summed.
every_named_mode = pytest.mark.parametrize("mode", NAMED)

X = normal(32, 3)
MASK = np.arange(32)[:, None] % 3 > 0
PARAMS = {"scale": np.ones(3, np.float32), "bias": np.zeros(3, np.float32)}


def make_operator(masked, **settings):
    def operator(axis_name, params, x, mask):
        stats = {"mean": jnp.zeros(3), "var": jnp.ones(3)}
        return bn_jax.batch_norm(
            x,
            params["scale"],
            params["bias"],
            stats,
            mask=mask if masked else None,
            axis_name=axis_name,
            **settings,
        )

    return operator


def collectives_of(mode, function, *more):
    """Collectives of a function of parameters, x, the mask and further arrays."""
    arguments = place(mode, NUM_DEVICES, PARAMS, X, MASK, *more)
    compiled = jax.jit(function).lower(*arguments).compile()
    return count_collectives(compiled.as_text())


def forward(mode, *, masked=False, **settings):
    """Collectives of the operator's result and statistics."""
    operator = make_operator(masked, **settings)
    return collectives_of(mode, over_devices(mode, NUM_DEVICES, operator))


def forward_and_backward(mode, *, masked=False, **settings):
    """Collectives of the activations and their gradient."""
    operator = over_devices(mode, NUM_DEVICES, make_operator(masked, **settings))

    def pull_back(params, x, mask, dy):
        y, back = jax.vjp(lambda x: operator(params, x, mask)[0], x)
        return y, back(dy.reshape(y.shape))

    return collectives_of(mode, pull_back, X)


@masked_or_not
@every_mode
def test_the_forward_pass_has_two_all_reduces(mode, masked):
    assert forward(mode, masked=masked) == TWO


@masked_or_not
@every_mode
def test_the_gradient_of_the_activations_adds_one_all_reduce(mode, masked):
    assert forward_and_backward(mode, masked=masked) == THREE


@every_named_mode
def test_groups_of_an_axis_have_no_more_all_reduces(mode):
    indices = np.arange(NUM_DEVICES).reshape(2, -1).tolist()
    assert forward(mode, axis_index_groups=indices) == TWO
    assert forward_and_backward(mode, axis_index_groups=indices) == THREE


@masked_or_not
@every_named_mode
def test_groups_that_join_devices_add_one_for_their_average(mode, masked):
    assert forward(mode, masked=masked, group_size=8) == THREE
    # One group of all examples is its own average.
    assert forward(mode, masked=masked, group_size=32) == TWO


@pytest.mark.parametrize(("group_size", "masked"), [(2, True), (4, False)])
@every_named_mode
def test_groups_on_devices_have_one_for_their_average(mode, masked, group_size):
    assert forward(mode, masked=masked, group_size=group_size) == ONE


@pytest.mark.parametrize("group_size", JOINING_SIZES)
@every_named_mode
def test_the_gradient_of_groups_of_devices_adds_one_all_reduce(mode, group_size):
    assert forward_and_backward(mode, group_size=group_size) == THREE


@pytest.mark.parametrize("group_size", GHOST_SIZES)
@every_named_mode
def test_activations_and_gradient_of_groups_on_devices_cross_none(mode, group_size):
    assert forward_and_backward(mode, group_size=group_size) == NONE


@pytest.mark.parametrize("group_size", [2, 8])
@every_mode
def test_inference_after_training_in_groups_has_no_collective(mode, group_size):
    found = forward(mode, use_running_average=True, group_size=group_size)
    assert found == NONE


@masked_or_not
@every_mode
def test_inference_has_no_collective(mode, masked):
    assert forward(mode, masked=masked, use_running_average=True) == NONE


@every_mode
def test_inference_that_updates_statistics_has_two_all_reduces(mode):
    found = forward(mode, use_running_average=True, update_running_average=True)
    assert found == TWO


def test_a_vmap_of_networks_over_sharded_examples_has_two_all_reduces(make_mesh):
    networks = normal(3, 8, 4)
    sharding = jax.NamedSharding(make_mesh(devices=4), jax.P(None, "devices"))
    stats = {"mean": jnp.zeros((3, 4)), "var": jnp.ones((3, 4))}

    def apply(x, stats):
        return bn_jax.batch_norm(x, None, None, stats)

    compiled = jax.jit(jax.vmap(apply)).lower(jax.device_put(networks, sharding), stats)
    assert count_collectives(compiled.compile().as_text()) == TWO


def test_collectives_that_are_there_are_counted():
    def local_moments(axis_name, params, x, mask):
        mean = jax.lax.pmean(jnp.mean(x, 0), axis_name)
        return mean, jax.lax.pmean(jnp.mean(jnp.square(x - mean), 0), axis_name)

    two_pass = over_devices("shard_map", NUM_DEVICES, local_moments)
    assert collectives_of("shard_map", two_pass) == TWO


def test_the_program_for_more_devices_has_arrays_of_linear_size():
    """Counts the values of all arrays: gathered moments would be of quadratic size."""

    def number_of_values(num_devices):
        params = jax.tree.map(jnp.asarray, PARAMS)

        def train(x):
            return make_operator(False)("devices", params, x, None)

        x = jnp.ones((num_devices, 2, 3))
        mapped = jax.vmap(train, axis_name="devices")
        text = jax.jit(mapped).lower(x).as_text()
        shapes = re.findall(r"tensor<([\dx]*)x[fi]\d+>", text)
        return sum(math.prod(map(int, shape.split("x"))) for shape in shapes)

    few, many = number_of_values(64), number_of_values(1024)
    assert many <= 16.5 * few
