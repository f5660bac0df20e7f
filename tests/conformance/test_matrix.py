from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from conformance.modes import (
    MAPPED,
    QUICK_AND_SLOW_MODES,
    available_devices,
    join_devices,
    over_devices,
    place,
)

import bn_jax

BATCH = 16
FEATURES = 3
LAYOUTS = {
    "dense": ((BATCH, FEATURES), 1),
    "nhwc": ((BATCH, 2, 1, FEATURES), 3),
    "nchw": ((BATCH, FEATURES, 2, 1), 1),
}
SPREADS = [("dense", 1), ("dense", 8), ("nhwc", 8), ("nchw", 2)]
CASES = [
    *(("float32", *spread) for spread in SPREADS),
    *((dtype, "nhwc", 8) for dtype in ("float64", "bfloat16", "float16")),
]
HALF = ("bfloat16", "float16")
PARAMS = {
    "scale": np.array([0.5, 1.5, -1.0], np.float32),
    "bias": np.array([0.25, -0.5, 1.0], np.float32),
}
# Relative to the largest expected value.
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}
MOMENTUM = 0.5
# Each case compiles one program and runs it once, so optimization would cost more time
# than it saves; it does not change what the program computes. XLA must round to half
# precision where the program does, because the oracle takes the rounded cotangent.
COMPILER_OPTIONS = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_allow_excess_precision": False,
}


def x64_if(dtype):
    return jax.enable_x64(True) if dtype == "float64" else nullcontext()


def make_batch(layout, masked, num_devices, dtype):
    """Returns x, targets and a mask; the last of several devices has nothing valid."""
    shape, axis = LAYOUTS[layout]
    generator = np.random.default_rng(0)
    # Sample means and spreads differ between features; the means also between devices.
    index = np.arange(BATCH).reshape(-1, *[1] * (len(shape) - 1)) / BATCH
    x = generator.normal(size=shape) * 2 + 1 + index
    targets = generator.normal(size=shape)
    positions = tuple(1 if a == axis else size for a, size in enumerate(shape))
    mask = np.ones(positions, bool)
    if masked:
        mask = generator.random(positions) < 0.7
        if num_devices > 1:
            mask[BATCH - BATCH // num_devices :] = False
    return jnp.asarray(x, dtype), jnp.asarray(targets, dtype), jnp.asarray(mask)


def make_program(mode, num_devices, axis, masked):
    """Returns a function that computes results, statistics and gradients."""

    def operator(axis_name, params, x, mask):
        stats = {"mean": jnp.zeros(FEATURES), "var": jnp.ones(FEATURES)}
        stats = jax.tree.map(lambda leaf: leaf.astype(params["scale"].dtype), stats)
        return bn_jax.batch_norm(
            x,
            params["scale"],
            params["bias"],
            stats,
            axis=axis,
            momentum=MOMENTUM,
            mask=mask if masked else None,
            axis_name=axis_name,
        )

    def squared_error(y, targets):
        wide = jnp.promote_types(y.dtype, jnp.float32)
        return jnp.mean(jnp.square(jnp.tanh(y.astype(wide)) - targets.astype(wide)))

    def gradients_inside(axis_name, params, x, targets, mask):
        def loss(params):
            y, _ = operator(axis_name, params, x, mask)
            return jax.lax.pmean(squared_error(y, targets), axis_name)

        return jax.lax.pmean(jax.grad(loss)(params), axis_name)

    def program(params, x, targets, mask):
        def loss(params, x):
            y, stats = over_devices(mode, num_devices, operator)(params, x, mask)
            return squared_error(y.reshape(x.shape), targets), (y, stats)

        gradients, results = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x)
        # Gradients of parameters do not depend on the layout of x.
        if mode not in MAPPED or x.ndim > 2:
            return results, gradients, None
        inside = over_devices(mode, num_devices, gradients_inside)
        return results, gradients, inside(params, x, targets, mask)

    return jax.jit(program, compiler_options=COMPILER_OPTIONS)


