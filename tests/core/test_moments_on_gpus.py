"""Moments as GPUs compute them, in float64 and without a branch."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from conformance.modes import MODES, over_devices, place

from benchmarks.hlo import count_collectives
from bn_jax.core.batch_norm import batch_norm
from bn_jax.core.devices import Devices
from bn_jax.core.moments import batch_moments
from bn_jax.core.types import Guess

SHAPE = (64, 3)
FOR_GPUS = ("cuda", "rocm")


@pytest.fixture
def chosen(monkeypatch, untraced):
    """What is chosen for GPUs is computed by the devices that there are."""
    choose = jax.lax.platform_dependent

    def choose_for_gpus(*arguments, default, cuda=None, rocm=None, **others):
        assert cuda is rocm
        return choose(*arguments, tpu=default, default=cuda or default)

    monkeypatch.setattr(jax.lax, "platform_dependent", choose_for_gpus)


def normal(*shape, mean=0.0, dtype=np.float32):
    return np.random.default_rng(0).normal(mean, 1, shape).astype(dtype)


def train(axis_name, params, x, mask=None, momentum=0.0):
    """The operator, which keeps the moments of this batch alone."""
    stats = {"mean": jnp.zeros(x.shape[-1:]), "var": jnp.ones(x.shape[-1:])}
    return batch_norm(
        x, None, None, stats, mask=mask, momentum=momentum, axis_name=axis_name
    )


def lowered(platform, x):
    """The operator's program for a platform that need not be here.

    Further passes are a loop; the choice of a platform is a branch by a constant.
    """
    traced = jax.jit(lambda x: train(None, {}, x)).trace(x)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "complex64"])
@pytest.mark.parametrize("platform", FOR_GPUS)
@pytest.mark.usefixtures("standard_promotion")
def test_a_gpu_is_given_one_pass_in_float64(platform, dtype):
    program = lowered(platform, jnp.zeros((4, 2), dtype))
    assert "f64" in program
    assert "stablehlo.while" not in program


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.usefixtures("standard_promotion")
def test_what_the_mean_loses_as_one_float32_is_protected_from_the_compiler(dtype):
    # A conversion and its reverse are nothing to XLA, and the mean's rest would be 0.
    assert "reduce_precision" in lowered("cuda", jnp.zeros((4, 2), dtype))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.usefixtures("standard_promotion")
def test_half_precision_is_widened_by_way_of_float32_which_xla_does_not_store(dtype):
    short = {"bfloat16": "bf16", "float16": "f16"}[dtype]
    program = lowered("cuda", jnp.zeros((4, 2), dtype))
    assert f"(tensor<4x2x{short}>) -> tensor<4x2xf32>" in program
    assert "(tensor<4x2xf32>) -> tensor<4x2xf64>" in program
    assert f"(tensor<4x2x{short}>) -> tensor<4x2xf64>" not in program


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.usefixtures("standard_promotion")
def test_both_sums_widen_their_own_values_which_xla_does_not_store(dtype):
    program = lowered("cuda", jnp.zeros((4, 2), dtype))
    assert program.count("(tensor<4x2xf32>) -> tensor<4x2xf64>") == 2
    assert re.search(r"stablehlo\.negate %\w+ : tensor<4x2xf32>", program)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_others_are_given_float32_and_further_passes(platform):
    program = lowered(platform, jnp.zeros((4, 2)))
    assert "f64" not in program
    assert "stablehlo.while" in program


@pytest.mark.usefixtures("standard_promotion")
def test_what_is_float64_already_needs_further_passes_on_a_gpu_too():
    with jax.enable_x64(True):
        assert "stablehlo.while" in lowered("cuda", jnp.zeros((4, 2), jnp.float64))


@pytest.mark.parametrize("masked", [False, True], ids=["full", "masked"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.usefixtures("chosen", "standard_promotion")
def test_a_large_mean_does_not_cancel_in_the_first_step(mode, masked):
    x = normal(*SHAPE, mean=1e4)
    mask = np.random.default_rng(1).random((64, 1)) < (0.7 if masked else 2)
    program = over_devices(
        mode, 8, lambda name, _, x, mask: train(name, {}, x, mask if masked else None)
    )
    y, stats = jax.jit(program)(*place(mode, 8, {}, x, mask))
    _, mean, var = oracles.moments(x, mask=mask)
    for of_device in stats["var"]:
        np.testing.assert_allclose(of_device, var, rtol=1e-6)
    for of_device in stats["mean"]:
        np.testing.assert_allclose(of_device, mean, rtol=1e-7)
    expected = oracles.batch_norm(x, mask=mask)
    np.testing.assert_allclose(np.reshape(y, SHAPE), expected, atol=2e-6)


@pytest.mark.parametrize("mode", ["jit", "pmap", "shard_map", "shard_map_unchecked"])
@pytest.mark.usefixtures("chosen", "standard_promotion")
def test_devices_sum_once_and_never_again(mode):
    program = over_devices(mode, 8, lambda name, _, x: train(name, {}, x))
    arguments = place(mode, 8, {}, normal(*SHAPE))
    compiled = jax.jit(program).lower(*arguments).compile().as_text()
    collectives = count_collectives(compiled)
    assert dict(collectives.always) == {"all-reduce": 1}
    assert not collectives.if_needed


@pytest.mark.parametrize(
    ("mean", "tolerance"), [(0.0, 1e-6), (1e5, 1e-5), (1e6, 1e-3), (-1e6, 1e-3)]
)
@pytest.mark.usefixtures("chosen")
def test_the_variance_keeps_what_float64_keeps(mean, tolerance):
    x = normal(4096, 2, mean=mean)
    _, stats = jax.jit(lambda x: train(None, {}, x))(x)
    _, exact_mean, exact_var = oracles.moments(x)
    np.testing.assert_allclose(stats["var"], exact_var, rtol=tolerance)
    np.testing.assert_allclose(stats["mean"], exact_mean, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("mean", [1e4, 1e5])
@pytest.mark.usefixtures("chosen")
def test_a_feature_of_which_one_value_differs_keeps_its_variance_beside_epsilon(mean):
    x = np.full((5000, 1), mean, np.float32)
    x[7] = np.nextafter(x[7], np.float32(np.inf))
    y, _ = train(None, {}, jnp.asarray(x))
    np.testing.assert_allclose(y, oracles.batch_norm(x), rtol=0.1, atol=1e-3)


@pytest.mark.usefixtures("chosen", "standard_promotion")
def test_complex_values_with_a_large_mean_match_the_oracle():
    x = (normal(60, 2, mean=1e4) + 1j * normal(60, 2, mean=-3e3)[::-1]).astype("c8")
    y, stats = jax.jit(lambda x: train(None, {}, x))(x)
    _, _, var = oracles.moments(x)
    np.testing.assert_allclose(stats["var"], var, rtol=1e-6)
    np.testing.assert_allclose(y, oracles.batch_norm(x), atol=2e-6)


@pytest.mark.parametrize("value", [0.1, 1e30, 3e38, -3e38])
@pytest.mark.usefixtures("chosen")
def test_a_constant_becomes_zero(value):
    y, stats = train(None, {}, jnp.full((60, 2), value, jnp.float32))
    np.testing.assert_array_equal(y, 0)
    np.testing.assert_array_equal(stats["mean"], np.float32(value))


@pytest.mark.usefixtures("chosen")
def test_squares_beyond_float32_are_summed_and_a_variance_beyond_it_is_infinite():
    x = jnp.array([[-1e19, -1e30], [1e19, 1e30]])
    _, stats = train(None, {}, x)
    np.testing.assert_allclose(stats["var"], [1e38, np.inf], rtol=1e-6)
    np.testing.assert_array_equal(stats["mean"], 0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.usefixtures("chosen")
def test_what_is_not_finite_spoils_its_own_feature_alone(value):
    x = normal(60, 2)
    x[7, 0] = value
    y, stats = train(None, {}, jnp.asarray(x))
    np.testing.assert_allclose(y[:, 1], oracles.batch_norm(x[:, 1:])[:, 0], atol=1e-6)
    assert np.isnan(y[:, 0]).all()
    np.testing.assert_array_equal(stats["mean"][0], value)


@pytest.mark.usefixtures("chosen", "standard_promotion")
def test_a_mask_that_leaves_nothing_leaves_the_statistics_alone():
    x = jnp.full((4, 3), jnp.nan)
    y, stats = train(None, {}, x, mask=jnp.zeros((4, 1), bool))
    assert np.isfinite(y).all()
    np.testing.assert_array_equal(stats["mean"], 0)
    np.testing.assert_array_equal(stats["var"], 1)


@pytest.mark.usefixtures("chosen")
def test_derivatives_of_any_order_are_those_of_other_platforms(monkeypatch):
    x, weights = jnp.asarray(normal(5, 2)), jnp.asarray(normal(5, 2, mean=1.0))

    def loss(x):
        return jnp.sum(jnp.tanh(train(None, {}, x)[0]) * weights)

    on_gpus = [jax.grad(loss)(x), jax.hessian(loss)(x)]
    monkeypatch.undo()
    for ours, expected in zip(
        on_gpus, [jax.grad(loss)(x), jax.hessian(loss)(x)], strict=True
    ):
        np.testing.assert_allclose(ours, expected, atol=2e-6)


@pytest.mark.usefixtures("chosen", "standard_promotion")
def test_no_result_is_float64():
    for dtype, wide in {"bfloat16": "f4", "float32": "f4", "complex64": "c8"}.items():
        x, guess = jnp.asarray(normal(8, 2), dtype), jnp.zeros(2, wide)
        moments = batch_moments(x, Guess(guess), feature_axes=(1,), devices=Devices())
        assert [leaf.dtype for leaf in moments] == ["f4", wide, wide, "f4"]
