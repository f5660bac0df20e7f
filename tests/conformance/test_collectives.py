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
SYNCHRONIZED = ("pmap", "shard_map", "shard_map_unchecked", "jit")
masked_or_not = pytest.mark.parametrize("masked", [False, True], ids=["full", "masked"])
every_mode = pytest.mark.parametrize("mode", SYNCHRONIZED)

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


@masked_or_not
@every_mode
def test_the_gradient_of_the_activations_adds_one_all_reduce(mode, masked):
    forward = over_devices(mode, NUM_DEVICES, make_operator(masked))

    def pull_back(params, x, mask, dy):
        y, back = jax.vjp(lambda x: forward(params, x, mask)[0], x)
        return y, back(dy.reshape(y.shape))

    collectives = collectives_of(mode, pull_back, X)
    assert collectives.always == {"all-reduce": 2}
    assert collectives.in_branches == {"all-reduce": 1}


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