def expect(x, targets, mask, axis, dtype, y):
    """Returns exact results, statistics and gradients; the loss gets the rounded y."""
    x, targets, mask = (np.asarray(values) for values in (x, targets, mask))
    scale, bias = PARAMS["scale"], PARAMS["bias"]
    exact = oracles.batch_norm(x, scale, bias, axis=axis, mask=mask)
    seen = np.asarray(y, np.float64) if dtype in HALF else exact
    error = np.tanh(seen) - targets.astype(np.float64)
    dy = 2 * error * (1 - np.tanh(seen) ** 2) / error.size
    if dtype in HALF:
        dy = np.asarray(dy.astype(y.dtype), np.float64)
    _, mean, var = oracles.moments(x, axis=axis, mask=mask)
    stats = {
        "mean": oracles.moving_average(np.zeros(FEATURES), mean, MOMENTUM),
        "var": oracles.moving_average(np.ones(FEATURES), var, MOMENTUM),
    }
    gradients = oracles.batch_norm_gradients(x, dy, scale, axis=axis, mask=mask)
    return exact, stats, gradients


def assert_close(actual, expected, tolerance):
    actual = np.asarray(actual, np.float64)
    np.testing.assert_allclose(
        actual, expected, rtol=0, atol=tolerance * np.abs(expected).max()
    )


@pytest.mark.parametrize(("dtype", "layout", "num_devices"), CASES)
@pytest.mark.parametrize("masked", [False, True], ids=["full", "masked"])
@pytest.mark.parametrize("mode", QUICK_AND_SLOW_MODES)
def test_every_mode_is_the_oracle_on_the_whole_batch(
    mode, masked, dtype, layout, num_devices
):
    axis, num_devices = LAYOUTS[layout][1], available_devices(mode, num_devices)
    with x64_if(dtype):
        x, targets, mask = make_batch(layout, masked, num_devices, dtype)
        wide = "float64" if dtype == "float64" else "float32"
        params = {name: jnp.asarray(value, wide) for name, value in PARAMS.items()}
        program = make_program(mode, num_devices, axis, masked)
        (y, stats), (dparams, dx), inside = jax.device_get(
            program(*place(mode, num_devices, params, x, targets, mask))
        )
    y = join_devices(y).reshape(x.shape)
    expected, expected_stats, expected_gradients = expect(
        x, targets, mask, axis, dtype, y
    )
    is_half = dtype in HALF
    # Half the distance between neighbouring numbers, relative to the value.
    rounding = float(jnp.finfo(dtype).eps) / 2
    if is_half:
        np.testing.assert_allclose(y.astype(float), expected, rtol=rounding, atol=1e-6)
    else:
        assert_close(y, expected, TOLERANCE[dtype])
    for name, value in expected_stats.items():
        for of_device in stats[name]:
            assert_close(of_device, value, 1e-5 if is_half else TOLERANCE[dtype])
    expected_dx, *expected_dparams = expected_gradients
    assert_close(dx, expected_dx, rounding if is_half else TOLERANCE[dtype])
    for name, value in zip(("scale", "bias"), expected_dparams, strict=True):
        # Cotangents of half precision may round to either side of a tie.
        tolerance = 1e-3 if is_half else TOLERANCE[dtype]
        assert_close(dparams[name], value, tolerance)
        for of_device in inside[name] if inside else ():
            assert_close(of_device, value, tolerance)


@pytest.mark.parametrize("masked", [False, True], ids=["full", "masked"])
@pytest.mark.parametrize("mode", QUICK_AND_SLOW_MODES)
def test_a_large_mean_of_eight_devices_does_not_cancel_in_the_first_step(mode, masked):
    x = np.random.default_rng(0).normal(1e4, 1, (64, FEATURES)).astype(np.float32)
    mask = np.random.default_rng(1).random((64, 1)) < (0.7 if masked else 2)

    def train(axis_name, params, x, mask):
        stats = {"mean": jnp.zeros(FEATURES), "var": jnp.ones(FEATURES)}
        mask = mask if masked else None
        settings = {"momentum": 0.0, "axis_name": axis_name}
        return bn_jax.batch_norm(x, None, None, stats, mask=mask, **settings)

    num_devices = available_devices(mode, 8)
    program = jax.jit(over_devices(mode, num_devices, train))
    y, stats = jax.device_get(program(*place(mode, num_devices, {}, x, mask)))
    _, mean, var = oracles.moments(x, mask=mask)
    for of_device in stats["mean"]:
        np.testing.assert_allclose(of_device, mean, rtol=1e-6)
    for of_device in stats["var"]:
        np.testing.assert_allclose(of_device, var, rtol=1e-5)
    # If the mean were rounded to one float32, the error would be 5e-4.
    expected = oracles.batch_norm(x, mask=mask)
    np.testing.assert_allclose(y.reshape(x.shape), expected, atol=2e-6)
