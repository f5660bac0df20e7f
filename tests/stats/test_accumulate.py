import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from arrays import normal, normal_with_trend

import bn_jax

KEY = jax.random.key(0)
MUTABLE = ["batch_moments"]


class Model(nn.Module):
    calls: int = 1

    @nn.compact
    def __call__(self, x, mask=None):
        h = nn.Dense(4, name="dense")(x)
        norm = bn_jax.BatchNorm(
            use_running_average=False, update_running_average=False, name="norm"
        )
        for call in range(self.calls):
            y = norm(h + call, mask=mask)
        return y


def init(model, x):
    return jax.jit(model.init)(KEY, x)


def accumulated(model, variables, x, mask=None, **settings):
    """Scans over the microbatches and returns the running statistics after one step."""

    @jax.jit
    def step(variables, x, mask):
        def body(carry, inputs):
            _, updates = model.apply(variables, *inputs, mutable=MUTABLE)
            return carry, updates["batch_moments"]

        _, moments = jax.lax.scan(body, None, (x, mask))
        old = variables["batch_stats"]
        return bn_jax.accumulate_batch_stats(old, moments, **settings)["norm"]

    return step(variables, x, mask)


def preactivations(variables, x):
    dense = variables["params"]["dense"]
    kernel, bias = (np.float64(dense[name]) for name in ("kernel", "bias"))
    return (np.float64(x) @ kernel + bias).reshape(-1, 4)


def assert_stats(stats, *batches, momentum, mask=None):
    mean, var = np.zeros(4), np.ones(4)
    for h in batches:
        _, batch_mean, batch_var = oracles.moments(h, mask=mask)
        mean = oracles.moving_average(mean, batch_mean, momentum)
        var = oracles.moving_average(var, batch_var, momentum)
    np.testing.assert_allclose(stats["mean"], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stats["var"], var, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_microbatches_take_one_step_like_the_large_batch(momentum):
    x, model = normal_with_trend(5, 6, 3), Model()
    variables = init(model, x[0])
    stats = accumulated(model, variables, x, momentum=momentum)
    assert_stats(stats, preactivations(variables, x), momentum=momentum)


def test_a_layer_called_twice_takes_one_step_a_call():
    x, model = normal_with_trend(5, 6, 3), Model(calls=2)
    variables = init(model, x[0])
    stats = accumulated(model, variables, x, momentum=0.5)
    h = preactivations(variables, x)
    assert_stats(stats, h, h + 1, momentum=0.5)


def test_microbatches_with_more_valid_examples_weigh_more():
    x, model = normal_with_trend(4, 6, 3), Model()
    mask = np.arange(6)[None, :, None] < np.array([6, 3, 0, 1])[:, None, None]
    variables = init(model, x[0])
    stats = accumulated(model, variables, x, jnp.asarray(mask), momentum=0.5)
    h = preactivations(variables, x)
    assert_stats(stats, h, momentum=0.5, mask=mask.reshape(-1, 1))


def test_the_correction_counts_all_microbatches():
    x, model = normal_with_trend(2, 2, 3), Model()
    variables = init(model, x[0])
    stats = accumulated(model, variables, x, momentum=0.0, variance_correction=1)
    var = preactivations(variables, x).var(axis=0, ddof=1)
    np.testing.assert_allclose(stats["var"], var, rtol=1e-5)


def test_a_cumulative_average_counts_one_step():
    x, model = normal_with_trend(5, 6, 3), Model()
    variables = init(model, x[0])
    variables["batch_stats"]["norm"]["count"] = jnp.zeros(())
    stats = accumulated(model, variables, x, momentum=None)
    assert stats["count"].item() == 1
    assert_stats(stats, preactivations(variables, x), momentum=0.0)


class Norm(nn.Module):
    @nn.compact
    def __call__(self, x, mask=None):
        return bn_jax.BatchNorm(
            use_running_average=False, update_running_average=False, name="norm"
        )(x, mask=mask)


# Two layers of four features, stacked along the first axis of x and of all variables.
Stacked = nn.vmap(
    Norm,
    variable_axes={"params": 0, "batch_stats": 0, "batch_moments": 0},
    split_rngs={"params": True},
)
MEAN, VAR, COUNT = np.array([[0.5], [-1]]), np.array([[2.0], [3]]), np.array([0.0, 3])


def accumulated_stacked(x, mask=None, **settings):
    """Returns the statistics of both layers after microbatches `(k, 2, batch, 4)`."""
    stats = {
        "mean": jnp.asarray(np.tile(MEAN, 4), jnp.float32),
        "var": jnp.asarray(np.tile(VAR, 4), jnp.float32),
        "count": jnp.asarray(COUNT, jnp.float32),
    }
    model = Stacked()
    variables = init(model, x[0]) | {"batch_stats": {"norm": stats}}
    return accumulated(model, variables, x, mask, **settings)


def assert_stacked(stats, layer, values, weight, mask=None):
    """Compares with the old statistics by `1 - weight` and the values' by `weight`."""
    _, mean, var = oracles.moments(values, mask=mask)
    kept = 1 - weight
    expected = kept * MEAN[layer] + weight * mean, kept * VAR[layer] + weight * var
    for name, value in zip(("mean", "var"), expected, strict=True):
        np.testing.assert_allclose(stats[name][layer], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        ({"momentum": 0.9}, (0.1, 0.1)),
        ({"momentum": None}, (1.0, 1 / 4)),
        ({"momentum": 0.9, "debias": True}, (1.0, 0.1 / (1 - 0.9**4))),
    ],
)
def test_stacked_layers_take_one_step_each(settings, weights):
    x = normal(5, 2, 6, 4, mean=3, std=2)
    stats = accumulated_stacked(x, **settings)
    np.testing.assert_array_equal(stats["count"], COUNT + 1)
    for layer, weight in enumerate(weights):
        assert_stacked(stats, layer, x[:, layer], weight)


