"""The mask of norms, against trees written by hand."""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import bn_jax


class Net(nn.Module):
    """A norm of each kind, and parameters with similar names."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(3, name="dense")(x)
        x = bn_jax.BatchNorm(use_running_average=False, name="norm")(x)
        x = nn.BatchNorm(use_running_average=False, use_scale=False, name="shift")(x)
        x = nn.LayerNorm(name="layer")(x)
        return x * self.param("scale", nn.initializers.ones, (3,))


@pytest.fixture(scope="module")
def variables() -> Any:
    return jax.eval_shape(Net().init, jax.random.key(0), np.ones((4, 2), np.float32))


OTHERS = {"dense": {"kernel": False, "bias": False}, "scale": False}
BATCH_NORMS = {"norm": {"scale": True, "bias": True}, "shift": {"bias": True}}


def test_names_alone_mark_every_norm(variables: Any) -> None:
    layer = {"layer": {"scale": True, "bias": True}}
    assert bn_jax.norm_mask(variables["params"]) == OTHERS | BATCH_NORMS | layer


def test_statistics_mark_the_batch_norms(variables: Any) -> None:
    mask = bn_jax.norm_mask(variables["params"], variables["batch_stats"])
    layer = {"layer": {"scale": False, "bias": False}}
    assert mask == OTHERS | BATCH_NORMS | layer


def test_the_parameters_of_a_single_layer_are_marked() -> None:
    params, stats = {"scale": 1.0, "bias": 0.0}, {"mean": 0.0, "var": 1.0}
    assert bn_jax.norm_mask(params) == {"scale": True, "bias": True}
    assert bn_jax.norm_mask(params, stats) == {"scale": True, "bias": True}


def test_a_tree_without_names_has_no_norms() -> None:
    assert bn_jax.norm_mask(1.0) is False
    assert bn_jax.norm_mask([1.0, 2.0]) == [False, False]


def test_partitioned_parameters_are_marked() -> None:
    params = {"norm": {"scale": nn.Partitioned(jnp.ones(2), names=("x",))}}
    assert jax.tree.leaves(bn_jax.norm_mask(params)) == [True]


def test_the_state_of_an_nnx_model_is_marked() -> None:
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(2, 3, rngs=rngs), nnx.BatchNorm(3, rngs=rngs))
    params, stats = nnx.state(model, nnx.Param), nnx.state(model, nnx.BatchStat)
    for mask in (bn_jax.norm_mask(params), bn_jax.norm_mask(params, stats)):
        assert nnx.to_pure_dict(mask) == {
            "layers": {
                0: {"kernel": False, "bias": False},
                1: {"scale": True, "bias": True},
            }
        }


def test_optax_takes_the_function_as_a_mask() -> None:
    tx = optax.masked(optax.set_to_zero(), bn_jax.norm_mask)
    params = {"dense": {"kernel": 1.0, "bias": 1.0}, "norm": {"scale": 1.0}}
    updates, _ = tx.update(params, tx.init(params))
    expected = {"dense": {"kernel": 1.0, "bias": 1.0}, "norm": {"scale": 0.0}}
    chex.assert_trees_all_equal(updates, expected)
