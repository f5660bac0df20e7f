"""On TPUs moments of bfloat16 are made from sums over each example that are exact."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from conformance.modes import MODES, over_devices, place

from bn_jax.core.batch_norm import batch_norm
from bn_jax.core.chunks import Chunks, in_chunks, moments_of_chunks
from bn_jax.core.devices import Devices
from bn_jax.core.moments import batch_moments
from bn_jax.core.types import Batch, Guess


def normal(shape, mean=0.0):
    values = np.random.default_rng(0).normal(mean, 1, shape)
    return np.asarray(values).astype(jnp.bfloat16)


def moments_of(x, axes, *, mask=None, guess=0.0, epsilon=0.0):
    x = jnp.asarray(x)
    if mask is not None:
        mask = jnp.asarray(mask)
        x = jnp.where(mask, x, jnp.zeros((), x.dtype))
    features = [x.shape[axis] for axis in axes]
    moments = jax.jit(
        lambda x, guess: batch_moments(
            x,
            Guess(guess),
            feature_axes=axes,
            mask=mask,
            epsilon=epsilon,
            devices=Devices(),
        ).rounded()
    )
    return moments(x, jnp.full(features, guess, jnp.float32))


def in_rows(x, axes):
    """Values in rows, features flat and last, in float64."""
    x = np.moveaxis(np.asarray(x, np.float64), axes, range(-len(axes), 0))
    return x.reshape(-1, np.prod(x.shape[-len(axes) :]))


def steps_around(value, shape):
    """Values of which few are a step of bfloat16 above or below all others."""
    values = np.full(shape, value).astype(jnp.bfloat16)
    where = np.arange(values.size).reshape(shape)
    # A sign, an exponent and the digits make up a number that grows as they do.
    digits = values.view(np.uint16)
    digits[where % 97 == 0] += 1
    digits[where % 89 == 0] -= 1
    return values


@pytest.mark.parametrize(
    ("shape", "axes", "of_chunks"),
    [
        ((256, 14, 14, 3), (3,), (256, 3)),
        ((4, 128, 128, 3), (3,), (4, 3)),
        # Few values are one sum.
        ((128, 14, 14, 3), (3,), (3,)),
        ((4096, 3), (1,), (3,)),
        # Larger ones come in parts that divide them.
        ((2, 224, 224, 3), (3,), (2, 2, 3)),
        ((2, 40000, 3), (2,), (2, 2, 3)),
        ((16, 16, 16, 16, 3), (4,), (16, 3)),
        ((8, 3, 128, 64), (1,), (8, 3)),
        ((3, 8, 128, 64), (0,), (3, 8)),
        # Groups, and features of more than one axis.
        ((2, 8, 128, 64, 3), (0, 4), (2, 8, 3)),
        ((2, 4, 8, 8, 3), (0, 4), (2, 3)),
        ((8, 128, 5, 64, 3), (2, 4), (8, 5, 3)),
        ((0, 8, 8, 3), (3,), (0, 3)),
    ],
)
def test_the_positions_of_an_example_are_summed_together(shape, axes, of_chunks):
    chunks = in_chunks(Batch(jnp.zeros(shape, jnp.bfloat16), axes, None))
    assert chunks.total.shape == of_chunks
    assert chunks.total.dtype == jnp.float32
    features = [shape[axis] for axis in axes]
    assert [of_chunks[axis] for axis in chunks.feature_axes] == features
    assert chunks.num_samples * chunks.total.size == np.prod(shape)


@pytest.mark.parametrize(
    ("shape", "axes", "dtype"),
    [
        ((4, 8, 8, 3), (3,), jnp.float32),
        ((4, 8, 8, 3), (3,), jnp.float16),
        # Too few values, or positions that do not part into enough.
        ((16, 3), (1,), jnp.bfloat16),
        ((4096, 4, 4, 3), (3,), jnp.bfloat16),
        ((2, 32771, 3), (2,), jnp.bfloat16),
        # Nor are examples added up position by position.
        ((64, 32771, 3), (2,), jnp.bfloat16),
        ((8, 8), (0, 1), jnp.bfloat16),
    ],
)
def test_others_have_no_chunks(shape, axes, dtype):
    assert in_chunks(Batch(jnp.zeros(shape, dtype), axes, None)) is None


@pytest.mark.parametrize("value", [100.0, -3000.0, 128.0, 1e6, 1e-6, 1e15])
@pytest.mark.parametrize(
    "shape",
    [(2, 8, 8, 3), (4, 8, 8, 3), (4, 14, 14, 3), (4, 112, 112, 3), (2, 256, 128, 3)],
)
def test_sums_of_nearly_equal_values_lose_no_digit(shape, value):
    x = steps_around(value, shape)
    chunks = in_chunks(Batch(jnp.asarray(x), (3,), None))
    exact = np.float64(x)
    axes = (0, 1, 2) if chunks.total.ndim == 1 else (1, 2)
    np.testing.assert_array_equal(chunks.total, exact.sum(axes))
    squares = sum(np.asarray(part, np.float64) for part in chunks.squares)
    np.testing.assert_array_equal(squares, np.square(exact).sum(axes))


@pytest.mark.parametrize("masked", [False, True], ids=["full", "masked"])
@pytest.mark.usefixtures("as_on_tpus")
def test_more_values_than_a_float32_counts_are_counted(masked):
    x = steps_around(128.0, (25013, 673, 1))
    mask = None
    if masked:
        mask = np.random.default_rng(2).random(x.shape) < 0.999
    found = moments_of(x, (2,), mask=mask)
    num_samples, mean, var = oracles.moments(x, mask=mask)
    assert num_samples > 2**24
    assert num_samples % 2 == 1
    np.testing.assert_allclose(found.num_samples, num_samples, rtol=1e-7)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-7)
    np.testing.assert_allclose(found.var, var, rtol=1e-5)


@pytest.mark.parametrize("masked", [False, True], ids=["full", "masked"])
@pytest.mark.parametrize("guess", [0.0, 1.0, 1.003])
@pytest.mark.parametrize("mean", [0.0, 3.0, 100.0, 128.0, 1e4])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((2, 7, 7, 3), (3,)),
        ((32, 28, 28, 3), (3,)),
        ((2, 224, 112, 2), (3,)),
        ((4, 3, 12, 12), (1,)),
        ((2, 4, 8, 8, 3), (0, 4)),
    ],
)
@pytest.mark.usefixtures("as_on_tpus")
def test_moments_are_those_of_float64(shape, axes, mean, guess, masked):
    x = normal(shape, mean)
    mask = None
    if masked:
        of_mask = [size if axis == 0 else 1 for axis, size in enumerate(shape)]
        of_mask[2] = shape[2]
        mask = np.random.default_rng(1).random(of_mask) < 0.7
    found = moments_of(x, axes, mask=mask, guess=mean * guess)
    rows = None if mask is None else in_rows(np.broadcast_to(mask, shape), axes) > 0
    num_samples, expected, var = oracles.moments(in_rows(x, axes), mask=rows)
    np.testing.assert_array_equal(found.num_samples.ravel(), num_samples)
    np.testing.assert_allclose(found.mean.ravel(), expected, rtol=2e-7, atol=1e-6)
    np.testing.assert_allclose(found.var.ravel(), var, rtol=2e-5)


@pytest.mark.parametrize("value", [0.0, 3.7, -1e5, 1e15])
@pytest.mark.usefixtures("as_on_tpus")
def test_a_constant_has_no_variance_and_normalizes_to_zero(value):
    x = jnp.full((4, 14, 14, 2), value, jnp.bfloat16)
    found = moments_of(x, (3,), epsilon=1e-5)
    np.testing.assert_array_equal(found.mean, x[0, 0, 0])
    np.testing.assert_array_equal(found.var, 0)
    stats = {"mean": jnp.zeros(2), "var": jnp.ones(2)}
    y, _ = batch_norm(x, None, None, stats)
    np.testing.assert_array_equal(y, 0)


@pytest.mark.parametrize(("value", "var"), [(3e16, 0), (3e33, np.inf)])
@pytest.mark.usefixtures("as_on_tpus")
def test_a_sum_over_all_examples_overflows_no_sooner_than_one_of_them(value, var):
    x = jnp.full((300, 112, 112, 1), value, jnp.bfloat16)
    found = moments_of(x, (3,))
    np.testing.assert_array_equal(found.mean, x[0, 0, 0])
    np.testing.assert_array_equal(found.var, var)


def test_squares_that_were_rounded_leave_no_variance_below_zero():
    chunks = Chunks(jnp.full((2, 1), 300.0), [jnp.full((2, 1), 899.0)], 100, (1,))
    found = moments_of_chunks(chunks, Devices())
    np.testing.assert_array_equal(found.mean, 3)
    np.testing.assert_array_equal(found.var, 0)


@pytest.mark.usefixtures("as_on_tpus")
def test_features_that_are_not_finite_leave_the_others_alone():
    x = normal((4, 8, 8, 4), 5.0).copy()
    x[1, 2, 3, 0], x[2, 3, 4, 1] = np.nan, np.inf
    x[..., 2] = 1e19
    found = moments_of(x, (3,))
    _, mean, var = oracles.moments(in_rows(x[..., 3:], (3,)))
    np.testing.assert_array_equal(np.isfinite(found.mean), [False, False, True, True])
    assert not np.isfinite(found.var[:2]).any()
    # The square is beyond a float32.
    np.testing.assert_allclose(found.mean[2], 1e19, rtol=1e-2)
    assert found.var[2] == np.inf
    np.testing.assert_allclose(found.mean[3], mean[0], rtol=1e-6)
    np.testing.assert_allclose(found.var[3], var[0], rtol=2e-5)


@pytest.mark.parametrize("mask", [None, np.zeros((4, 1, 1, 1), bool)])
@pytest.mark.usefixtures("as_on_tpus")
def test_without_a_value_there_are_moments_of_zero(mask):
    x = normal((0 if mask is None else 4, 8, 8, 3))
    found = moments_of(x, (3,), mask=mask, guess=2.0)
    for leaf in found:
        np.testing.assert_array_equal(leaf, np.zeros(3))


@pytest.mark.parametrize("masked", [False, True], ids=["full", "masked"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.usefixtures("as_on_tpus")
def test_devices_that_share_images_normalize_them_by_those_of_all(mode, masked):
    x = normal((16, 8, 8, 3), 100.0)
    mask = np.ones((16, 8, 8, 1), bool)
    if masked:
        mask = np.random.default_rng(1).random(mask.shape) < 0.7
        mask[:4] = False
    stats = {"mean": jnp.zeros(3), "var": jnp.ones(3)}

    def body(axis_name, _, x, mask):
        given = mask if masked else None
        return batch_norm(
            x, None, None, stats, mask=given, axis_name=axis_name, momentum=0.0
        )

    program = over_devices(mode, 8, body)
    y, running = jax.jit(program)(*place(mode, 8, {}, x, mask))
    rows = in_rows(np.broadcast_to(mask, x.shape), (3,)) > 0
    _, mean, var = oracles.moments(in_rows(x, (3,)), mask=rows)
    np.testing.assert_allclose(np.unique(running["mean"], axis=0), [mean], rtol=1e-6)
    np.testing.assert_allclose(np.unique(running["var"], axis=0), [var], rtol=1e-5)
    expected = (np.asarray(x, np.float64) - mean) / np.sqrt(var + 1e-5) * mask
    np.testing.assert_allclose(
        np.asarray(y, np.float64).reshape(x.shape), expected, rtol=2**-8, atol=1e-6
    )


@pytest.mark.parametrize("group_size", [1, 2, 4, 8])
@pytest.mark.usefixtures("as_on_tpus")
def test_groups_of_examples_have_their_own_moments(group_size):
    x = normal((16, 8, 8, 3), 100.0)
    stats = {"mean": jnp.zeros(3), "var": jnp.ones(3)}

    def body(axis_name, _, x):
        settings = {"axis_name": axis_name, "group_size": group_size}
        return batch_norm(x, None, None, stats, **settings)[0]

    y = jax.jit(over_devices("shard_map", 8, body))(*place("shard_map", 8, {}, x))
    groups = np.asarray(x, np.float64).reshape(-1, group_size * 64, 3)
    expected = [oracles.batch_norm(group) for group in groups]
    np.testing.assert_allclose(
        np.asarray(y, np.float64).reshape(groups.shape), expected, rtol=2**-8, atol=1e-6
    )


def test_images_of_any_number_are_exported_for_tpus():
    (size,) = jax.export.symbolic_shape("size")
    shape = jax.ShapeDtypeStruct((size, 8, 8, 3), jnp.bfloat16)

    def moments(x):
        layout = {"feature_axes": (3,), "devices": Devices()}
        return batch_moments(x, Guess(jnp.zeros(3)), **layout).rounded()

    exported = jax.export.export(jax.jit(moments), platforms=["tpu", "cpu"])(shape)
    x = normal((10, 8, 8, 3), 100.0)
    _, mean, var = oracles.moments(in_rows(x, (3,)))
    found = exported.call(x)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-7)
    np.testing.assert_allclose(found.var, var, rtol=1e-5)
    # Sums over all positions, which are the TPU's alone.
    assert "tensor<?x3xf32>" in exported.mlir_module()


def lowered(platform, dtype):
    """The operator's program for a platform that need not be here."""
    stats = {"mean": jnp.zeros(3), "var": jnp.ones(3)}
    traced = jax.jit(lambda x: batch_norm(x, None, None, stats)).trace(
        jnp.zeros((128, 14, 14, 3), dtype)
    )
    return traced.lower(lowering_platforms=(platform,)).as_text()


def test_a_tpu_has_no_further_passes_over_bfloat16():
    assert "stablehlo.while" not in lowered("tpu", jnp.bfloat16)
    assert "stablehlo.while" in lowered("tpu", jnp.float32)
    assert "stablehlo.while" in lowered("cpu", jnp.bfloat16)
