"""What crosses devices: one sum forward, one backward, nothing in inference.

The forward pass holds a second all-reduce, in the branch that a shift takes which
lies far from the mean. A running mean that has followed the batches does not take it:
in a steady state one is executed.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conformance.hlo import count_collectives
from conformance.modes import over_devices, place

import bn_jax

NUM_DEVICES = 8
NAMED = ("pmap", "shard_map", "shard_map_unchecked")
SYNCHRONIZED = (*NAMED, "jit")
# Of the 32 examples each device has four.
GHOST_SIZES, JOINING_SIZES = (2, 4), (8, 32)
masked_or_not = pytest.mark.parametrize("masked", [False, True], ids=["full", "masked"])
every_mode = pytest.mark.parametrize("mode", SYNCHRONIZED)
# Under jit it is XLA that decides how groups are summed.
every_named_mode = pytest.mark.parametrize("mode", NAMED)

X = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)
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


def make_pull_back(mode, operator):
    """Activations and their gradient, of parameters, x, the mask and dy."""
    forward = over_devices(mode, NUM_DEVICES, operator)

    def pull_back(params, x, mask, dy):
        y, back = jax.vjp(lambda x: forward(params, x, mask)[0], x)
        return y, back(dy.reshape(y.shape))

    return pull_back


def collectives_of(mode, function, *more):
    """Collectives of a function of parameters, x, the mask and further arrays."""
    arguments = place(mode, NUM_DEVICES, PARAMS, X, MASK, *more)
    compiled = jax.jit(function).lower(*arguments).compile()
    return count_collectives(compiled.as_text())


@masked_or_not
@every_mode
def test_the_forward_pass_executes_one_all_reduce(mode, masked):
    forward = over_devices(mode, NUM_DEVICES, make_operator(masked))
    collectives = collectives_of(mode, forward)
    assert collectives.always == {"all-reduce": 1}
    assert collectives.in_branches == {"all-reduce": 1}


@pytest.mark.parametrize("group_size", JOINING_SIZES)
@masked_or_not
@every_named_mode
def test_groups_of_devices_execute_one_all_reduce(mode, masked, group_size):
    operator = make_operator(masked, group_size=group_size)
    collectives = collectives_of(mode, over_devices(mode, NUM_DEVICES, operator))
    assert collectives.always == {"all-reduce": 1}
    assert collectives.in_branches == {"all-reduce": 1}


@pytest.mark.parametrize("group_size", GHOST_SIZES)
@masked_or_not
@every_named_mode
def test_groups_on_devices_execute_one_for_their_average(mode, masked, group_size):
    operator = make_operator(masked, group_size=group_size)
    collectives = collectives_of(mode, over_devices(mode, NUM_DEVICES, operator))
    assert collectives.always == {"all-reduce": 1}
    assert not collectives.in_branches


@masked_or_not
@every_mode
def test_the_gradient_of_the_activations_adds_one_all_reduce(mode, masked):
    pull_back = make_pull_back(mode, make_operator(masked))
    collectives = collectives_of(mode, pull_back, X)
    assert collectives.always == {"all-reduce": 2}
    assert collectives.in_branches == {"all-reduce": 1}


@pytest.mark.parametrize("group_size", JOINING_SIZES)
@every_named_mode
def test_the_gradient_of_groups_of_devices_adds_one_all_reduce(mode, group_size):
    pull_back = make_pull_back(mode, make_operator(False, group_size=group_size))
    collectives = collectives_of(mode, pull_back, X)
    assert collectives.always == {"all-reduce": 2}
    assert collectives.in_branches == {"all-reduce": 1}


@pytest.mark.parametrize("group_size", GHOST_SIZES)
@every_named_mode
def test_activations_and_gradient_of_groups_on_devices_cross_none(mode, group_size):
    pull_back = make_pull_back(mode, make_operator(False, group_size=group_size))
    collectives = collectives_of(mode, pull_back, X)
    assert not collectives.always
    assert not collectives.in_branches


@pytest.mark.parametrize("group_size", [*GHOST_SIZES, *JOINING_SIZES])
@every_mode
def test_inference_after_training_in_groups_has_no_collective(mode, group_size):
    settings = {"use_running_average": True, "group_size": group_size}
    operator = make_operator(False, **settings)
    collectives = collectives_of(mode, over_devices(mode, NUM_DEVICES, operator))
    assert not collectives.always
    assert not collectives.in_branches


@masked_or_not
@every_mode
def test_inference_has_no_collective(mode, masked):
    operator = make_operator(masked, use_running_average=True)
    collectives = collectives_of(mode, over_devices(mode, NUM_DEVICES, operator))
    assert not collectives.always
    assert not collectives.in_branches


@every_mode
def test_inference_that_updates_statistics_executes_one_all_reduce(mode):
    operator = make_operator(
        False, use_running_average=True, update_running_average=True
    )
    collectives = collectives_of(mode, over_devices(mode, NUM_DEVICES, operator))
    assert collectives.always == {"all-reduce": 1}


def test_a_mean_of_means_would_be_counted_as_two():
    def local_moments(axis_name, params, x, mask):
        mean = jax.lax.pmean(jnp.mean(x, 0), axis_name)
        return mean, jax.lax.pmean(jnp.mean(jnp.square(x - mean), 0), axis_name)

    two_pass = over_devices("shard_map", NUM_DEVICES, local_moments)
    assert collectives_of("shard_map", two_pass).always == {"all-reduce": 2}
