from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import bn_jax.core.sums as sums_module
from benchmarks.hlo import count_collectives
from bn_jax.core.batch_norm import batch_norm
from bn_jax.core.sums import abs_squared, sums_around, sums_around_guess

X = np.random.default_rng(0).normal(1.0, 2.0, (64, 3)).astype(np.float32)
MASK = np.arange(64)[:, None] % 3 > 0
AXES = {"feature_axes": (1,)}


@pytest.fixture
def always_worth_a_branch(monkeypatch, untraced):
    monkeypatch.setattr(sums_module, "_WORTH_A_BRANCH", 0)
    monkeypatch.setattr(sums_module, "_ENOUGH_OF_A_FEATURE", 0)


def expected_sums(x, shift, mask):
    """In float64: of `x - shift`, of its square, and of the mask."""
    deviation = (np.asarray(x, float) - shift) * mask
    count = np.sum(np.broadcast_to(mask, x.shape), 0)
    return [np.sum(deviation, 0), np.sum(deviation**2, 0), count]


def check_sums(sums, x, shift, mask):
    found = jax.jit(partial(sums, **AXES, mask=mask))(jnp.asarray(x), jnp.array(shift))
    expected = expected_sums(x, shift, True if mask is None else np.asarray(mask))
    if mask is None:
        expected = expected[:2]
    for value, of_oracle in zip(found, expected, strict=True):
        np.testing.assert_allclose(value, of_oracle, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("mask", [None, MASK], ids=["full", "masked"])
@pytest.mark.parametrize("shift", [[0.0, 0.0, 0.0], [0.0, 1.5, 0.0], [9.0, -3.0, 1.0]])
def test_sums_match_those_of_float64(shift, mask):
    check_sums(sums_around, X, shift, None if mask is None else jnp.asarray(mask))


@pytest.mark.parametrize("mask", [None, MASK], ids=["full", "masked"])
@pytest.mark.parametrize("shift", [[0.0, 0.0, 0.0], [0.0, 1.5, 0.0], [1.0, -3.0, 1.0]])
@pytest.mark.parametrize("is_near", [False, True])
# The last feature has lost its digits in sums around 0.
@pytest.mark.parametrize("mean", [0.0, 1e4])
@pytest.mark.usefixtures("always_worth_a_branch")
def test_sums_by_way_of_zero_are_the_same(mean, is_near, shift, mask):
    x, shift = (
        X + np.float32([0, 0, mean]),
        np.float32(shift) + np.float32([0, 0, mean]),
    )
    sums = partial(sums_around_guess, is_near_zero=is_near)
    check_sums(sums, x, shift, None if mask is None else jnp.asarray(mask))


def test_a_unit_is_squared_in_both_sums():
    plain = sums_around(jnp.asarray(X), jnp.ones(3), **AXES, mask=None)
    scaled = sums_around(jnp.asarray(X), jnp.ones(3), **AXES, mask=None, unit=0.25)
    np.testing.assert_array_equal(np.array(scaled), np.array(plain) / 16)


@pytest.mark.parametrize(
    ("platform", "shape", "tries"),
    [
        ("cpu", (2**16, 1), True),
        ("cpu", (64, 1024), True),
        ("cpu", (32, 2048), False),
        ("cpu", (64, 1), False),
        ("tpu", (2**16, 1), False),
    ],
)
def test_only_a_cpu_tries_the_way_of_zero_and_where_it_pays(platform, shape, tries):
    def sums(x, shift, is_near_zero):
        return sums_around_guess(x, shift, is_near_zero, **AXES, mask=None)

    lowered = jax.jit(sums).trace(jnp.ones(shape), jnp.zeros(shape[-1]), True)
    text = lowered.lower(lowering_platforms=(platform,)).as_text()
    # No sum around the shift takes the larger one of two numbers.
    assert ("stablehlo.maximum" in text) == tries


def test_more_values_than_an_integer_counts_are_traced():
    shape = jax.ShapeDtypeStruct((2**31, 1), jnp.float32)
    stats = {name: jax.ShapeDtypeStruct((1,), jnp.float32) for name in ("mean", "var")}
    y, _ = jax.eval_shape(lambda x, s: batch_norm(x, None, None, s), shape, stats)
    assert y.shape == shape.shape


# Two values only: all errors of a sum go one way.
@pytest.mark.parametrize("mean", [0.0, 0.99, 1.01, 2.0, 2.8, 2.9])
@pytest.mark.parametrize("expected_mean", [0.0, 1.0])
def test_the_variance_keeps_its_digits_by_either_way(mean, expected_mean):
    values = np.random.default_rng(0).choice([-1.0, 1.0], (2**20, 1)) + mean
    x = jnp.asarray(values, jnp.float32)
    stats = {"mean": jnp.array([expected_mean]), "var": jnp.ones(1)}
    _, kept = jax.jit(lambda x, stats: batch_norm(x, None, None, stats, momentum=0.0))(
        x, stats
    )
    _, found, var = oracles.moments(np.asarray(x))
    np.testing.assert_allclose(kept["var"], var, rtol=5e-6)
    np.testing.assert_allclose(kept["mean"], found, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
# Of the device's features the second one is near zero in some devices alone.
@pytest.mark.parametrize("means", [[0.0] * 4, [0.5, 5.0, 0.5, 0.5], [50.0] * 4])
@pytest.mark.usefixtures("always_worth_a_branch")
def test_devices_that_add_up_in_different_ways_are_like_one(
    over_devices, means, masked
):
    random = np.random.default_rng(1)
    x = random.normal(0.5, 1.0, (4, 16, 3)).astype(np.float32)
    mask = random.random((4, 16, 1)) < 0.6
    mask = mask if masked else np.ones_like(mask)
    mask[2] &= not masked

    def train(x, mask, mean):
        stats = {"mean": jnp.array([0.0, 1.0, 0.5]) * mean, "var": jnp.ones(3)}
        settings = {"mask": mask, "axis_name": "devices", "momentum": 0.0}
        return batch_norm(x, None, None, stats, **settings)

    y, stats = over_devices(train)(
        jnp.asarray(x), jnp.asarray(mask), jnp.array(means, jnp.float32)
    )
    flat, flat_mask = x.reshape(-1, 3), mask.reshape(-1, 1)
    _, mean, var = oracles.moments(flat, mask=flat_mask)
    np.testing.assert_allclose(stats["mean"], np.tile(mean, (4, 1)), atol=1e-6)
    np.testing.assert_allclose(stats["var"], np.tile(var, (4, 1)), rtol=2e-6)
    expected = (flat - mean) / np.sqrt(var + 1e-5) * flat_mask
    np.testing.assert_allclose(y, expected.reshape(x.shape), atol=1e-5)


@pytest.mark.usefixtures("always_worth_a_branch")
def test_each_way_on_sharded_arrays_executes_one_all_reduce(make_mesh):
    sharding = jax.NamedSharding(make_mesh(devices=4), jax.P("devices"))
    stats = {"mean": jnp.zeros(3), "var": jnp.ones(3)}
    apply = jax.jit(lambda x, stats: batch_norm(x, None, None, stats))
    compiled = apply.lower(jax.device_put(X, sharding), stats).compile()
    found = count_collectives(compiled.as_text())
    assert found.always["all-reduce"] == 1
    # Beyond it: where digits were lost around 0, and in further passes.
    assert found.if_needed["all-reduce"] == 2


@pytest.mark.parametrize("x", [np.array([-2.0, 3.0]), np.array([1.0 - 2.0j, 3.0j])])
def test_the_square_of_the_absolute_value_is_real(x):
    found = abs_squared(jnp.asarray(x, jnp.complex64 if np.iscomplexobj(x) else None))
    np.testing.assert_allclose(found, np.abs(x) ** 2, rtol=1e-6)
    assert found.dtype == jnp.float32
