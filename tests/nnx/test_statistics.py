"""Population statistics and microbatches of NNX models."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from arrays import normal
from flax import nnx
from layers.nnx_model import Model

import bn_jax
from bn_jax.nnx import (
    BatchMoments,
    accumulate_batch_stats,
    population_statistics,
)

OPTIONS = [
    {"momentum": None},
    {"momentum": 0.5, "debias": True},
    pytest.param({"variance_correction": 1}, marks=pytest.mark.slow),
    pytest.param({"skip_nonfinite": True}, marks=pytest.mark.slow),
]


class Linen(nn.Module):
    """The Linen counterpart of the NNX model."""

    settings: dict

    @nn.compact
    def __call__(self, x):
        fields = {"momentum": 0.9, **self.settings}
        x = bn_jax.BatchNorm(use_running_average=False, name="norm0", **fields)(x)
        x = jnp.tanh(nn.Dense(4, use_bias=False, name="linear")(x))
        return bn_jax.BatchNorm(use_running_average=False, name="norm1", **fields)(x)


def run(model, x):
    return model(x)


jitted = nnx.jit(run)


def linen_twin(model, x, **settings):
    linen = Linen(settings)
    variables = jax.jit(linen.init)(jax.random.key(0), x)
    variables["params"]["linear"]["kernel"] = model.linear.kernel[...]

    def apply(variables, x):
        return linen.apply(variables, x, mutable=["batch_stats", "batch_moments"])

    return variables, jax.jit(apply)


def inputs_of_norms(model, batches):
    """Returns the inputs of each norm, one array a batch, in float64."""
    kernel = np.float64(model.linear.kernel[...])
    return batches, [np.tanh(oracles.batch_norm(x) @ kernel) for x in batches]


def assert_close(state, expected):
    """Compares the norms of a state with a list of statistics, to 1e-6."""
    pure = nnx.to_pure_dict(state)["norms"]
    for i, stats in enumerate(expected):
        for name, value in stats.items():
            np.testing.assert_allclose(pure[i][name], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("wrap", [lambda f: f, nnx.jit], ids=["plain", "jit"])
def test_population_statistics_are_those_of_algorithm_2_and_of_linen(wrap):
    model, batches = Model(), normal(6, 8, 3)
    state = population_statistics(wrap(run), model, batches)
    oracle = [
        dict(zip(("mean", "var"), oracles.population_statistics(h), strict=True))
        for h in inputs_of_norms(model, batches)
    ]
    assert_close(state, oracle)
    variables, apply = linen_twin(model, batches[0])
    linen = bn_jax.population_statistics(apply, variables, batches)
    assert_close(state, [linen["norm0"], linen["norm1"]])


def test_population_statistics_change_the_model_only_when_it_is_updated():
    model, batches = Model(), normal(4, 8, 3)
    before = jax.tree.map(jnp.copy, nnx.state(model))
    state = population_statistics(jitted, model, batches)
    chex.assert_trees_all_equal(nnx.state(model), before)
    nnx.update(model, state)
    chex.assert_trees_all_equal(nnx.state(model, nnx.BatchStat), state)
    assert nnx.graphdef(model) == nnx.graphdef(Model())


def test_every_batch_finds_the_running_statistics_of_the_model():
    model, batches = Model(), normal(3, 8, 3)
    found = []

    def watch(model, x):
        found.append(np.array(model.norms[0].mean[...]))
        return model(x)

    population_statistics(watch, model, batches.at[0].set(jnp.nan))
    np.testing.assert_array_equal(found, np.zeros((3, 3)))


def test_a_frozen_layer_keeps_its_statistics():
    model, batches = Model(), normal(4, 8, 3)
    model.norms[0].mean[...] = jnp.full(3, 7.0)
    model.norms[0].use_running_average = True
    state = nnx.to_pure_dict(population_statistics(jitted, model, batches))["norms"]
    np.testing.assert_array_equal(state[0]["mean"], 7)
    assert np.any(state[1]["mean"] != 0)


def test_the_calls_of_a_shared_layer_count_as_batches():
    class Shared(nnx.Module):
        def __init__(self):
            self.a = self.b = bn_jax.nnx.BatchNorm(3, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.a(x), self.b(3 * x + 1)

    model, batches = Shared(), normal(4, 6, 3)
    state = population_statistics(jitted, model, batches)
    calls = [call for x in batches for call in (x, 3 * x + 1)]
    mean, var = oracles.population_statistics(calls)
    np.testing.assert_allclose(state["a"]["mean"][...], mean, rtol=1e-6)
    np.testing.assert_allclose(state["a"]["var"][...], var, rtol=1e-6)


@pytest.mark.parametrize(
    ("model", "batches", "message"),
    [
        (Model(nnx.BatchNorm), normal(2, 6, 3), "use bn_jax.nnx.BatchNorm"),
        (Model(use_running_average=True), normal(2, 6, 3), "in training mode"),
        (Model(), [], "at least one batch"),
    ],
    ids=["flax", "inference", "empty"],
)
def test_population_statistics_of_nothing_are_refused(model, batches, message):
    with pytest.raises(ValueError, match=f"^population_statistics: .*{message}"):
        population_statistics(jitted, model, batches)


@nnx.jit
def capture_microbatches(model, x):
    """Returns the moments that a scan over microbatches captures."""
    frozen = nnx.view(model, update_running_average=False)
    forward = nnx.capture(run, BatchMoments)
    return nnx.scan(forward, in_axes=(None, 0), out_axes=0)(frozen, x)[1]


@pytest.mark.parametrize("settings", OPTIONS, ids=str)
def test_microbatches_take_one_step_like_linen(settings):
    model, x = Model(**settings), normal(5, 6, 3)
    variables, apply = linen_twin(model, x[0], **settings)
    _, updates = jax.lax.map(lambda x: apply(variables, x), x)
    linen = bn_jax.accumulate_batch_stats(
        variables["batch_stats"],
        updates["batch_moments"],
        **{"momentum": 0.9} | settings,
    )
    state = accumulate_batch_stats(model, capture_microbatches(model, x))
    assert_close(state, [linen["norm0"], linen["norm1"]])


def test_microbatches_take_one_step_like_the_large_batch():
    model, x = Model(), normal(5, 6, 3)
    nnx.update(model, accumulate_batch_stats(model, capture_microbatches(model, x)))
    expected = []
    for h in inputs_of_norms(model, x):
        _, mean, var = oracles.moments(np.concatenate(h))
        mean = oracles.moving_average(0.0, mean, 0.9)
        var = oracles.moving_average(1.0, var, 0.9)
        expected.append({"mean": mean, "var": var})
    assert_close(nnx.state(model, nnx.BatchStat), expected)


def test_a_train_step_over_microbatches_is_one_step_of_everything():
    model, x = Model(), normal(5, 6, 3)

    def loss_fn(model, x):
        return jnp.mean(jnp.tanh(model(x) - 1))

    @nnx.jit
    def train_step(model, x):
        frozen = nnx.view(model, update_running_average=False)
        grad_fn = nnx.value_and_grad(nnx.capture(loss_fn, BatchMoments), has_aux=True)
        microbatches = nnx.scan(grad_fn, in_axes=(None, 0), out_axes=0)
        (losses, moments), grads = microbatches(frozen, x)
        params = nnx.state(model, nnx.Param)
        step = jax.tree.map(lambda p, g: p - 0.1 * g.mean(0), params, grads)
        nnx.update(model, step, accumulate_batch_stats(model, moments))
        return losses.mean()

    expected = accumulate_batch_stats(model, capture_microbatches(model, x))
    graphdef = nnx.graphdef(model)
    first = train_step(model, x)
    chex.assert_trees_all_close(
        nnx.state(model, nnx.BatchStat), expected, rtol=1e-6, atol=1e-6
    )
    assert nnx.graphdef(model) == graphdef
    assert train_step(model, x) < first


def test_moments_that_nobody_captured_are_refused():
    model, x = Model(nnx.BatchNorm), normal(2, 6, 3)
    with pytest.raises(ValueError, match=r"^accumulate_batch_stats: no layer"):
        accumulate_batch_stats(model, nnx.capture(model, BatchMoments)(x[0])[1])


def test_nothing_is_kept_unless_it_is_captured():
    layer, x = bn_jax.nnx.BatchNorm(3, rngs=nnx.Rngs(0)), normal(6, 3)
    graphdef, state = nnx.split(layer)
    _, nothing = nnx.capture(layer, nnx.Intermediate)(x)
    nnx.jit(run)(layer, x)
    layer(x)
    assert not jax.tree.leaves(nothing)
    assert nnx.graphdef(layer) == graphdef
    chex.assert_trees_all_equal_structs(nnx.state(layer), state)
    _, moments = nnx.capture(layer, BatchMoments)(x)
    assert isinstance(moments["moments"].get_value()[0], bn_jax.Moments)
    assert nnx.graphdef(layer) == graphdef


def test_a_view_freezes_the_statistics_and_shares_them():
    layer, x = bn_jax.nnx.BatchNorm(3, rngs=nnx.Rngs(0)), normal(6, 3)
    frozen = nnx.view(layer, update_running_average=False)
    frozen(x)
    np.testing.assert_array_equal(layer.mean[...], 0)
    layer(x)
    np.testing.assert_array_equal(frozen.mean[...], layer.mean[...])
    assert np.any(layer.mean[...] != 0)
    assert layer.update_running_average is None


def test_population_statistics_count_the_batches():
    model, batches = Model(debias=True), normal(4, 8, 3)
    nnx.update(model, population_statistics(jitted, model, batches))
    assert [norm.count[...] for norm in model.norms] == [4] * 2


def test_microbatches_of_groups_leave_the_statistics_of_the_large_batch():
    x = jax.random.normal(jax.random.key(0), (16, 3)) + jnp.arange(16.0)[:, None]
    layer = bn_jax.nnx.BatchNorm(3, group_size=4, momentum=0.9, rngs=nnx.Rngs(0))
    frozen = nnx.view(layer, update_running_average=False)
    forward = nnx.capture(lambda layer, x: layer(x), bn_jax.nnx.BatchMoments)
    scanned = nnx.scan(forward, in_axes=(None, 0), out_axes=0)
    _, moments = scanned(frozen, x.reshape(4, 4, 3))
    accumulated = bn_jax.nnx.accumulate_batch_stats(layer, moments)
    layer(x)
    chex.assert_trees_all_close(
        nnx.to_pure_dict(accumulated),
        nnx.to_pure_dict(nnx.state(layer, nnx.BatchStat)),
        rtol=1e-6,
    )


UNEQUAL = [jnp.array([[1.0], [3.0]]), jnp.array([[5.0], [9.0], [7.0], [7.0]])]


def test_batches_that_differ_in_size_are_refused_or_pooled():
    layer = bn_jax.nnx.BatchNorm(1, debias=True, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"2 values .* and 4 in .* pooled=True"):
        population_statistics(jitted, layer, UNEQUAL)
    nnx.update(layer, population_statistics(jitted, layer, UNEQUAL, pooled=True))
    np.testing.assert_allclose(layer.mean[...], [16 / 3], rtol=1e-6)
    np.testing.assert_allclose(layer.var[...], [65 / 9], rtol=1e-6)
    assert layer.count[...] == 2