def test_a_stacked_layer_that_is_not_finite_holds_up_no_other():
    x = normal(5, 2, 6, 4, mean=3, std=2)
    spoiled = x.at[2, 1, 0, 3].set(jnp.nan)
    stats = accumulated_stacked(spoiled, momentum=0.9, skip_nonfinite=True)
    np.testing.assert_array_equal(stats["count"], COUNT + np.array([1, 0]))
    assert_stacked(stats, 0, x[:, 0], 0.1)
    assert_stacked(stats, 1, x[:, 1], 0.0)


def test_a_stacked_layer_without_a_value_takes_no_step():
    x = normal(5, 2, 6, 4, mean=3, std=2)
    mask = jnp.broadcast_to(jnp.array([False, True])[None, :, None, None], (5, 2, 6, 1))
    stats = accumulated_stacked(x, mask, momentum=None)
    np.testing.assert_array_equal(stats["count"], COUNT + np.array([0, 1]))
    assert_stacked(stats, 0, x[:, 0], 0.0)
    assert_stacked(stats, 1, x[:, 1], 1 / 4)


def test_an_optimizer_step_over_microbatches_keeps_exact_statistics():
    x, model, optimizer = normal_with_trend(5, 6, 3), Model(), optax.sgd(0.1)
    variables = init(model, x[0])
    params = variables["params"]

    def loss(params, x):
        y, updates = model.apply(variables | {"params": params}, x, mutable=MUTABLE)
        return jnp.mean(jnp.tanh(y - 1)), updates["batch_moments"]

    def body(total, x):
        gradient, moments = jax.grad(loss, has_aux=True)(params, x)
        return jax.tree.map(jnp.add, total, gradient), moments

    total, moments = jax.lax.scan(body, jax.tree.map(jnp.zeros_like, params), x)
    mean = jax.tree.map(lambda leaf: leaf / len(x), total)
    updates, _ = optimizer.update(mean, optimizer.init(params), params)
    new = optax.apply_updates(params, updates)
    stats = bn_jax.accumulate_batch_stats(variables["batch_stats"], moments)
    assert_stats(stats["norm"], preactivations(variables, x), momentum=0.99)
    assert loss(new, x[0])[0] < loss(params, x[0])[0]


@pytest.mark.parametrize("num_microbatches", [1, 4])
def test_groups_leave_the_statistics_of_the_large_batch(num_microbatches):
    x = normal_with_trend(16, 4)
    layer = bn_jax.BatchNorm(use_running_average=False, momentum=0.9, group_size=4)
    variables = init(layer, x)
    _, expected = layer.apply(variables, x, mutable=["batch_stats"])

    def body(carry, part):
        _, updates = layer.apply(
            variables, part, mutable=["batch_stats", "batch_moments"]
        )
        return carry, updates["batch_moments"]

    _, moments = jax.lax.scan(body, None, x.reshape(num_microbatches, -1, 4))
    actual = bn_jax.accumulate_batch_stats(
        variables["batch_stats"], moments, momentum=0.9, group_size=4
    )
    chex.assert_trees_all_close(actual, expected["batch_stats"], rtol=1e-6)


def test_moments_that_are_not_stacked_are_refused():
    layer = bn_jax.BatchNorm(use_running_average=False)
    variables = init(layer, jnp.ones((4, 3)))
    _, updates = layer.apply(
        variables, jnp.ones((4, 3)), mutable=["batch_stats", "batch_moments"]
    )
    with pytest.raises(ValueError, match=r"shape \(microbatches, 3\).*have \(3,\)"):
        bn_jax.accumulate_batch_stats(
            variables["batch_stats"], updates["batch_moments"]
        )


def test_moments_of_other_layers_are_refused():
    x, model = normal_with_trend(2, 6, 3), Model()
    variables = init(model, x[0])
    _, updates = model.apply(variables, x[0], mutable=MUTABLE)
    stacked = jax.tree.map(lambda leaf: leaf[None], updates["batch_moments"])
    # Moments inside their collection's name, and moments of another layer.
    for moments in ({"batch_moments": stacked}, {"other": stacked["norm"]}):
        with pytest.raises(ValueError, match=r"batch_stats has no .* \['norm'\]"):
            bn_jax.accumulate_batch_stats(variables["batch_stats"], moments)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"momentum": 1.5}, r"momentum must lie in \[0, 1\), but is 1\.5"),
        ({"variance_correction": 7}, "variance_correction must be 0"),
        ({"debias": True}, r"number of batches so far.*bn_jax\.with_counts"),
        ({"momentum": None}, r"number of batches so far.*bn_jax\.with_counts"),
    ],
)
def test_settings_that_a_layer_would_refuse_are_refused(settings, message):
    x, model = normal_with_trend(2, 6, 3), Model()
    variables = init(model, x[0])
    _, updates = model.apply(variables, x[0], mutable=MUTABLE)
    stacked = jax.tree.map(lambda leaf: leaf[None], updates["batch_moments"])
    with pytest.raises(ValueError, match=f"accumulate_batch_stats: .*{message}"):
        bn_jax.accumulate_batch_stats(variables["batch_stats"], stacked, **settings)


def test_no_moments_are_refused():
    x, model = normal_with_trend(2, 6, 3), Model()
    variables = init(model, x[0])
    with pytest.raises(ValueError, match=r"no moments.*'batch_moments'"):
        bn_jax.accumulate_batch_stats(variables["batch_stats"], {})
