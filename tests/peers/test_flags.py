"""Flags of training and updating, and transformations that run a layer twice."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from peers import formulas
from peers.calls import is_close, train

import bn_jax


@pytest.mark.parametrize("flag", [False, True])
def test_flax_cannot_trace_the_train_flag(flag):
    x = jnp.array([[1.0], [3.0]])
    plain = train(x, use_running_average=flag)
    traced = jax.jit(lambda flag: train(x, use_running_average=flag))(flag)
    for got, want in zip(*map(jax.tree.leaves, (traced, plain)), strict=True):
        assert is_close(got, want)
    layer = nn.BatchNorm()
    variables = layer.init(jax.random.key(0), x, use_running_average=True)
    with pytest.raises(jax.errors.TracerBoolConversionError):
        jax.jit(layer.apply)(variables, x, flag)


@pytest.mark.parametrize(("source", "update"), [(False, False), (True, True)])
def test_flax_cannot_choose_source_and_update_apart(source, update):
    x = jnp.array([[1.0], [3.0]])
    y, stats = train(
        x,
        use_running_average=source,
        update_running_average=update,
        momentum=0.0,
    )
    assert is_close(y, [[1], [3]] if source else [[-1], [1]], atol=1e-4)
    assert is_close(stats["mean"], [2.0] if update else [0.0])
    layer = nn.BatchNorm(use_running_average=source, momentum=0.0)
    variables = layer.init(jax.random.key(0), x)
    _, updates = layer.apply(variables, x, mutable=["batch_stats"])
    assert is_close(updates["batch_stats"]["mean"], [0.0 if source else 2.0])
    assert not is_close(updates["batch_stats"]["mean"], [2.0 if update else 0.0])


def test_pytorch_updates_the_statistics_twice_under_checkpointing():
    x = jnp.array([[1.0], [3.0]])
    layer = nn.remat(bn_jax.BatchNorm)(use_running_average=False)
    variables = layer.init(jax.random.key(0), x)

    def ours(x):
        y, updates = layer.apply(variables, x, mutable=["batch_stats"])
        return jnp.sum(jnp.tanh(y)), updates["batch_stats"]

    _, stats = jax.grad(ours, has_aux=True)(x)
    assert is_close(stats["mean"], [0.02])

    def mean_of_theirs(transform):
        running = {"mean": 0.0}

        def theirs(x):
            y = formulas.updated_by_side_effect(x, running)
            return jnp.sum(jnp.tanh(y))

        jax.grad(transform(theirs))(x)
        jax.effects_barrier()
        return running["mean"]

    assert is_close(mean_of_theirs(lambda function: function), [0.02])
    assert not is_close(mean_of_theirs(jax.checkpoint), [0.02])
