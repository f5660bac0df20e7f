"""Inputs on which other libraries fail: each fails here too, and bn_jax does not."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from conformance.modes import AXIS, make_mesh, over_devices
from flax import nnx
from jax.sharding import PartitionSpec as P
from peers import formulas

import bn_jax

UNSYNCED = [[[-1.0], [1.0]], [[1.0], [3.0]]]


def start(*features, **more):
    return {"mean": jnp.zeros(features), "var": jnp.ones(features)} | more


def train(x, scale=None, bias=None, stats=None, **settings):
    x = jnp.asarray(x)
    stats = start(x.shape[-1]) if stats is None else stats
    return bn_jax.batch_norm(x, scale, bias, stats, **settings)


def batch_statistics(x, **settings):
    """Mean and variance that are used, and y."""
    y, stats = train(x, momentum=0.0, **settings)
    return stats["mean"], stats["var"], y


def flax_layer(x, steps=1, layer=nn.BatchNorm, mask=None, **fields):
    """Y and statistics of a Linen layer after some steps on one batch."""
    model = layer(use_running_average=False, **fields)
    variables = model.init(jax.random.key(0), x)
    for _ in range(steps):
        y, updates = model.apply(variables, x, mask=mask, mutable=["batch_stats"])
        variables = variables | updates
    return y, updates["batch_stats"]


def is_close(actual, expected, rtol=1e-5, atol=1e-6):
    return np.allclose(np.asarray(actual, np.float64), expected, rtol=rtol, atol=atol)


# Large means.


@pytest.mark.parametrize("offset", [1e3, 3e3, 1e4, 1e5])
def test_flax_variance_cancels_under_a_large_mean(offset):
    x = np.random.default_rng(0).normal(offset, 1, (4096, 2)).astype(np.float32)
    _, _, var = oracles.moments(x)
    assert is_close(batch_statistics(x)[1], var, rtol=1e-5)
    assert not is_close(formulas.fast_moments(jnp.asarray(x))[1], var, rtol=1e-5)
    assert not is_close(flax_layer(x, momentum=0.0)[1]["var"], var, rtol=1e-5)


def test_flax_makes_316_of_two_values_around_ten_thousand():
    x = jnp.array([[9999.0], [10001.0]])
    expected = [[-1], [1]]
    assert is_close(train(x)[0], expected)
    assert is_close(np.abs(flax_layer(x)[0]), np.sqrt(1e5), rtol=1e-3)


@pytest.mark.parametrize("center", [1e4, 1e5])
def test_haiku_and_flax_find_no_variance_in_two_values_of_many_rows(center):
    x = jnp.tile(jnp.array([[center - 1], [center + 1]]), (128, 1))
    assert is_close(batch_statistics(x)[1], [1.0])
    for moments in (formulas.fast_moments, formulas.haiku_moments):
        assert not is_close(moments(x)[1], [1.0])


def test_haiku_variance_turns_negative_and_its_result_nan():
    x = np.random.default_rng(0).normal(3000, 0.1, (256, 64)).astype(np.float32)
    expected = oracles.batch_norm(x)
    # x itself is known to 1e-4, which is 1e-3 of its deviation.
    assert is_close(train(x)[0], expected, atol=5e-3)
    mean, var = formulas.haiku_moments(jnp.asarray(x))
    assert (np.asarray(var) < 0).any()
    assert np.isnan(formulas.standardize(x, mean, var)).any()


def test_raw_means_of_devices_lose_the_variance_that_shifted_sums_keep():
    x = np.random.default_rng(0).normal(1e6, 1, (4, 64, 2)).astype(np.float32)
    _, _, var = oracles.moments(x.reshape(-1, 2))
    together = over_devices(
        "vmap", 4, lambda axis, _, x: batch_statistics(x, axis_name=axis)[1]
    )
    assert is_close(together({}, jnp.asarray(x.reshape(-1, 2)))[0], var, rtol=1e-5)
    means = x.mean(1)
    pooled = x.var(1).mean(0) + np.square(means - means.mean(0)).mean(0)
    assert not is_close(pooled, var, rtol=1e-5)


# Masks and devices.


def synchronized(x, mask, mode="shard_map"):
    """Mean, variance and y of devices that share them, `(devices, ...)`."""
    num_devices = x.shape[0]
    function = over_devices(
        mode,
        num_devices,
        lambda axis, _, x, mask: batch_statistics(x, mask=mask, axis_name=axis),
    )
    flat = [jnp.reshape(v, (-1, v.shape[-1])) for v in (x, mask)]
    return jax.jit(function)({}, *flat)


def test_flax_averages_devices_of_unequal_counts_alike():
    x = np.array([[[0.0]] * 4, [[4.0], [9.0], [9.0], [9.0]]], np.float32)
    mask = np.array([[[True]] * 4, [[True], [False], [False], [False]]])
    mean, var, _ = synchronized(x, mask)
    assert is_close(mean, 0.8)
    assert is_close(var, 2.56)
    assert is_close(formulas.mean_of_means(x, mask), [[2.0], [4.0]])


def test_flax_makes_every_device_nan_when_one_has_nothing_valid():
    x = np.array([[[0.0], [4.0]], [[9.0], [9.0]]], np.float32)
    mask = np.array([[[True]] * 2, [[False]] * 2])
    mean, var, y = synchronized(x, mask)
    assert is_close(mean, 2.0)
    assert is_close(var, 4.0)
    assert is_close(np.ravel(y), [-1, 1, 0, 0], atol=1e-5)
    layer = nn.BatchNorm(use_running_average=False, axis_name=AXIS)
    variables = nn.BatchNorm(use_running_average=False).init(jax.random.key(0), x[0])
    y_flax, _ = jax.vmap(
        lambda x, mask: layer.apply(variables, x, mask=mask, mutable=["batch_stats"]),
        axis_name=AXIS,
    )(x, mask)
    assert np.isnan(y_flax).all()


@pytest.mark.parametrize("rows", [4, 0])
def test_flax_statistics_are_nan_for_ever_after_a_batch_with_nothing(rows):
    x, mask = jnp.ones((rows, 2)), jnp.zeros((rows, 1), bool)
    y, stats = train(x, mask=mask)
    assert is_close(y, np.zeros((rows, 2)))
    assert is_close(stats["mean"], [0, 0])
    assert is_close(stats["var"], [1, 1])
    _, flax_stats = flax_layer(x, mask=mask)
    assert np.isnan(flax_stats["mean"]).all()
    assert np.isnan(flax_stats["var"]).all()


def test_keras_statistics_decay_in_a_batch_with_nothing():
    _, stats = train(jnp.ones((4, 1)), mask=jnp.zeros((4, 1), bool))
    assert is_close(stats["var"], [1.0])
    assert not is_close(formulas.moving_average(1.0, 0.0), 1.0)


def test_flax_gradients_are_nan_under_masked_nan_padding():
    x = jnp.array([[1.0], [3.0], [jnp.nan]])
    mask = jnp.array([[True], [True], [False]])
    dy, one, zero = jnp.array([[1.0], [2.0], [0.0]]), jnp.ones(1), jnp.zeros(1)
    y, back = jax.vjp(jax.jit(lambda *of: train(*of, mask=mask)[0]), x, one, zero)
    dx, dscale, dbias = back(dy)
    assert is_close(y, [[-1], [1], [0]], atol=1e-5)
    assert is_close(dx, [[-5.0e-6], [5.0e-6], [0]], atol=1e-7)
    assert is_close(dscale, [0.999995])
    assert is_close(dbias, [3.0])
    y, back = jax.vjp(
        lambda *of: formulas.masked_after_arithmetic(*of, mask), x, one, zero
    )
    dx, dscale, dbias = back(dy)
    assert np.isnan(y[2]).all()
    assert np.isnan(dx).all()
    assert np.isnan(dscale).all()
    assert is_close(dbias, [3.0])


@pytest.mark.parametrize(
    ("x", "var"),
    [(UNSYNCED, 2.0), ([[[m - 1.0], [m + 1.0]] for m in (0, 2, 4, 6)], 6.0)],
    ids=["two", "four"],
)
def test_scenic_averages_the_variances_of_unsynced_statistics(x, var):
    kept = jax.jit(jax.vmap(lambda x: train(x, momentum=0.0)[1]))(jnp.array(x))
    assert is_close(bn_jax.merge_batch_stats(kept)["var"], [var])
    assert is_close(formulas.averaged_statistics(kept)["var"], [1.0])


def test_unsynced_statistics_do_not_leave_shard_map_as_if_they_were_synced():
    def mapped(merge):
        def of_shard(x):
            stats = train(x, momentum=0.0)[1]
            merged = bn_jax.merge_batch_stats(stats, axis_name=AXIS)
            return jax.lax.pmean(merged, AXIS) if merge else stats

        x = jnp.array(UNSYNCED).reshape(4, 1)
        mesh = make_mesh(2)
        sharded = jax.shard_map(of_shard, mesh=mesh, in_specs=P(AXIS), out_specs=P())
        return jax.jit(sharded)(x)

    assert is_close(mapped(True)["var"], [2.0])
    with pytest.raises(ValueError, match="replicat"):
        mapped(False)


# Gradients of devices.

ROWS = jnp.array([[0.0], [1.0], [2.0], [5.0]])
TARGETS = jnp.array([[1.0], [0.0], [0.0], [1.0]])
DSCALE, DBIAS = 0.450935, -0.529360


def gradients_of_devices(mode, mean_inside, mean_outside):
    """Gradients of scale and bias on each of two devices, in one of four forms."""

    def body(axis, params, x, targets):
        def loss(params):
            y, _ = train(x, params["scale"], params["bias"], axis_name=axis)
            local = jnp.mean(jnp.square(jnp.tanh(y) - targets))
            return jax.lax.pmean(local, axis) if mean_inside else local

        gradients = jax.grad(loss)(params)
        return jax.lax.pmean(gradients, AXIS) if mean_outside else gradients

    params = {"scale": jnp.ones(1), "bias": jnp.zeros(1)}
    gradients = jax.jit(over_devices(mode, 2, body))(params, ROWS, TARGETS)
    return np.ravel(gradients["scale"]), np.ravel(gradients["bias"])


@pytest.mark.parametrize("mode", ["pmap", "shard_map", "shard_map_unchecked", "vmap"])
def test_gradients_of_the_portable_recipe_have_the_right_scale(mode):
    dscale, dbias = gradients_of_devices(mode, True, True)
    assert is_close(dscale, DSCALE)
    assert is_close(dbias, DBIAS)


@pytest.mark.parametrize("mode", ["pmap", "shard_map_unchecked"])
def test_gradients_of_a_pmap_loop_have_the_right_scale(mode):
    dscale, dbias = gradients_of_devices(mode, False, True)
    assert is_close(dscale, DSCALE)
    assert is_close(dbias, DBIAS)


def test_gradients_of_a_pmap_loop_are_twice_too_large_in_default_shard_map():
    dscale, dbias = gradients_of_devices("shard_map", False, True)
    assert is_close(dscale, 2 * DSCALE)
    assert is_close(dbias, 2 * DBIAS)


def test_gradients_that_pmap_does_not_reduce_differ_between_devices():
    dscale, dbias = gradients_of_devices("pmap", True, False)
    assert is_close(dscale, [0.920526, -0.018656])
    assert is_close(dbias, [-1.047086, -0.011634])
    assert is_close(np.mean(dscale), DSCALE)


# Running statistics.


def test_flax_running_variance_is_biased_without_a_choice():
    x = jnp.array([[0.0], [2.0]])
    unbiased = train(x, momentum=0.0, variance_correction=1)[1]
    assert is_close(unbiased["var"], [2.0])
    assert is_close(flax_layer(x, momentum=0.0)[1]["var"], [1.0])


def test_an_unbiased_variance_counts_valid_values_of_all_devices():
    def body(axis, _, x, mask):
        settings = {"momentum": 0.0, "variance_correction": 1}
        return train(x, mask=mask, axis_name=axis, **settings)[1]["var"]

    x = jnp.array([[0.0], [2.0], [4.0], [9.0]])
    mask = jnp.array([[True], [True], [True], [False]])
    var = over_devices("vmap", 2, body)({}, x, mask)
    assert is_close(var, np.var([0, 2, 4], ddof=1))
    assert not is_close(np.mean([np.var([0, 2], ddof=1), 0]), 4.0)


def test_pytorch_unbiased_variance_of_one_value_would_be_nan():
    mask = jnp.array([[True], [False]])
    _, stats = train([[7.0], [0.0]], mask=mask, variance_correction=1, momentum=0.0)
    assert is_close(stats["var"], [0.0])
    with np.errstate(all="ignore"), pytest.warns(RuntimeWarning):
        assert np.isnan(np.var([7.0], ddof=1))


def test_flax_running_statistics_start_far_from_the_batch():
    x = jnp.array([[3.0], [7.0]])
    _, stats = train(x, stats=start(1, count=jnp.array(0.0)), debias=True)
    assert is_close(stats["mean"], [5.0])
    assert is_close(stats["var"], [4.0])
    _, flax_stats = flax_layer(x)
    assert is_close(flax_stats["mean"], [0.05])
    assert is_close(flax_stats["var"], [1.03])


@pytest.mark.parametrize("steps", [1, 10, 100, 300])
def test_equinox_debiases_the_variance_as_if_it_started_at_zero(steps):
    x, stats = jnp.array([[1.0], [5.0]]), start(1, count=jnp.array(0.0))
    step = jax.jit(lambda stats: train(x, stats=stats, debias=True)[1])
    for _ in range(steps):
        stats = step(stats)
    y, _ = train(x, stats=stats, use_running_average=True)
    assert is_close(y, [[-1], [1]], atol=1e-4)
    var = formulas.equinox_debiased_variance(4.0, steps)
    assert not is_close(2 / np.sqrt(var + 1e-5), 1.0, atol=1e-4)


def test_a_cumulative_average_weighs_all_batches_alike():
    batches = np.random.default_rng(0).normal(5, 3, (10, 4, 1)).astype(np.float32)
    stats, moving = start(1, count=jnp.array(0.0)), np.zeros(1)
    for x in batches:
        _, stats = train(x, stats=stats, momentum=None)
        moving = formulas.moving_average(moving, x.mean(0))
    assert is_close(stats["mean"], batches.mean((0, 1)))
    assert not is_close(moving, batches.mean((0, 1)), rtol=0.5)


def test_flax_statistics_are_nan_for_ever_after_a_batch_with_nan():
    x = jnp.ones((4, 2)).at[0, 0].set(jnp.nan)
    _, stats = train(x, skip_nonfinite=True)
    assert is_close(stats["mean"], [0, 0])
    assert is_close(stats["var"], [1, 1])
    mean = flax_layer(x, steps=2)[1]["mean"]
    assert np.isnan(mean[0])


def test_flax_returns_the_bias_for_one_value_a_channel():
    x = jnp.array([[7.0, 7.0]])
    with pytest.raises(ValueError, match="one value a feature"):
        train(x)
    y, stats = flax_layer(x)
    assert is_close(y, [[0, 0]])
    assert is_close(stats["var"], [0.99, 0.99])


def test_one_value_a_channel_on_each_of_two_devices_is_a_batch_of_two():
    y = over_devices("vmap", 2, lambda axis, _, x: train(x, axis_name=axis)[0])(
        {}, jnp.array([[7.0], [9.0]])
    )
    assert is_close(np.ravel(y), [-1, 1], atol=1e-5)


def test_flax_takes_a_step_of_the_average_in_every_microbatch():
    x = jnp.ones((8, 1))
    layer = bn_jax.BatchNorm(use_running_average=False, momentum=0.9)
    variables = layer.init(jax.random.key(0), x)
    moments = [
        layer.apply(variables, part, mutable=["batch_stats", "batch_moments"])[1]
        for part in x.reshape(4, 2, 1)
    ]
    stacked = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *(m["batch_moments"] for m in moments)
    )
    stats = bn_jax.accumulate_batch_stats(
        variables["batch_stats"], stacked, momentum=0.9
    )
    assert is_close(stats["mean"], [0.1])
    assert is_close(stats["var"], [0.9])
    _, flax_stats = flax_layer(x[:2], steps=4, momentum=0.9)
    assert is_close(flax_stats["mean"], [0.3439])
    assert is_close(flax_stats["var"], [0.6561])


def test_flax_broadcasts_statistics_of_the_wrong_length():
    x = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    with pytest.raises(ValueError, match="mean must have the shape"):
        train(x, stats=start(1), use_running_average=True)
    stats = {"batch_stats": start(1)}
    layer = nn.BatchNorm(use_running_average=True, use_bias=False, use_scale=False)
    assert layer.apply(stats, x).shape == (2, 2)


# Half precision.


@pytest.mark.parametrize("value", [300, 6e4])
def test_haiku_and_equinox_overflow_in_float16(value):
    x = jnp.array([[-value], [value]], jnp.float16)
    mean, var, y = batch_statistics(x)
    assert y.dtype == jnp.float16
    assert is_close(y, [[-1], [1]], rtol=1e-3)
    assert is_close(var, np.float64(x[1]) ** 2)
    for moments in (formulas.haiku_moments, formulas.equinox_moments):
        mean, var = moments(x)
        assert np.isinf(var).all()
        assert not is_close(formulas.standardize(x, mean, var), [[-1], [1]], rtol=1e-3)


def test_haiku_variance_cancels_in_bfloat16():
    x = jnp.array([[29.0], [31.0]], jnp.bfloat16)
    assert is_close(train(x)[0], [[-1], [1]])
    mean, var = formulas.haiku_moments(x)
    assert not is_close(var, [1.0])
    assert not is_close(formulas.standardize(x, mean, var), [[-1], [1]])


def test_equinox_running_mean_stalls_in_bfloat16():
    x = jnp.ones((4, 1), jnp.bfloat16)
    layer = bn_jax.BatchNorm(use_running_average=False, dtype=jnp.bfloat16)
    variables = layer.init(jax.random.key(0), x)

    def ours(stats, _):
        _, updates = layer.apply(
            variables | {"batch_stats": stats}, x, mutable=["batch_stats"]
        )
        return updates["batch_stats"], None

    def theirs(mean, _):
        keep = jnp.bfloat16(0.99)
        return formulas.moving_average(mean, jnp.bfloat16(1), keep), None

    stats, _ = jax.lax.scan(ours, variables["batch_stats"], length=800)
    stalled, _ = jax.lax.scan(theirs, jnp.bfloat16(0), length=800)
    assert stats["mean"].dtype == jnp.float32
    assert is_close(stats["mean"], 1 - 0.99**800, rtol=1e-4)
    assert float(stalled) < 0.9


def test_nnx_rounds_the_input_before_it_normalizes():
    x = np.random.default_rng(0).normal(50, 1, (4096, 1)).astype(np.float32)
    _, mean, var = oracles.moments(x)
    stats = jax.tree.map(jnp.float32, {"mean": mean, "var": var})
    layer = bn_jax.BatchNorm(
        use_running_average=True,
        dtype=jnp.bfloat16,
        use_bias=False,
        use_scale=False,
    )
    y = layer.apply({"batch_stats": stats}, x)
    assert y.dtype == jnp.bfloat16
    expected = oracles.inference(x, None, None, mean, var)
    assert is_close(y, expected, rtol=2**-8)
    x, mean, var = (jnp.asarray(v, jnp.bfloat16) for v in (x, mean, var))
    assert not is_close(formulas.standardize(x, mean, var), expected, rtol=2**-8)


def test_keras_moments_clip_to_the_range_of_float16():
    x = jnp.array([[6e4], [-6e4]], jnp.float16)
    var = np.square(np.asarray(x, np.float64)).mean(0)
    assert is_close(batch_statistics(x)[1], var)
    assert not is_close(np.clip(var, None, np.finfo(np.float16).max), var)


# Axes, groups and transforms.

GROUP_MODES = ("pmap", "shard_map", "shard_map_unchecked", "vmap", "jit")


def grouped(mode, x, **settings):
    body = over_devices(
        mode, 4, lambda axis, _, x: train(x, axis_name=axis, **settings)[0]
    )
    return np.reshape(jax.jit(body)({}, x), x.shape)


@pytest.mark.parametrize("group_size", [2, 4, 8])
@pytest.mark.parametrize("mode", GROUP_MODES)
def test_flax_groups_of_devices_mean_nothing_in_jit_and_vmap(mode, group_size):
    x = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    groups = x.reshape(-1, group_size, 3)
    expected = np.concatenate([oracles.batch_norm(group) for group in groups])
    y = grouped(mode, jnp.asarray(x), group_size=group_size)
    assert is_close(y, expected, atol=1e-5)


@pytest.mark.parametrize("mode", ["shard_map", "vmap"])
def test_groups_of_an_axis_are_not_implemented_where_a_group_size_is(mode):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 3)), jnp.float32)
    with pytest.raises(NotImplementedError):
        grouped(mode, x, axis_index_groups=[[0, 1], [2, 3]])


@pytest.mark.parametrize("mode", ["pmap", "shard_map_unchecked"])
def test_groups_of_an_axis_and_a_group_size_agree(mode):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 3)), jnp.float32)
    by_index = grouped(mode, x, axis_index_groups=[[0, 1], [2, 3]])
    assert is_close(by_index, grouped(mode, x, group_size=8), atol=1e-6)


def test_an_unbound_axis_is_named_along_with_those_that_are_bound():
    def body(axis, _, x):
        return train(x, axis_name="batch")[0]

    with pytest.raises(NameError, match=r"'batch' is not bound.*devices"):
        over_devices("vmap", 2, body)({}, jnp.ones((4, 1)))


def test_haiku_needs_the_axis_in_initialization():
    layer = bn_jax.BatchNorm(use_running_average=False, axis_name="batch")
    variables = layer.init(jax.random.key(0), jnp.ones((4, 1)))
    assert set(variables) == {"params", "batch_stats"}
    with pytest.raises(NameError):
        jax.lax.pmean(jnp.ones(1), "batch")


@pytest.mark.parametrize("axis", [(1, 2), (2, 1), (-1, -2)])
def test_nnx_refuses_several_feature_axes(axis):
    x = np.random.default_rng(0).normal(size=(4, 2, 3)).astype(np.float32)
    layer = bn_jax.BatchNorm(use_running_average=False, axis=axis)
    y, variables = layer.init_with_output(jax.random.key(0), x)
    assert variables["params"]["scale"].shape == (2, 3)
    assert is_close(y, oracles.batch_norm(x, axis=axis), atol=1e-5)
    with pytest.raises(ValueError, match=r"broadcast|reshape"):
        nnx.BatchNorm(6, axis=axis, rngs=nnx.Rngs(0))(x)


def test_flax_does_not_sort_feature_axes_from_eight_on():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, *[2] * 7, 3, 5)))
    shapes = {}
    for layer in (bn_jax.BatchNorm, nn.BatchNorm):
        model = layer(use_running_average=False, axis=(9, 1, 8))
        shapes[layer] = model.init(jax.random.key(0), x)["params"]["scale"].shape
    assert shapes[bn_jax.BatchNorm] == (2, 3, 5)
    assert shapes[nn.BatchNorm] != (2, 3, 5)


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

    def loss(params):
        y, updates = layer.apply(
            variables | {"params": params}, x, mutable=["batch_stats"]
        )
        return jnp.sum(jnp.tanh(y)), updates["batch_stats"]

    _, stats = jax.grad(loss, has_aux=True)(variables["params"])
    assert is_close(stats["mean"], [0.02])
    twice = formulas.moving_average(formulas.moving_average(0.0, 2.0), 2.0)
    assert not is_close(twice, 0.02)
